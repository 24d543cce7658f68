// kept_gemm.h: contract of the products with weights that stay as their file has them (q8_0_gemm.cu and the others that end so).
//
// Their params are gemm_params: `w` has codes and scales, panel by panel (operands/kept_tile.cuh); `absmax` and `w_pitch` are not read.
#ifndef SCHNELL_KEPT_GEMM_H
#define SCHNELL_KEPT_GEMM_H
#include "gemm.h"

#define KEPT_GEMM_PANEL 64 // features of a panel
#define KEPT_GEMM_STAGES 2
// Codes of 8 bits leave no room for two CTAs on an SM of 100 KB, whatever the stages; a third one then hides what the other CTA would.
#define KEPT_GEMM_STAGES_8 3
#define Q8_0_GEMM_SMEM_BYTES 76896
#define F8_E4M3_GEMM_SMEM_BYTES 76896
#define F8_E5M2_GEMM_SMEM_BYTES 76896
#define Q6_K_GEMM_SMEM_BYTES 48176
#define Q5_K_GEMM_SMEM_BYTES 46640
#define Q5_0_GEMM_SMEM_BYTES 45648
#define Q5_1_GEMM_SMEM_BYTES 46640
#define Q4_K_GEMM_SMEM_BYTES 44592
#define Q4_0_GEMM_SMEM_BYTES 43600
#define Q4_1_GEMM_SMEM_BYTES 44592
#define Q3_K_GEMM_SMEM_BYTES 42032
#define Q2_K_GEMM_SMEM_BYTES 40496

#endif
