// bf16_rows.cuh: bf16 weights for gemv, row by row.
#ifndef SCHNELL_BF16_ROWS_CUH
#define SCHNELL_BF16_ROWS_CUH

#include "../gemv.h"
#include "../gpu.cuh"

namespace gemv {

// A lane's share of ROWS rows: V consecutive weights, 16 bytes, of each slab that a warp reads at once.
template <int ROWS, int CHUNK> struct Bf16Rows {
    static constexpr int V = 8, SLABS = CHUNK / (V * gpu::WARP);
    static constexpr bool HAS_BOOK = false;
    uint4 weights[SLABS][ROWS];

    GPU_METHOD void fetch(const gemv_params &p, int first_row, int k0) {
        GPU_UNROLL
        for (int slab = 0; slab < SLABS; ++slab) {
            GPU_UNROLL
            for (int r = 0; r < ROWS; ++r) weights[slab][r] = load(p, first_row + r, k0 + slab * V * gpu::WARP + gpu::lane_id() * V);
        }
    }

    // 8 weights from k on; zero outside.
    GPU_METHOD static uint4 load(const gemv_params &p, int n, int k) {
        uint4 v = {0u, 0u, 0u, 0u};
        if (n >= p.n || k >= p.k) return v;
        const bf16_bits *const w = p.weight + n * p.weight_pitch + k;
        if (p.weight_vectors && k + 8 <= p.k) return *reinterpret_cast<const uint4 *>(w);
        const int valid = p.k - k;
        v.x = w[0] | (valid > 1 ? (uint32_t)w[1] << 16 : 0u);
        v.y = (valid > 2 ? w[2] : 0u) | (valid > 3 ? (uint32_t)w[3] << 16 : 0u);
        v.z = (valid > 4 ? w[4] : 0u) | (valid > 5 ? (uint32_t)w[5] << 16 : 0u);
        v.w = (valid > 6 ? w[6] : 0u) | (valid > 7 ? (uint32_t)w[7] << 16 : 0u);
        return v;
    }

    // Calls accumulate(w, slab, j) with weights 4 j to 4 j + 3 of each row.
    template <typename Book, typename F> GPU_METHOD void multiply(const Book &, F accumulate) {
        float w[ROWS][4];
        GPU_UNROLL
        for (int slab = 0; slab < SLABS; ++slab) {
            GPU_UNROLL
            for (int j = 0; j < 2; ++j) {
                GPU_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    const uint4 &bytes = weights[slab][r];
                    const uint32_t lo = j == 0 ? bytes.x : bytes.z, hi = j == 0 ? bytes.y : bytes.w;
                    w[r][0] = gpu::bf16_lo(lo), w[r][1] = gpu::bf16_hi(lo), w[r][2] = gpu::bf16_lo(hi), w[r][3] = gpu::bf16_hi(hi);
                }
                accumulate(w, slab, j);
            }
        }
    }
};

} // namespace gemv

#endif
