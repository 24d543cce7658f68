// nf4_gemm: out[M, N] = x[M, K] . dequant(w)[N, K]^T + bias, with fused epilogues    bf16 in, f32 accumulate
//
// Work    one CTA per 128 features x 128 tokens (gemm_tile.cuh draws it); two problems may share a launch, so that
//         FLUX's img and txt fill the GPU together; no tile spans both.
// Layout  w in fragment order, 16 bytes per lane and m16 x k64 (nf4_quantize.cu); absmax [k / 64, n].
// Bound   compute: 0.56 bytes per weight and 2 M flop; above M = 300 tokens no GPU of today is memory-bound here.
// Source  code book: QLoRA (arXiv:2305.14314). Dequantized value bf16(code * absmax): bitsandbytes.
#include "nf4_gemm.h"
#include "gemm_tile.cuh"
#include "operands/nf4_tile.cuh"

static_assert(sizeof(gemm::SharedStorage<gemm::Nf4Weights, NF4_GEMM_STAGES, gemm::Arithmetic<gemm::Nf4Weights>>) == NF4_GEMM_SMEM_BYTES,
              "the header tells the host how much to ask for");

// Two CTAs on an SM cover each other's barriers; 45 KB of smem and 255 registers allow exactly that on sm_86. K is said to be a multiple
// of 8: of BLOCK_K, which it is, saves instructions that cost nothing here, and sm_90 is slower by the model.
#define NF4_GEMM(entry, epilogues) \
    GPU_KERNEL(entry, gemm_params, GEMM_THREADS, 2) { gemm::run_problem<gemm::Nf4Weights, NF4_GEMM_STAGES, 8, gemm::epilogues>(p); }
NF4_GEMM(nf4_gemm_store_sm80, Store)
NF4_GEMM(nf4_gemm_residual_sm80, Residual)
NF4_GEMM(nf4_gemm_combine_sm80, Combine)
NF4_GEMM(nf4_gemm_heads_sm80, Heads)
