// nf4_gemm_sm90.h: contract of nf4_gemm_sm90.cu, whose params are gemm_sm90_params.
#ifndef SCHNELL_NF4_GEMM_SM90_H
#define SCHNELL_NF4_GEMM_SM90_H
#include "gemm_sm90.h"

#define NF4_GEMM_SM90_STAGES 4
#define NF4_GEMM_SM90_SMEM_BYTES 154624
// Of x and of the weights that a CTA fetches for 64 of k.
#define NF4_GEMM_SM90_STEP_BYTES 37376

#endif
