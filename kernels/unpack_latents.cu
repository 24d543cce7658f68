// unpack_latents: out[y, x, c] = tokens[y / 2 * width / 2 + x / 2, c * 4 + y % 2 * 2 + x % 2] / scaling + shift
//                 f32 in, bf16 NHWC out
//
// Work    one thread per pair of channels of a pixel; latents are a few hundred KiB, so launch time is all there is.
// Layout  a token is a 2 x 2 patch, channel-major: c * 4 + dy * 2 + dx. The VAE wants pixels with their channels padded.
// Source  FLUX's packing; the affine of its AutoencoderKL, divided and then added as diffusers does it.
#include "unpack_latents.h"
#include "gpu.cuh"

GPU_KERNEL(unpack_latents_bf16, unpack_latents_params, UNPACK_LATENTS_THREADS, 1) {
    const int64_t pair = (int64_t)gpu::cta_x() * UNPACK_LATENTS_THREADS + gpu::thread_x();
    if (pair >= p.num_pairs) return;
    const int c = (int)(pair % (p.pitch / 2)) * 2;
    const int64_t pixel = pair / (p.pitch / 2);
    const int x = (int)(pixel % p.width);
    const int64_t y = pixel / p.width;
    const float *const patch = p.tokens + (y / 2 * (p.width / 2) + x / 2) * (4 * p.channels) + y % 2 * 2 + x % 2;
    // IEEE division (nvcc's default), and nothing fused with the addition: the reference's bits.
    const float lo = c < p.channels ? gpu::add_exact(patch[4 * c] / p.scaling, p.shift) : 0.0f;
    const float hi = c + 1 < p.channels ? gpu::add_exact(patch[4 * c + 4] / p.scaling, p.shift) : 0.0f;
    reinterpret_cast<uint32_t *>(p.out)[pair] = gpu::pack_bf16x2(lo, hi);
}
