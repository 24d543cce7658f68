// layer_norm_mod: out[r, :] = (x[r, :] - mean) / sqrt(var + eps) * (scale_offset + scale) + shift     f32 in, bf16 or f32 out
//
// Rows from one on may have a scale and shift of their own: a double block's image, whose tokens follow the text's, so that both
// norms are one launch.
//
// Work    one warp per row, so that the two reductions need no barrier. A row of up to 3072 floats stays in the
//         warp's registers (96 per lane); wider or unaligned ones are read three times, twice from cache.
// Layout  mean first, then the sum of squared deviations from it: FLUX's residual stream has channels hundreds of
//         times larger than the others, where E[x^2] - mean^2 would lose the rest.
// Bound   memory: 6 bytes per element with bf16 output.
// Source  LayerNorm (arXiv:1607.06450) with AdaLN's modulation (arXiv:2212.09748).
#include "layer_norm_mod.h"
#include "row.cuh"

static_assert(LAYER_NORM_MOD_THREADS == LAYER_NORM_MOD_ROWS * gpu::WARP, "one warp per row");
static_assert(LAYER_NORM_MOD_SMALL_WIDTH % 128 == 0 && LAYER_NORM_MOD_WIDE_WIDTH % 128 == 0, "a warp loads 128 floats at a time");

template <int VECS> GPU_FN void layer_norm_mod(const layer_norm_mod_params &p) {
    const int row_idx = gpu::cta_x() * LAYER_NORM_MOD_ROWS + gpu::warp_id();
    if (row_idx >= p.rows) return;  // the whole warp; there is no barrier

    gpu::Row<VECS> row;
    gpu::load_row(row, p.x + row_idx * p.pitch, p.width);

    float sum = 0.0f;
    gpu::for_each(row, [&](int, const auto &x) {
        GPU_UNROLL
        for (float v : x) sum += v;
    });
    const float mean = gpu::warp_sum(sum) / (float)p.width;

    float sum_sq = 0.0f;
    gpu::for_each(row, [&](int, const auto &x) {
        GPU_UNROLL
        for (float v : x) sum_sq += (v - mean) * (v - mean);
    });
    const float rstd = gpu::rsqrt_exact(gpu::warp_sum(sum_sq) / (float)p.width + p.eps);

    const float *of_scale = row_idx < p.rest_row ? p.scale : p.rest_scale;
    const float *of_shift = row_idx < p.rest_row ? p.shift : p.rest_shift;
    gpu::for_each(row, [&](int column, const auto &x) {
        constexpr int N = sizeof(x) / sizeof(float);
        float scale[N], shift[N], y[N];
        gpu::load_floats(scale, of_scale + column);
        gpu::load_floats(shift, of_shift + column);
        GPU_UNROLL
        for (int i = 0; i < N; ++i) y[i] = (x[i] - mean) * rstd * (p.scale_offset + scale[i]) + shift[i];
        if (p.out_bf16) {
            gpu::store_bf16(p.out_bf16 + row_idx * p.out_pitch + column, y);
        } else {
            gpu::store_floats(p.out_f32 + row_idx * p.out_pitch + column, y);
        }
    });
}

GPU_KERNEL(layer_norm_mod_small, layer_norm_mod_params, LAYER_NORM_MOD_THREADS, 1) { layer_norm_mod<LAYER_NORM_MOD_SMALL_WIDTH / 128>(p); }
GPU_KERNEL(layer_norm_mod_wide, layer_norm_mod_params, LAYER_NORM_MOD_THREADS, 1) { layer_norm_mod<LAYER_NORM_MOD_WIDE_WIDTH / 128>(p); }
GPU_KERNEL(layer_norm_mod_any, layer_norm_mod_params, LAYER_NORM_MOD_THREADS, 1) { layer_norm_mod<0>(p); }
