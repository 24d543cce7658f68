// to_rgb: out[pixel, c] = round(255 * clamp(x[pixel, c] / 2 + 1 / 2, 0, 1)), ties to even, NaN to 0     f32 NHWC in, u8 out
//
// Work    one thread per byte, so that a warp stores 32 neighbors; an image is small beside the VAE that made it.
// Bound   memory: 5 bytes per channel (and the padding channels' share of each sector).
// Source  diffusers' VaeImageProcessor: denormalize, then `(images * 255).round().astype("uint8")`.
#include "to_rgb.h"
#include "gpu.cuh"

GPU_KERNEL(to_rgb_u8, to_rgb_params, TO_RGB_THREADS, 1) {
    const int64_t i = (int64_t)gpu::cta_x() * TO_RGB_THREADS + gpu::thread_x();
    if (i >= 3 * p.pixels) return;
    const int64_t pixel = i / 3;
    const float half = gpu::add_exact(gpu::mul_exact(p.x[pixel * p.pitch + (i - 3 * pixel)], 0.5f), 0.5f);
    const float unit = half > 0.0f ? (half < 1.0f ? half : 1.0f) : 0.0f;  // NaN is not greater than zero
    p.out[i] = (uint8_t)gpu::round_even(gpu::mul_exact(unit, 255.0f));
}
