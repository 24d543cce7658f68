// q5_0_gemm: out[M, N] = x[M, K] . w[N, K]^T + bias, with fused epilogues    bf16 in, f32 accumulate; w in GGUF's Q5_0
//
// Work    as nf4_gemm. What the codes mean, and how they lie: kept.cuh, operands/kept_tile.cuh.
#include "kept_gemm.h"
#include "gemm_tile.cuh"
#include "operands/kept_tile.cuh"

using Weights = gemm::KeptWeights<kept::Q5_0>;
static_assert(sizeof(gemm::SharedStorage<Weights, KEPT_GEMM_STAGES, gemm::Arithmetic<Weights>>) == Q5_0_GEMM_SMEM_BYTES,
              "the header tells the host how much to ask for");

#define Q5_0_GEMM(entry, epilogues) \
    GPU_KERNEL(entry, gemm_params, GEMM_THREADS, 2) { gemm::run_problem<Weights, KEPT_GEMM_STAGES, gemm::BLOCK_K, gemm::epilogues>(p); }
Q5_0_GEMM(q5_0_gemm_store_sm80, Store)
Q5_0_GEMM(q5_0_gemm_residual_sm80, Residual)
Q5_0_GEMM(q5_0_gemm_combine_sm80, Combine)
Q5_0_GEMM(q5_0_gemm_heads_sm80, Heads)
