// gemm_sm90.h: what Hopper's GEMMs have beside gemm.h: twice the tokens in a tile, and boxes of the operands that TMA fetches.
#ifndef SCHNELL_GEMM_SM90_H
#define SCHNELL_GEMM_SM90_H
#include "gemm.h"

#define GEMM_SM90_BLOCK_M 256 // tokens per CTA: what an m64n256k16 has
#define GEMM_SM90_THREADS 384 // a warpgroup that fetches, two of 64 features each that multiply

typedef struct gemm_sm90_params {
    tensor_map x[GEMM_MAX_PROBLEMS];  // boxes of GEMM_BLOCK_K elements of GEMM_SM90_BLOCK_M rows, with swizzle
    tensor_map t[GEMM_MAX_PROBLEMS];  // the same of low_rank's t, where there is one
    gemm_params gemm;
    uint32_t unused[2];               // up to a multiple of the maps' alignment
} gemm_sm90_params;

#endif
