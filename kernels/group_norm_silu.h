// group_norm_silu.h: contract of group_norm_silu.cu.
#ifndef SCHNELL_GROUP_NORM_SILU_H
#define SCHNELL_GROUP_NORM_SILU_H
#include "abi.h"

#define GROUP_NORM_SILU_THREADS 256
#define GROUP_NORM_SILU_CHUNK 64          // pixels per CTA, and per partial statistic
#define GROUP_NORM_SILU_MAX_CHANNELS 2048
#define GROUP_NORM_SILU_SMEM_BYTES 16384        // partial statistics
#define GROUP_NORM_SILU_FINISH_SMEM_BYTES 32    // combine
#define GROUP_NORM_SILU_APPLY_SMEM_BYTES 0

typedef struct group_norm_silu_params {
    DEV(const bf16_bits) x;        // [pixels, channels], pixel pitch `pitch`
    DEV(const float) weight;       // [channels]
    DEV(const float) bias;         // [channels]
    DEV(bf16_bits) out;            // [pixels, channels], pixel pitch `out_pitch`; may be x
    DEV(float) partials;           // [groups, num_chunks, 2]: mean and sum of squared deviations
    DEV(float) norm;               // [2, channels]: scale and shift of each channel
    int64_t pixels;
    int64_t pitch;                 // elements
    int64_t out_pitch;             // elements
    int32_t num_chunks;            // ceil(pixels / CHUNK)
    int32_t channels;
    int32_t groups;                // divides channels
    int32_t silu;                  // 1: SiLU after the norm
    float eps;
    int32_t reserved;
} group_norm_silu_params;

#endif
