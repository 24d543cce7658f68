// nf4_gemm.h: contract of nf4_gemm.cu.
#ifndef SCHNELL_NF4_GEMM_H
#define SCHNELL_NF4_GEMM_H
#include "gemm.h"

#define NF4_GEMM_STAGES 2
#define NF4_GEMM_SMEM_BYTES 45056

typedef struct nf4_gemm_params {
    gemm_problem problem[GEMM_MAX_PROBLEMS]; // blockIdx.z picks one
} nf4_gemm_params;

#endif
