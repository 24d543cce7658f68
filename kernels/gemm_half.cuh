// gemm_half.cuh: a GEMM tile multiplied in fp16 with fp16 accumulators, which GeForce's tensor cores do twice as fast as with f32.
//
// Work    a k-step of 64, which is one quant block, and one m16 tile of a warp's four at a time:
//             16 registers of fp16 sums = 4 x mma (k16), from zero
//             128 of f32 accumulators, of which this tile's 32 += float(sums) * absmax
//         Each tile loads the warp's x fragments anew, four times in all: 256 wavefronts of the port that has 1,024 a warp.
// Range   |code| <= 1 and |x| < 256 (scale_rows.cu sees to that, row by row, by a power of two), so a sum of 64 stays below
//         16,384: no input overflows it. What the rows were divided by, `x_scale`, multiplies the accumulators in the end.
// Error   of a sum of 64, four roundings to 11 bits; weights are rounded to 11 bits instead of 8.
// Tried   two m16 tiles at a time, x loaded twice: spills on every target (benches/WORKLOG.md).
// Source  ours.
#ifndef SCHNELL_GEMM_HALF_CUH
#define SCHNELL_GEMM_HALF_CUH

#include "gemm_tile.cuh"
#include "operands/nf4_half_tile.cuh"

namespace gemm {

struct HalfArithmetic {
    // What a tile's tokens were divided by.
    struct Storage {
        float x_scale[BLOCK_M];
    };

    // The next commit is its group's.
    GPU_METHOD static void fetch(Storage &smem, const gemm_problem &q, int m0) {
        static_assert(THREADS == BLOCK_M, "a thread fetches one");
        const int token = m0 + gpu::thread_x();
        const bool exists = token < q.m;
        gpu::cp_async<4>(&smem.x_scale[gpu::thread_x()], exists ? q.x_scale + token : q.x_scale, exists ? 4 : 0);
    }

    // The accumulators will be multiplied by x_scale, a power of two: the division is exact.
    GPU_METHOD static void start(Accumulators &acc, const gemm_problem &q, int m0) {
        const int first = m0 + warp_token(gpu::thread_x_reread()) + first_token();
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            GPU_UNROLL
            for (int e = 0; e < 2; ++e) {
                const int token = first + 8 * j + e;
                const float factor = token < q.m ? 1.0f / q.x_scale[token] : 1.0f;
                GPU_UNROLL
                for (int c = 0; c < 8; ++c) element(acc, c, j, e) *= factor;
            }
        }
    }

    GPU_METHOD static void multiply(Accumulators &acc, const XStage &x, const Nf4HalfWeights::Stage &w, const Nf4HalfWeights::Tables &,
                                    int warp_n, int warp_m) {
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) {
            if (i > 0) gpu::sync_warp(); // ptxas loads what it finds loaded twice once, and keeps it: 64 registers of x
            const uint4 codes = Nf4HalfWeights::codes(w, warp_n, i);
            uint32_t sums[1][NT][2];
            GPU_UNROLL
            for (int k16 = 0; k16 < BLOCK_K / 16; ++k16) {
                uint32_t a[1][4], b[NT][2];
                Nf4HalfWeights::fragment(a[0], k16 == 0 ? codes.x : k16 == 1 ? codes.y : k16 == 2 ? codes.z : codes.w);
                load_x_fragments(b, x, warp_m, k16);
                if (k16 == 0) gpu::mma_half_tile<1, NT, true>(sums, a, b);
                else gpu::mma_half_tile<1, NT>(sums, a, b);
            }
            const float2 absmax = Nf4HalfWeights::absmax(w, warp_n, i);
            GPU_UNROLL
            for (int j = 0; j < NT; ++j) {
                float (&sum)[4] = acc[i][j];
                sum[0] = gpu::fma_exact(gpu::half_lo(sums[0][j][0]), absmax.x, sum[0]);
                sum[1] = gpu::fma_exact(gpu::half_hi(sums[0][j][0]), absmax.x, sum[1]);
                sum[2] = gpu::fma_exact(gpu::half_lo(sums[0][j][1]), absmax.y, sum[2]);
                sum[3] = gpu::fma_exact(gpu::half_hi(sums[0][j][1]), absmax.y, sum[3]);
            }
        }
    }

    GPU_METHOD static void finish(Accumulators &acc, const Storage &smem, int warp_m) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            const float2 scale = *reinterpret_cast<const float2 *>(&smem.x_scale[warp_m + 8 * j + first_token()]);
            GPU_UNROLL
            for (int c = 0; c < 8; ++c) element(acc, c, j, 0) *= scale.x, element(acc, c, j, 1) *= scale.y;
        }
    }
};

} // namespace gemm

#endif
