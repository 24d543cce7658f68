// nf4_half_gemm: nf4_gemm with fp16 accumulators within a quant block    fp16 in, f32 accumulate from block to block
//
// Work    nf4_gemm's tile, rings and epilogues; gemm_half.cuh multiplies.
// Layout  w as nf4_gemm has it; x fp16 with a scale per row (scale_rows.cu).
// Bound   compute; on GeForce 1,024 FLOP per clock and SM, twice what f32 accumulators get. Other GPUs gain nothing from fp16.
// Source  code book: QLoRA (arXiv:2305.14314).
#include "nf4_half_gemm.h"
#include "gemm_half.cuh"

static_assert(sizeof(gemm::SharedStorage<gemm::Nf4HalfWeights, NF4_HALF_GEMM_STAGES, gemm::HalfArithmetic>) == NF4_HALF_GEMM_SMEM_BYTES,
              "the header tells the host how much to ask for");

// Two CTAs on an SM cover each other's barriers.
#define NF4_HALF_GEMM(entry, epilogues)                                                                                         \
    GPU_KERNEL(entry, gemm_params, GEMM_THREADS, 2) {                                                                           \
        gemm::run_problem<gemm::Nf4HalfWeights, NF4_HALF_GEMM_STAGES, gemm::BLOCK_K, gemm::epilogues, gemm::HalfArithmetic>(p); \
    }
NF4_HALF_GEMM(nf4_half_gemm_store_sm80, Store)
NF4_HALF_GEMM(nf4_half_gemm_residual_sm80, Residual)
NF4_HALF_GEMM(nf4_half_gemm_combine_sm80, Combine)
NF4_HALF_GEMM(nf4_half_gemm_heads_sm80, Heads)
