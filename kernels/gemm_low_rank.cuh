// gemm_low_rank.cuh: what a LoRA adds to a tile: out^T += up[n, rank] . t[m, rank]^T, into the product's own accumulators.
//
// Work    t = x . down^T is a launch of bf16_gemm before. Ahead of the first k-step comes one for each 64 of the rank, its
//         weight in bf16, in the memory of the stages that the main loop will fill:
//             fetch | multiply | fetch | multiply | k-steps of w .. | slices | epilogue
//         A tile on the seam of two parts takes the steps of both, each with zeros for the other's features. Of a split tile the
//         slice that has the first of k takes them.
// Bound   latency: a fetch hides behind nothing but another CTA of the SM. Without a LoRA all of it is a branch.
// Tried   behind the last k-step: what lives across the main loop for it makes that of most formats slower.
// Source  LoRA: arXiv:2106.09685.
#ifndef SCHNELL_GEMM_LOW_RANK_CUH
#define SCHNELL_GEMM_LOW_RANK_CUH

#include "gemm_arithmetic.cuh"
#include "operands/bf16_tile.cuh"

namespace gemm {

struct LowRankStage {
    XStage t;
    Bf16Weights::Stage up;
};

// Elements k to k + BLOCK_K of a row of `rank`, to the place of the tile's row; zeros for a row that there is not.
GPU_FN void fetch_row(uint4 *chunk, int row, int place, const bf16_bits *elements, bool exists, int k, int rank) {
    const int at = k + place * 8;
    exists &= at < rank;
    gpu::cp_async16_or_zeros(&chunk[swizzle(row, place)], reinterpret_cast<const uint4 *>(exists ? elements + at : elements), exists);
}

// The k-step in the stage, into a warp's sums; as Arithmetic<Bf16Weights>, with a `lane` of one's own.
GPU_FN void multiply_stage(Accumulators &acc, const LowRankStage &stage, int lane, int warp_n, int warp_m) {
    const int features = swizzle(warp_n + lane % 16, lane / 16);
    const int tokens = swizzle(warp_m + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    GPU_NO_UNROLL
    for (int k16 = 0; k16 < BLOCK_K / 16; ++k16) {
        const void *rows[MT];
        uint32_t a[MT][4], pairs[NT / 2][4], b[NT][2];
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) rows[i] = &stage.up.chunk[(features ^ 2 * k16) + 16 * i * CHUNKS];
        gpu::ldmatrix_x4_tile<MT>(a, rows);
        static_assert(NT / 2 == MT, "the same number of rows");
        GPU_UNROLL
        for (int j = 0; j < NT / 2; ++j) rows[j] = &stage.t.chunk[(tokens ^ 2 * k16) + 16 * j * CHUNKS];
        gpu::ldmatrix_x4_tile<NT / 2>(pairs, rows);
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) b[j][0] = pairs[j / 2][j % 2 * 2], b[j][1] = pairs[j / 2][j % 2 * 2 + 1];
        gpu::mma_tile<MT, NT>(acc, a, b);
    }
}

// The thread's number is read anew: nothing of it is kept for the main loop.
template <typename Stages>
GPU_FN void add_low_rank(Accumulators &acc, Stages &stages, const gemm_low_rank &low, int num_tokens, int n0, int m0) {
    static_assert(sizeof(Stages) >= sizeof(LowRankStage), "the main loop's stages have room for one of these");
    LowRankStage &stage = reinterpret_cast<LowRankStage &>(stages);
    const int thread = gpu::thread_x_reread();
    int begin = 0;
    GPU_NO_UNROLL
    for (int part = 0; part < low.num_parts; ++part) {
        const int end = low.end[part];
        if (begin < n0 + BLOCK_N && n0 < end) {
            GPU_NO_UNROLL
            for (int k = 0; k < low.rank; k += BLOCK_K) {
                gpu::sync_cta(); // everyone has left the stage
                GPU_NO_UNROLL
                for (int i = 0; i < ROWS_EACH; ++i) {
                    const int row = thread / CHUNKS + i * ROWS_APART, token = m0 + row, place = thread % CHUNKS;
                    const bool exists = token < num_tokens;
                    const bf16_bits *const t = low.t + part * low.rank + (exists ? token * low.t_pitch : 0);
                    fetch_row(stage.t.chunk, row, place, t, exists, k, low.rank);
                    const int feature = n0 + row / WARP_N * WARP_N + feature_of(row % WARP_N / 16, row % 16);
                    const bool is_of_part = begin <= feature && feature < end;
                    const bf16_bits *const up = low.up + (is_of_part ? (int64_t)feature * low.rank : 0);
                    fetch_row(stage.up.chunk, row, place, up, is_of_part, k, low.rank);
                }
                gpu::cp_async_commit();
                gpu::cp_async_wait<0>();
                gpu::sync_cta(); // it has landed for everyone
                multiply_stage(acc, stage, thread % gpu::WARP, warp_feature(thread), warp_token(thread));
            }
        }
        begin = end;
    }
}

} // namespace gemm

#endif
