// nf4_tile.cuh: NF4 weights as the A operand of a GEMM tile, dequantized in registers.
#ifndef SCHNELL_NF4_TILE_CUH
#define SCHNELL_NF4_TILE_CUH

#include "../gemm_rows.cuh"
#include "../nf4.cuh"

namespace gemm {

static_assert(BLOCK_K == NF4_BLOCK, "a k-step has one absmax per feature");

// NF4 in fragment order (nf4_quantize.cu draws it): a lane's 16 bytes of an m16 x k64 piece hold, per k16
// step, the code pairs of a0a1, a2a3, a4a5, a6a7, the even element in the high nibble.
struct Nf4Weights {
    struct Stage {
        uint4 codes[BLOCK_N / 16 * gpu::WARP];
        float absmax[BLOCK_N];
    };
    static constexpr bool FILLS_SHARED = false; // gemm_tile.cuh
    struct Tables {
        gpu::Nf4Book book;
    };

    GPU_METHOD static void fill(Tables &tables) { gpu::fill(tables.book, THREADS); }

    struct Loader {
        static constexpr int TILE_CHUNKS = WARP_N * BLOCK_K / 2 / 16; // of 64 features x 64 k
        static_assert(TILE_CHUNKS == THREADS && BLOCK_N == 2 * WARP_N, "one chunk a thread and tile, two tiles");
        const uint4 *codes;    // this thread's chunk of the first tile, in the next k-step
        const float *absmax;
        int64_t tile_pitch;    // chunks from tile to tile
        int absmax_pitch;      // features of a k-step
        bool has_second, has_absmax;

        GPU_METHOD Loader(const gemm_problem &q, int n0) {
            const int n_padded = gpu::ceil_div(q.n, WARP_N) * WARP_N, n = n0 + gpu::thread_x() * 4;
            tile_pitch = (int64_t)(q.k / BLOCK_K) * TILE_CHUNKS;
            codes = static_cast<const uint4 *>(q.w) + n0 / WARP_N * tile_pitch + gpu::thread_x();
            absmax = q.absmax + n;
            absmax_pitch = n_padded;
            has_second = n0 + WARP_N < n_padded;
            has_absmax = n < n_padded;
        }

        GPU_METHOD void fetch(Stage &stage) {
            gpu::cp_async<16>(&stage.codes[gpu::thread_x()], codes, 16);
            gpu::cp_async<16>(&stage.codes[TILE_CHUNKS + gpu::thread_x()], codes + tile_pitch, has_second ? 16 : 0);
            codes += TILE_CHUNKS;
            if (gpu::thread_x() < BLOCK_N / 4) {
                gpu::cp_async<16>(&stage.absmax[gpu::thread_x() * 4], absmax, has_absmax ? 16 : 0);
                absmax += absmax_pitch;
            }
        }

        // Leaves out the first k-steps.
        GPU_METHOD void skip(int steps) {
            codes += (int64_t)steps * TILE_CHUNKS;
            absmax += (int64_t)steps * absmax_pitch;
        }
    };

    uint4 codes[MT];
    float absmax[MT][2];

    // Takes this lane's share of a whole k-step into registers.
    GPU_METHOD Nf4Weights(const Stage &stage, const Tables &, int warp_n) {
        const int lane = gpu::lane_id();
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) codes[i] = stage.codes[(warp_n / 16 + i) * gpu::WARP + lane];
        const float4 *scales = reinterpret_cast<const float4 *>(&stage.absmax[warp_n + lane / 4 * 8]);
        const float4 lo = scales[0], hi = scales[1];
        absmax[0][0] = lo.x, absmax[0][1] = lo.y, absmax[1][0] = lo.z, absmax[1][1] = lo.w;
        absmax[2][0] = hi.x, absmax[2][1] = hi.y, absmax[3][0] = hi.z, absmax[3][1] = hi.w;
    }

    // bf16(code * absmax), one rounding: bit-equal to dequantizing the whole matrix first. The codes are bits `bit` to
    // `bit` + 7 of `word`.
    GPU_METHOD static uint32_t dequantize(const Tables &tables, uint32_t word, int bit, float absmax) {
        const float even = gpu::mul_exact(gpu::lookup(tables.book, word, bit + 4), absmax);
        const float odd = gpu::mul_exact(gpu::lookup(tables.book, word, bit), absmax);
        return gpu::pack_bf16x2(even, odd);
    }

    GPU_METHOD void fragments(uint32_t (&a)[MT][4], const Stage &, const Tables &tables, int, int k16) const {
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) {
            const uint32_t word = k16 == 0 ? codes[i].x : k16 == 1 ? codes[i].y : k16 == 2 ? codes[i].z : codes[i].w;
            GPU_UNROLL
            for (int part = 0; part < 4; ++part) a[i][part] = dequantize(tables, word, 8 * part, absmax[i][part % 2]);
        }
    }
};

} // namespace gemm

#endif
