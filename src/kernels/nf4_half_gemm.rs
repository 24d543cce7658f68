//! Matrix products with NF4 weights and fp16 tokens, accumulated in fp16 within a quant block; `kernels/nf4_half_gemm.cu` says how.

use super::gemm::{Entries, Epilogues, Gemm, Problem, Stored, TILE, Weight};
use super::nf4_gemm::Nf4Weight;
use super::{check_len, kernel};
use crate::Result;
use crate::abi;
use crate::device::{Capability, Footprint, View};

kernel!(
    /// 4 warps per 128 columns x 128 rows; bf16 results.
    NF4_HALF_GEMM_STORE, "nf4_half_gemm", nf4_half_gemm_store_sm80, abi::GEMM_THREADS, abi::NF4_HALF_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; f32 results and the residual stream.
    NF4_HALF_GEMM_RESIDUAL, "nf4_half_gemm", nf4_half_gemm_residual_sm80, abi::GEMM_THREADS,
    abi::NF4_HALF_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; sums with and products by another matrix.
    NF4_HALF_GEMM_COMBINE, "nf4_half_gemm", nf4_half_gemm_combine_sm80, abi::GEMM_THREADS,
    abi::NF4_HALF_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; q and k with norm and RoPE.
    NF4_HALF_GEMM_HEADS, "nf4_half_gemm", nf4_half_gemm_heads_sm80, abi::GEMM_THREADS, abi::NF4_HALF_GEMM_SMEM_BYTES
);

/// An [`Nf4Weight`] for tokens that [`ScaleRows`](super::scale_rows::ScaleRows) has made fp16: `x` of the problem holds these, and its
/// rows count `x_scale` times as much.
///
/// What is multiplied is fp16(code) * absmax. The 64 products of a quant block are summed in fp16, rounded after every 16; the
/// blocks' sums are multiplied by absmax and added in f32.
#[derive(Clone, Copy, Debug)]
pub struct Nf4HalfWeight<'a> {
    /// As it is stored.
    pub weight: Nf4Weight<'a>,
    /// f32 `[m]`.
    pub x_scale: &'a View<f32>,
}

/// Products with [`Nf4HalfWeight`]s.
pub type Nf4HalfGemm<'a> = Gemm<'a, Nf4HalfWeight<'a>>;

impl Weight for Nf4HalfWeight<'_> {}

const NAME: &str = "nf4_half_gemm";

impl Stored for Nf4HalfWeight<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn entries(&self, _: &Capability) -> Entries {
        Entries {
            tile: &TILE,
            kernels: [
                (Epilogues::Store, &NF4_HALF_GEMM_STORE),
                (Epilogues::Residual, &NF4_HALF_GEMM_RESIDUAL),
                (Epilogues::Combine, &NF4_HALF_GEMM_COMBINE),
                (Epilogues::Heads, &NF4_HALF_GEMM_HEADS),
            ],
        }
    }

    fn operand(
        &self,
        problem: &Problem<'_>,
        params: &mut abi::gemm_problem,
        footprint: &mut Footprint<'_>,
    ) -> Result<()> {
        self.weight.check(NAME, problem)?;
        self.weight.place(params, footprint)?;
        check_len(NAME, "x_scale", self.x_scale, problem.m)?;
        params.x_scale = footprint.reads_rows(self.x_scale, 1, problem.m, problem.m)?;
        Ok(())
    }
}
