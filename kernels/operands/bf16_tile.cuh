// bf16_tile.cuh: bf16 weights as the A operand of a GEMM tile, from smem by ldmatrix.
#ifndef SCHNELL_BF16_TILE_CUH
#define SCHNELL_BF16_TILE_CUH

#include "../gemm_rows.cuh"

namespace gemm {

// bf16 [n, k], rows in fragment order in smem.
struct Bf16Weights {
    struct Stage {
        uint4 chunk[BLOCK_N * CHUNKS];
    };
    static constexpr bool FILLS_SHARED = false; // gemm_tile.cuh
    struct Tables {};

    GPU_METHOD static void fill(Tables &) {}

    struct Loader {
        RowLoader<FragmentOrder, 1> rows;

        GPU_METHOD Loader(const gemm_problem &q, int n0) : rows(static_cast<const bf16_bits *>(q.w), q.w_pitch, n0, q.n, q.k) {}

        GPU_METHOD void fetch(Stage &stage) { rows.fetch(stage.chunk); }

        GPU_METHOD void skip(int steps) { rows.skip(steps); }
    };

    GPU_METHOD Bf16Weights(const Stage &, const Tables &, int) {}

    GPU_METHOD void fragments(uint32_t (&a)[MT][4], const Stage &stage, const Tables &, int warp_n, int k16) const {
        const int lane = gpu::lane_id();
        const int place = swizzle(warp_n + lane % 16, lane / 16) ^ 2 * k16;
        const void *rows[MT];
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) rows[i] = &stage.chunk[place + 16 * i * CHUNKS];
        gpu::ldmatrix_x4_tile<MT>(a, rows);
    }
};

} // namespace gemm

#endif
