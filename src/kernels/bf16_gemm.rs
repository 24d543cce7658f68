//! Matrix products with bf16 weights; `kernels/bf16_gemm.cu` says how.

use half::bf16;

use super::gemm::{Entries, Epilogues, Gemm, Problem, Stored, TILE, Weight, check_aligned};
use super::{check_len, kernel, matrix_len, refuse};
use crate::Result;
use crate::abi;
use crate::device::{Capability, Footprint, View};

kernel!(
    /// 4 warps per 128 columns x 128 rows; bf16 results.
    BF16_GEMM_STORE, "bf16_gemm", bf16_gemm_store_sm80, abi::GEMM_THREADS, abi::BF16_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; f32 results and the residual stream.
    BF16_GEMM_RESIDUAL, "bf16_gemm", bf16_gemm_residual_sm80, abi::GEMM_THREADS, abi::BF16_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; sums with and products by another matrix.
    BF16_GEMM_COMBINE, "bf16_gemm", bf16_gemm_combine_sm80, abi::GEMM_THREADS, abi::BF16_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; q and k with norm and RoPE.
    BF16_GEMM_HEADS, "bf16_gemm", bf16_gemm_heads_sm80, abi::GEMM_THREADS, abi::BF16_GEMM_SMEM_BYTES
);

/// A bf16 weight `[n, k]` with rows `pitch` elements apart; any `k`, whose tail is filled with zeros on the way into shared
/// memory.
#[derive(Clone, Copy, Debug)]
pub struct Bf16Weight<'a> {
    /// `[n, pitch]`, 16-byte aligned.
    pub values: &'a View<bf16>,
    /// A multiple of 8, at least `k`.
    pub pitch: usize,
}

/// Products with [`Bf16Weight`]s.
pub type Bf16Gemm<'a> = Gemm<'a, Bf16Weight<'a>>;

impl Bf16Weight<'_> {
    pub(super) fn check(&self, kernel: &str, n: usize, k: usize) -> Result<()> {
        if self.pitch < k || self.pitch % 8 != 0 {
            return Err(refuse(
                kernel,
                format!("weight pitch {} is not a multiple of 8 from k = {k} on", self.pitch),
            ));
        }
        check_len(kernel, "weight", self.values, matrix_len(n, self.pitch, k))?;
        check_aligned(kernel, "weight", self.values.address())
    }
}

impl Weight for Bf16Weight<'_> {}

const NAME: &str = "bf16_gemm";

impl Stored for Bf16Weight<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn entries(&self, _: &Capability) -> Entries {
        Entries {
            tile: &TILE,
            kernels: [
                (Epilogues::Store, &BF16_GEMM_STORE),
                (Epilogues::Residual, &BF16_GEMM_RESIDUAL),
                (Epilogues::Combine, &BF16_GEMM_COMBINE),
                (Epilogues::Heads, &BF16_GEMM_HEADS),
            ],
        }
    }

    fn operand(
        &self,
        problem: &Problem<'_>,
        params: &mut abi::gemm_problem,
        footprint: &mut Footprint<'_>,
    ) -> Result<()> {
        self.check(NAME, problem.n, problem.k)?;
        params.w = footprint.reads_rows(self.values, problem.n, self.pitch, problem.k)?;
        params.w_pitch = self.pitch as i64;
        Ok(())
    }
}
