// nf4_rows.cuh: NF4 weights for gemv, row by row, as bitsandbytes stores them.
#ifndef SCHNELL_NF4_ROWS_CUH
#define SCHNELL_NF4_ROWS_CUH

#include "../gemv.h"
#include "../nf4.cuh"

namespace gemv {

// A lane's share of ROWS rows: V consecutive codes, 16 bytes, and their absmax.
template <int ROWS, int CHUNK> struct Nf4Rows {
    static constexpr int V = 32, SLABS = CHUNK / (V * gpu::WARP);
    static_assert(SLABS == 1, "a lane has one absmax and 32 codes of each row per chunk");
    static constexpr bool HAS_BOOK = true;
    uint4 codes[ROWS];
    float absmax[ROWS];

    // K is a multiple of 64, so a lane's codes lie inside together, or outside.
    GPU_METHOD void fetch(const gemv_params &p, int first_row, int k0) {
        const int k = k0 + gpu::lane_id() * V;
        GPU_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const int n = first_row + r;
            codes[r] = uint4{0u, 0u, 0u, 0u};
            absmax[r] = 0.0f;
            if (n < p.n && k < p.k) {
                codes[r] = *reinterpret_cast<const uint4 *>(p.codes + ((int64_t)n * p.k + k) / 2);
                absmax[r] = p.absmax[(int64_t)n * (p.k / NF4_BLOCK) + k / NF4_BLOCK];
            }
        }
    }

    // Four codes, in the low 16 bits, to four weights.
    GPU_METHOD static void dequantize(float (&w)[4], const gpu::Nf4Book &book, uint32_t four, float block_absmax) {
        auto value = [&](int shift) { return book.value[four >> shift & 15][gpu::lane_id()] * block_absmax; };
        const uint32_t lo = gpu::pack_bf16x2(value(4), value(0)), hi = gpu::pack_bf16x2(value(12), value(8));
        w[0] = gpu::bf16_lo(lo), w[1] = gpu::bf16_hi(lo), w[2] = gpu::bf16_lo(hi), w[3] = gpu::bf16_hi(hi);
    }

    // Calls accumulate(w, 0, j) with weights 4 j to 4 j + 3 of each row.
    //
    // One word of 8 codes after the other, each moved to .x in turn: unrolled, nvcc looks up all 32 codes of all rows at once
    // and needs 254 registers (or, held to 128, spills on sm_90 and sm_120).
    template <typename F> GPU_METHOD void multiply(const gpu::Nf4Book &book, F accumulate) {
        float w[ROWS][4];
        GPU_NO_UNROLL
        for (int word = 0; word < 4; ++word) {
            GPU_UNROLL
            for (int half = 0; half < 2; ++half) {
                GPU_UNROLL
                for (int r = 0; r < ROWS; ++r) dequantize(w[r], book, codes[r].x >> (16 * half), absmax[r]);
                accumulate(w, 0, 2 * word + half);
            }
            GPU_UNROLL
            for (int r = 0; r < ROWS; ++r) codes[r] = uint4{codes[r].y, codes[r].z, codes[r].w, 0u};
        }
    }
};

} // namespace gemv

#endif
