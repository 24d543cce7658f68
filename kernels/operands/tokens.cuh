// tokens.cuh: x, the B operand of a GEMM tile, a bf16 matrix of tokens.
#ifndef SCHNELL_TOKENS_CUH
#define SCHNELL_TOKENS_CUH

#include "../gemm_rows.cuh"

namespace gemm {

struct XStage {
    uint4 chunk[BLOCK_M * CHUNKS];
};

// A plain [m, k] matrix of tokens.
template <int K_MULTIPLE> struct TokenLoader : RowLoader<InOrder, K_MULTIPLE> {
    GPU_METHOD TokenLoader(const gemm_problem &q, int m0) : RowLoader<InOrder, K_MULTIPLE>(q.x, q.x_pitch, m0, q.m, q.k) {}
};

// b[2 j + {0, 1}]: the 16 k of step k16 for this warp's tokens.
GPU_FN void load_x_fragments(uint32_t (&b)[NT][2], const XStage &stage, int warp_m, int k16) {
    const int lane = gpu::lane_id();
    const int place = swizzle(warp_m + lane / 16 * 8 + lane % 8, lane / 8 % 2) ^ 2 * k16;
    const void *rows[NT / 2];
    GPU_UNROLL
    for (int j = 0; j < NT / 2; ++j) rows[j] = &stage.chunk[place + 16 * j * CHUNKS];
    uint32_t frag[NT / 2][4];
    gpu::ldmatrix_x4_tile<NT / 2>(frag, rows);
    GPU_UNROLL
    for (int j = 0; j < NT / 2; ++j) {
        b[2 * j][0] = frag[j][0];
        b[2 * j][1] = frag[j][1];
        b[2 * j + 1][0] = frag[j][2];
        b[2 * j + 1][1] = frag[j][3];
    }
}

} // namespace gemm

#endif
