// bf16_gemm.h: contract of bf16_gemm.cu.
#ifndef SCHNELL_BF16_GEMM_H
#define SCHNELL_BF16_GEMM_H
#include "gemm.h"

#define BF16_GEMM_STAGES 2
#define BF16_GEMM_SMEM_BYTES 66576

typedef struct bf16_gemm_params {
    gemm_problem problem[GEMM_MAX_PROBLEMS]; // blockIdx.z picks one
} bf16_gemm_params;

#endif
