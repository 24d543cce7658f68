// unpack_latents.h: contract of unpack_latents.cu.
#ifndef SCHNELL_UNPACK_LATENTS_H
#define SCHNELL_UNPACK_LATENTS_H
#include "abi.h"

#define UNPACK_LATENTS_THREADS 256
#define UNPACK_LATENTS_SMEM_BYTES 0

typedef struct unpack_latents_params {
    DEV(const float) tokens;   // [height / 2 * width / 2, 4 * channels]
    DEV(bf16_bits) out;        // [height, width, pitch], channels from `channels` on zero
    int64_t num_pairs;         // height * width * pitch / 2: one thread each
    int32_t width;             // even, in latent pixels
    int32_t channels;
    int32_t pitch;             // even
    float scaling;
    float shift;
    int32_t reserved;
} unpack_latents_params;

#endif
