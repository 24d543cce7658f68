// bf16_gemm: out[M, N] = x[M, K] . w[N, K]^T + bias, with fused epilogues    bf16 in, f32 accumulate
//
// Work    as nf4_gemm, with the weight read from smem by ldmatrix; for layers that stay unquantized.
// Bound   compute for image tokens; memory for CLIP's 77.
#include "bf16_gemm.h"
#include "gemm_tile.cuh"
#include "operands/bf16_tile.cuh"

static_assert(sizeof(gemm::SharedStorage<gemm::Bf16Weights, BF16_GEMM_STAGES, gemm::Arithmetic<gemm::Bf16Weights>>) == BF16_GEMM_SMEM_BYTES,
              "the header tells the host how much to ask for");

#define BF16_GEMM(entry, epilogues) \
    GPU_KERNEL(entry, gemm_params, GEMM_THREADS, 1) { gemm::run_problem<gemm::Bf16Weights, BF16_GEMM_STAGES, 1, gemm::epilogues>(p); }
BF16_GEMM(bf16_gemm_store_sm80, Store)
BF16_GEMM(bf16_gemm_residual_sm80, Residual)
BF16_GEMM(bf16_gemm_combine_sm80, Combine)
BF16_GEMM(bf16_gemm_heads_sm80, Heads)
