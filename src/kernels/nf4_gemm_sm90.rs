//! [`nf4_gemm`](super::nf4_gemm) on Hopper's own tensor cores; `kernels/nf4_gemm_sm90.cu` says how.

use super::gemm::{Entries, Epilogues, TILE_SM90};
use super::kernel;
use crate::abi;

kernel!(
    /// 3 warpgroups per 128 columns x 256 rows; bf16 results.
    NF4_GEMM_STORE, "nf4_gemm_sm90", nf4_gemm_store_sm90, abi::GEMM_SM90_THREADS, abi::NF4_GEMM_SM90_SMEM_BYTES
);
kernel!(
    /// The same tile; f32 results and the residual stream.
    NF4_GEMM_RESIDUAL, "nf4_gemm_sm90", nf4_gemm_residual_sm90, abi::GEMM_SM90_THREADS, abi::NF4_GEMM_SM90_SMEM_BYTES
);
kernel!(
    /// The same tile; sums with and products by another matrix.
    NF4_GEMM_COMBINE, "nf4_gemm_sm90", nf4_gemm_combine_sm90, abi::GEMM_SM90_THREADS, abi::NF4_GEMM_SM90_SMEM_BYTES
);
kernel!(
    /// The same tile; q and k with norm and RoPE.
    NF4_GEMM_HEADS, "nf4_gemm_sm90", nf4_gemm_heads_sm90, abi::GEMM_SM90_THREADS, abi::NF4_GEMM_SM90_SMEM_BYTES
);

pub(super) fn entries() -> Entries {
    Entries {
        tile: &TILE_SM90,
        kernels: [
            (Epilogues::Store, &NF4_GEMM_STORE),
            (Epilogues::Residual, &NF4_GEMM_RESIDUAL),
            (Epilogues::Combine, &NF4_GEMM_COMBINE),
            (Epilogues::Heads, &NF4_GEMM_HEADS),
        ],
    }
}
