// gemv.h: contract of gemv.cu.
#ifndef SCHNELL_GEMV_H
#define SCHNELL_GEMV_H
#include "abi.h"

#define GEMV_THREADS 256
#define GEMV_ROWS 32            // weight rows per CTA: 4 per warp
#define GEMV_MAX_M 8            // rows of x that one launch can take
#define GEMV_SMEM_BYTES_M1 7168
#define GEMV_SMEM_BYTES_M2 11264
#define GEMV_SMEM_BYTES_M4 19456
#define GEMV_SMEM_BYTES_M8 35840

#define GEMV_NONE 0             // activations
#define GEMV_SILU 1

typedef struct gemv_params {
    DEV(const float) x;              // [m, k], row pitch `pitch`
    DEV(const bf16_bits) weight;     // bf16 entries: [n, k], row pitch `weight_pitch`
    DEV(const uint8_t) codes;        // nf4 entries: [n, k / 2], the even weight in the high nibble; kept ones: operands/kept_rows.cuh
    DEV(const float) absmax;         // nf4 entries: [n, k / 64]
    DEV(const float) bias;           // [n] or null
    DEV(const float) add;            // [m, n], row pitch `add_pitch` (0: one row for all), or null; may be `out`
    DEV(float) out;                  // [m, n], row pitch `out_pitch`
    DEV(const float) low_t;          // [m, low_rank]: what a LoRA's first half gave, or null; 16-byte aligned
    DEV(const bf16_bits) low_up;     // [n, low_rank]: its second half; low_t . low_up^T is added to the sums; 16-byte aligned
    int64_t pitch;                   // elements, as all pitches
    int64_t weight_pitch;
    int64_t add_pitch;
    int64_t out_pitch;
    int32_t m;
    int32_t n;
    int32_t k;
    int32_t act_in;                  // GEMV_NONE, GEMV_SILU
    int32_t act_out;                 // the same
    int32_t x_vectors;               // rows of x may be read as float4
    int32_t weight_vectors;          // rows of the weight may be read 16 bytes at a time
    int32_t low_rank;                // a multiple of 8
} gemv_params;

#endif
