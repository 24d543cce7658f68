// nf4_half_gemm.h: contract of nf4_half_gemm.cu, whose params are gemm_params.
#ifndef SCHNELL_NF4_HALF_GEMM_H
#define SCHNELL_NF4_HALF_GEMM_H
#include "gemm.h"

#define NF4_HALF_GEMM_STAGES 2
#define NF4_HALF_GEMM_SMEM_BYTES 44064

#endif
