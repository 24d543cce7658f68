// head_norm_rope: x[r, h, :] = rope(x[r, h, :] / sqrt(mean(x[r, h, :]^2) + eps) * weight, r)     bf16 in place, f32 inside
//
// Work    one warp per row and head; a lane holds up to four pairs of neighbors, which are what RoPE rotates.
// Bound   memory: 4 bytes per element, and the tables from cache (every head of a row shares them).
// Source  QK norm and interleaved RoPE of FLUX: y[2p] = x[2p] cos - x[2p + 1] sin, y[2p + 1] = x[2p] sin + x[2p + 1] cos.
//         The GEMM epilogue does the same for head widths that fit its tile; this is for the others.
#include "head_norm_rope.h"
#include "gpu.cuh"

constexpr int PAIRS_PER_LANE = HEAD_NORM_ROPE_MAX_HEAD_DIM / 2 / gpu::WARP;

static_assert(HEAD_NORM_ROPE_THREADS == HEAD_NORM_ROPE_HEADS * gpu::WARP, "one warp per head");
static_assert(PAIRS_PER_LANE * 2 * gpu::WARP == HEAD_NORM_ROPE_MAX_HEAD_DIM, "a warp must hold the widest head");

GPU_KERNEL(head_norm_rope_bf16, head_norm_rope_params, HEAD_NORM_ROPE_THREADS, 1) {
    const int64_t head_idx = (int64_t)gpu::cta_x() * HEAD_NORM_ROPE_HEADS + gpu::warp_id();
    if (head_idx >= (int64_t)p.rows * p.heads) return;  // the whole warp; there is no barrier
    const int64_t row = head_idx / p.heads;
    const int num_pairs = p.head_dim / 2;
    uint32_t *const x = reinterpret_cast<uint32_t *>(p.x + row * p.pitch + (head_idx - row * p.heads) * p.head_dim);
    const float *const cos_row = p.cos + (p.rope_row + row) * num_pairs;
    const float *const sin_row = p.sin + (p.rope_row + row) * num_pairs;

    uint32_t held[PAIRS_PER_LANE];
    float sum_sq = 0.0f;
    GPU_UNROLL
    for (int i = 0; i < PAIRS_PER_LANE; ++i) {
        const int pair = i * gpu::WARP + gpu::lane_id();
        held[i] = pair < num_pairs ? x[pair] : 0u;
        sum_sq += gpu::bf16_lo(held[i]) * gpu::bf16_lo(held[i]) + gpu::bf16_hi(held[i]) * gpu::bf16_hi(held[i]);
    }
    const float rrms = gpu::rsqrt_exact(gpu::warp_sum(sum_sq) / (float)p.head_dim + p.eps);

    GPU_UNROLL
    for (int i = 0; i < PAIRS_PER_LANE; ++i) {
        const int pair = i * gpu::WARP + gpu::lane_id();
        if (pair < num_pairs) {
            const float even = gpu::bf16_lo(held[i]) * rrms * p.weight[2 * pair];
            const float odd = gpu::bf16_hi(held[i]) * rrms * p.weight[2 * pair + 1];
            const float c = cos_row[pair], s = sin_row[pair];
            x[pair] = gpu::pack_bf16x2(even * c - odd * s, even * s + odd * c);
        }
    }
}
