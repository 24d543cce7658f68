// f8_e5m2_gemm: out[M, N] = x[M, K] . w[N, K]^T + bias, with fused epilogues    bf16 in, f32 accumulate; w in fp8 with 5 bits of exponent
//
// Work    as nf4_gemm. What the codes mean, and how they lie: kept.cuh, operands/kept_tile.cuh.
#include "kept_gemm.h"
#include "gemm_tile.cuh"
#include "operands/kept_tile.cuh"

using Weights = gemm::KeptWeights<kept::F8_E5M2>;
static_assert(sizeof(gemm::SharedStorage<Weights, KEPT_GEMM_STAGES, gemm::Arithmetic<Weights>>) == F8_E5M2_GEMM_SMEM_BYTES,
              "the header tells the host how much to ask for");

#define F8_E5M2_GEMM(entry, epilogues) \
    GPU_KERNEL(entry, gemm_params, GEMM_THREADS, 2) { gemm::run_problem<Weights, KEPT_GEMM_STAGES, gemm::BLOCK_K, gemm::epilogues>(p); }
F8_E5M2_GEMM(f8_e5m2_gemm_store_sm80, Store)
F8_E5M2_GEMM(f8_e5m2_gemm_residual_sm80, Residual)
F8_E5M2_GEMM(f8_e5m2_gemm_combine_sm80, Combine)
F8_E5M2_GEMM(f8_e5m2_gemm_heads_sm80, Heads)
