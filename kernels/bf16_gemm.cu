// bf16_gemm: out[M, N] = x[M, K] . w[N, K]^T + bias, with fused epilogues    bf16 in, f32 accumulate
//
// Work    as nf4_gemm, with the weight read from smem by ldmatrix; for layers that stay unquantised.
// Bound   compute for image tokens; memory for CLIP's 77.
#include "bf16_gemm.h"
#include "gemm_tile.cuh"

static_assert(sizeof(gemm::SharedStorage<gemm::Bf16Weights<1>, BF16_GEMM_STAGES>) == BF16_GEMM_SMEM_BYTES, "the header tells the host how much to ask for");

GPU_KERNEL(bf16_gemm_sm80, bf16_gemm_params, GEMM_THREADS, 1) {
    const gemm_problem &q = p.problem[gpu::cta_z()];
    const int m0 = gpu::cta_x() * gemm::BLOCK_M, n0 = gpu::cta_y() * gemm::BLOCK_N;
    if (n0 >= q.n || m0 >= q.m) return;
    gemm::run_tile<gemm::Bf16Weights<1>, BF16_GEMM_STAGES>(q, gemm::TokenLoader<1>(q, m0), n0, m0);
}
