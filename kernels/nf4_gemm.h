// nf4_gemm.h: contract of nf4_gemm.cu, whose params are gemm_params.
#ifndef SCHNELL_NF4_GEMM_H
#define SCHNELL_NF4_GEMM_H
#include "gemm.h"

#define NF4_GEMM_STAGES 2
#define NF4_GEMM_SMEM_BYTES 45600

#endif
