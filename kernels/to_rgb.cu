// to_rgb: unit = clamp(x[pixel, c] / 2 + 1 / 2, 0, 1), NaN to 0; out = round(255 * unit), ties to even, or unit itself
//
// f32 NHWC in; u8 or f32 out, NHWC or (planar) NCHW.
//
// Work    one thread per number, in the order of the output, so that a warp stores 32 neighbors; an image is small beside the
//         VAE that made it.
// Bound   memory: 5 or 8 bytes per channel (and the padding channels' share of each sector). Planar reads each sector
//         of the input three times, from L2 but for the first.
// Source  diffusers' VaeImageProcessor: denormalize, then `(images * 255).round().astype("uint8")`.
#include "to_rgb.h"
#include "gpu.cuh"

enum class Order { PIXELS, COLORS };

GPU_FN void store_unit(uint8_t *to, float unit) { *to = (uint8_t)gpu::round_even(gpu::mul_exact(unit, 255.0f)); }
GPU_FN void store_unit(float *to, float unit) { *to = unit; }

template <typename T, Order ORDER> GPU_FN void to_rgb(const to_rgb_params &p) {
    const int64_t i = (int64_t)gpu::cta_x() * TO_RGB_THREADS + gpu::thread_x();
    if (i >= 3 * p.pixels) return;
    const int64_t pixel = ORDER == Order::PIXELS ? i / 3 : i % p.pixels;
    const int64_t color = ORDER == Order::PIXELS ? i - 3 * pixel : i / p.pixels;
    const float half = gpu::add_exact(gpu::mul_exact(p.x[pixel * p.pitch + color], 0.5f), 0.5f);
    const float unit = half > 0.0f ? (half < 1.0f ? half : 1.0f) : 0.0f;  // NaN is not greater than zero
    store_unit(reinterpret_cast<T *>(p.out) + i, unit);
}

GPU_KERNEL(to_rgb_u8, to_rgb_params, TO_RGB_THREADS, 1) { to_rgb<uint8_t, Order::PIXELS>(p); }
GPU_KERNEL(to_rgb_u8_planar, to_rgb_params, TO_RGB_THREADS, 1) { to_rgb<uint8_t, Order::COLORS>(p); }
GPU_KERNEL(to_rgb_f32, to_rgb_params, TO_RGB_THREADS, 1) { to_rgb<float, Order::PIXELS>(p); }
GPU_KERNEL(to_rgb_f32_planar, to_rgb_params, TO_RGB_THREADS, 1) { to_rgb<float, Order::COLORS>(p); }
