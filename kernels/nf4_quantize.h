// nf4_quantize.h: contract of nf4_quantize.cu.
#ifndef SCHNELL_NF4_QUANTIZE_H
#define SCHNELL_NF4_QUANTIZE_H
#include "abi.h"

#define NF4_QUANTIZE_THREADS 256
#define NF4_QUANTIZE_BLOCKS 8      // quant blocks per CTA: one per warp
#define NF4_QUANTIZE_SMEM_BYTES 0

typedef struct nf4_quantize_params {
    DEV(const float) src_f32;        // [rows, k], row pitch `pitch`; of the three sources one is not null
    DEV(const bf16_bits) src_bf16;   // the same
    DEV(const uint8_t) src_codes;    // [rows, k / 2], row pitch `pitch` / 2: codes that are there already
    DEV(const float) src_absmax;     // [rows, k / 64], with src_codes
    DEV(uint8_t) codes;              // two codes a byte, in the layout `fragments` says
    DEV(float) absmax;               // one per quant block, in the same layout
    DEV(uint32_t) nonfinite;         // += weights that are NaN or infinite, whose codes mean nothing
    int64_t rows;
    int64_t pitch;                   // elements
    int64_t k;                       // a multiple of 64
    int64_t first_row;               // destination row (feature) of source row 0
    int64_t padded_rows;             // fragments: destination rows in all, a multiple of 64
    int32_t fragments;               // 0: rows [n, k / 2] and [n, k / 64]; 1: the GEMM's fragments
    int32_t reserved;
} nf4_quantize_params;

#endif
