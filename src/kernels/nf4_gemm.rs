//! Matrix products with NF4 weights, dequantized in registers; `kernels/nf4_gemm.cu` says how.

use super::gemm::{Entries, Epilogues, Gemm, Problem, Stored, TILE, Weight, check_aligned};
use super::{check_len, kernel, nf4_gemm_sm90, refuse, round_up, volume};
use crate::Result;
use crate::abi;
use crate::device::{Capability, Footprint, View};

kernel!(
    /// 4 warps per 128 columns x 128 rows; bf16 results.
    NF4_GEMM_STORE, "nf4_gemm", nf4_gemm_store_sm80, abi::GEMM_THREADS, abi::NF4_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; f32 results and the residual stream.
    NF4_GEMM_RESIDUAL, "nf4_gemm", nf4_gemm_residual_sm80, abi::GEMM_THREADS, abi::NF4_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; sums with and products by another matrix.
    NF4_GEMM_COMBINE, "nf4_gemm", nf4_gemm_combine_sm80, abi::GEMM_THREADS, abi::NF4_GEMM_SMEM_BYTES
);
kernel!(
    /// The same tile; q and k with norm and RoPE.
    NF4_GEMM_HEADS, "nf4_gemm", nf4_gemm_heads_sm80, abi::GEMM_THREADS, abi::NF4_GEMM_SMEM_BYTES
);

/// An NF4 weight `[n, k]` in fragment order, as [`nf4_quantize`](super::nf4_quantize) writes it; `k` is a multiple of 64.
///
/// What is multiplied is bf16(code * absmax).
#[derive(Clone, Copy, Debug)]
pub struct Nf4Weight<'a> {
    /// Codes, two a byte: `[n rounded up to 64, k / 2]` bytes in fragment order.
    pub codes: &'a View<u8>,
    /// f32 `[k / 64, n rounded up to 64]`.
    pub absmax: &'a View<f32>,
}

/// Products with [`Nf4Weight`]s.
pub type Nf4Gemm<'a> = Gemm<'a, Nf4Weight<'a>>;

impl Nf4Weight<'_> {
    pub(super) fn check(&self, kernel: &str, problem: &Problem<'_>) -> Result<()> {
        let (n, k) = (round_up(problem.n, 64), problem.k);
        if k % abi::GEMM_BLOCK_K as usize != 0 {
            return Err(refuse(kernel, format!("k = {k} is not a multiple of 64")));
        }
        check_len(kernel, "codes", self.codes, volume(&[n, k / 2]))?;
        check_len(kernel, "absmax", self.absmax, volume(&[n, k / 64]))?;
        check_aligned(kernel, "codes", self.codes.address())?;
        check_aligned(kernel, "absmax", self.absmax.address())
    }

    pub(super) fn place(&self, params: &mut abi::gemm_problem, footprint: &mut Footprint<'_>) -> Result<()> {
        params.w = footprint.reads(self.codes)?;
        params.absmax = footprint.reads(self.absmax)?;
        Ok(())
    }
}

impl Weight for Nf4Weight<'_> {}

/// Those of a machine: Hopper has its own.
pub(super) fn entries(capability: &Capability) -> Entries {
    match capability.arch {
        90 => nf4_gemm_sm90::entries(),
        _ => Entries {
            tile: &TILE,
            kernels: [
                (Epilogues::Store, &NF4_GEMM_STORE),
                (Epilogues::Residual, &NF4_GEMM_RESIDUAL),
                (Epilogues::Combine, &NF4_GEMM_COMBINE),
                (Epilogues::Heads, &NF4_GEMM_HEADS),
            ],
        },
    }
}

const NAME: &str = "nf4_gemm";

impl Stored for Nf4Weight<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn entries(&self, capability: &Capability) -> Entries {
        entries(capability)
    }

    fn operand(
        &self,
        problem: &Problem<'_>,
        params: &mut abi::gemm_problem,
        footprint: &mut Footprint<'_>,
    ) -> Result<()> {
        self.check(NAME, problem)?;
        self.place(params, footprint)
    }
}
