// rms_norm.h: contract of rms_norm.cu.
#ifndef SCHNELL_RMS_NORM_H
#define SCHNELL_RMS_NORM_H
#include "abi.h"

#define RMS_NORM_THREADS 128
#define RMS_NORM_ROWS 4            // rows per CTA: one per warp
#define RMS_NORM_SMALL_WIDTH 1024  // widest row of the small entry
#define RMS_NORM_WIDE_WIDTH 4096   // widest row of the wide entry
#define RMS_NORM_SMEM_BYTES 0

typedef struct rms_norm_params {
    DEV(const float) x;        // [rows, width], row pitch `pitch`
    DEV(const float) weight;   // [width]
    DEV(bf16_bits) out_bf16;   // [rows, width], row pitch `out_pitch`; null: out_f32 is written
    DEV(float) out_f32;        // the same; null: out_bf16 is written
    int64_t pitch;             // elements
    int64_t out_pitch;         // elements
    int32_t rows;
    int32_t width;
    float eps;
    int32_t reserved;
} rms_norm_params;

#endif
