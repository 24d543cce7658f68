// head_norm_rope.h: contract of head_norm_rope.cu.
#ifndef SCHNELL_HEAD_NORM_ROPE_H
#define SCHNELL_HEAD_NORM_ROPE_H
#include "abi.h"

#define HEAD_NORM_ROPE_THREADS 256
#define HEAD_NORM_ROPE_HEADS 8          // heads per CTA: one per warp
#define HEAD_NORM_ROPE_MAX_HEAD_DIM 256
#define HEAD_NORM_ROPE_SMEM_BYTES 0

typedef struct head_norm_rope_params {
    DEV(bf16_bits) x;            // [rows, heads, head_dim], row pitch `pitch`, updated in place
    DEV(const float) weight;     // [head_dim]
    DEV(const float) cos;        // [rope_row + rows, head_dim / 2]
    DEV(const float) sin;        // the same
    int64_t pitch;               // elements, even
    int64_t rope_row;            // the tables' row of row 0
    int32_t rows;
    int32_t heads;
    int32_t head_dim;            // even
    float eps;
} head_norm_rope_params;

#endif
