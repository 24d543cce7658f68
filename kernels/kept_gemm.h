// kept_gemm.h: contract of the products with weights that stay as their file has them (q8_0_gemm.cu and the others that end so).
//
// Their params are gemm_params: `w` has codes and scales, panel by panel (operands/kept_tile.cuh); `absmax` and `w_pitch` are not read.
#ifndef SCHNELL_KEPT_GEMM_H
#define SCHNELL_KEPT_GEMM_H
#include "gemm.h"

#define KEPT_GEMM_PANEL 64 // features of a panel
#define KEPT_GEMM_STAGES 2
#define Q8_0_GEMM_SMEM_BYTES 50176
#define F8_E4M3_GEMM_SMEM_BYTES 50176
#define F8_E5M2_GEMM_SMEM_BYTES 50176
#define Q6_K_GEMM_SMEM_BYTES 48160
#define Q5_K_GEMM_SMEM_BYTES 46624
#define Q5_0_GEMM_SMEM_BYTES 45600
#define Q5_1_GEMM_SMEM_BYTES 46624
#define Q4_K_GEMM_SMEM_BYTES 44576
#define Q4_0_GEMM_SMEM_BYTES 43552
#define Q4_1_GEMM_SMEM_BYTES 44576
#define Q3_K_GEMM_SMEM_BYTES 42016
#define Q2_K_GEMM_SMEM_BYTES 40480

#endif
