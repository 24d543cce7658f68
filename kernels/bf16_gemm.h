// bf16_gemm.h: contract of bf16_gemm.cu, whose params are gemm_params.
#ifndef SCHNELL_BF16_GEMM_H
#define SCHNELL_BF16_GEMM_H
#include "gemm.h"

#define BF16_GEMM_STAGES 2
#define BF16_GEMM_SMEM_BYTES 67104

#endif
