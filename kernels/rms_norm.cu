// rms_norm: out[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight     f32 in, bf16 or f32 out
//
// Work    one warp per row. A row of up to 4096 floats (T5-XXL) stays in the warp's registers, 128 per lane; wider or
//         unaligned ones are read twice.
// Bound   memory: 6 bytes per element with bf16 output.
// Source  RMSNorm (arXiv:1910.07467), as T5 applies it: no mean, no bias. One rounding at the store, where the bf16
//         reference rounds before it multiplies by the weight.
#include "rms_norm.h"
#include "row.cuh"

static_assert(RMS_NORM_THREADS == RMS_NORM_ROWS * gpu::WARP, "one warp per row");
static_assert(RMS_NORM_SMALL_WIDTH % 128 == 0 && RMS_NORM_WIDE_WIDTH % 128 == 0, "a warp loads 128 floats at a time");

template <int VECS> GPU_FN void rms_norm(const rms_norm_params &p) {
    const int row_idx = gpu::cta_x() * RMS_NORM_ROWS + gpu::warp_id();
    if (row_idx >= p.rows) return;  // the whole warp; there is no barrier

    gpu::Row<VECS> row;
    gpu::load_row(row, p.x + row_idx * p.pitch, p.width);

    float sum_sq = 0.0f;
    gpu::for_each(row, [&](int, const auto &x) {
        GPU_UNROLL
        for (float v : x) sum_sq += v * v;
    });
    const float rrms = gpu::rsqrt_exact(gpu::warp_sum(sum_sq) / (float)p.width + p.eps);

    gpu::for_each(row, [&](int column, const auto &x) {
        constexpr int N = sizeof(x) / sizeof(float);
        float weight[N], y[N];
        gpu::load_floats(weight, p.weight + column);
        GPU_UNROLL
        for (int i = 0; i < N; ++i) y[i] = x[i] * rrms * weight[i];
        if (p.out_bf16) {
            gpu::store_bf16(p.out_bf16 + row_idx * p.out_pitch + column, y);
        } else {
            gpu::store_floats(p.out_f32 + row_idx * p.out_pitch + column, y);
        }
    });
}

GPU_KERNEL(rms_norm_small, rms_norm_params, RMS_NORM_THREADS, 1) { rms_norm<RMS_NORM_SMALL_WIDTH / 128>(p); }
GPU_KERNEL(rms_norm_wide, rms_norm_params, RMS_NORM_THREADS, 1) { rms_norm<RMS_NORM_WIDE_WIDTH / 128>(p); }
GPU_KERNEL(rms_norm_any, rms_norm_params, RMS_NORM_THREADS, 1) { rms_norm<0>(p); }
