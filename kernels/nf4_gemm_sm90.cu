// nf4_gemm_sm90: nf4_gemm on Hopper's own tensor cores; same operands, same epilogues, the same weights to the bit.
//
// Work    gemm_tile_sm90.cuh: 128 features x 256 tokens, one CTA an SM.
// Layout  operands/nf4_tile.cuh: fragment order is that of wgmma's A in registers, too: warp w of a warpgroup has m16 tile w of 64
//         features.
// Bound   compute: the tensor cores, if weights are dequantized beside them: 50 of the 128 slots that a warp has per k16.
// Source  code book: QLoRA (arXiv:2305.14314). Dequantized value bf16(code * absmax): bitsandbytes.
#include "nf4_gemm_sm90.h"
#include "gemm_tile_sm90.cuh"
#include "operands/nf4_group.cuh"

static_assert(sizeof(gemm::GroupStorage<gemm::Nf4Group, NF4_GEMM_SM90_STAGES>) == NF4_GEMM_SM90_SMEM_BYTES,
              "the header tells the host how much to ask for");
static_assert(sizeof(gemm::XBox) + sizeof(gemm::Nf4Group::Stage) == NF4_GEMM_SM90_STEP_BYTES, "the header tells the cycle model");

#define NF4_GEMM_SM90(entry, epilogues)                                                   \
    GPU_KERNEL(entry, gemm_sm90_params, GEMM_SM90_THREADS, 1) {                           \
        gemm::run_problem_sm90<gemm::Nf4Group, NF4_GEMM_SM90_STAGES, gemm::epilogues>(p); \
    }
NF4_GEMM_SM90(nf4_gemm_store_sm90, Store)
NF4_GEMM_SM90(nf4_gemm_residual_sm90, Residual)
NF4_GEMM_SM90(nf4_gemm_combine_sm90, Combine)
NF4_GEMM_SM90(nf4_gemm_heads_sm90, Heads)
