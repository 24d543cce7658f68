// layer_norm_mod.h: contract of layer_norm_mod.cu.
#ifndef SCHNELL_LAYER_NORM_MOD_H
#define SCHNELL_LAYER_NORM_MOD_H
#include "abi.h"

#define LAYER_NORM_MOD_THREADS 128
#define LAYER_NORM_MOD_ROWS 4            // rows per CTA: one per warp
#define LAYER_NORM_MOD_SMALL_WIDTH 1024  // widest row of the small entry
#define LAYER_NORM_MOD_WIDE_WIDTH 3072   // widest row of the wide entry
#define LAYER_NORM_MOD_SMEM_BYTES 0

typedef struct layer_norm_mod_params {
    DEV(const float) x;          // [rows, width], row pitch `pitch`
    DEV(const float) scale;      // [width]
    DEV(const float) shift;      // [width]
    DEV(const float) rest_scale; // [width]: of rows from `rest_row` on
    DEV(const float) rest_shift; // [width]: the same
    DEV(bf16_bits) out_bf16;     // [rows, width], row pitch `out_pitch`; null: out_f32 is written
    DEV(float) out_f32;          // the same; null: out_bf16 is written
    int64_t pitch;               // elements
    int64_t out_pitch;           // elements
    int32_t rows;
    int32_t width;
    int32_t rest_row;
    float scale_offset;          // 1: modulation by (1 + scale), 0: affine weight
    float eps;
} layer_norm_mod_params;

#endif
