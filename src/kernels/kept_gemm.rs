//! Matrix products with weights in the few bits that their file has them in, dequantized in registers; `kernels/kept.cuh` says what they
//! mean, `kernels/operands/kept_tile.cuh` how they lie.

use super::gemm::{Entries, Epilogues, Gemm, Problem, Stored, TILE, Weight, check_aligned};
use super::kept::{Format, KeptLayout};
use super::{check_len, kernel, refuse};
use crate::Result;
use crate::abi;
use crate::device::{Capability, Footprint, Kernel, View};

/// The entry points of each format, in the order in which they are tried.
macro_rules! kept {
    ($($format:ident $stem:literal $smem:ident:
        $store:ident $store_entry:ident, $residual:ident $residual_entry:ident,
        $combine:ident $combine_entry:ident, $heads:ident $heads_entry:ident;)*) => {
        $(
            kernel!(#[doc = "4 warps per 128 columns x 128 rows; bf16 results."]
                $store, $stem, $store_entry, abi::GEMM_THREADS, abi::$smem);
            kernel!(#[doc = "The same tile; f32 results and the residual stream."]
                $residual, $stem, $residual_entry, abi::GEMM_THREADS, abi::$smem);
            kernel!(#[doc = "The same tile; sums with and products by another matrix."]
                $combine, $stem, $combine_entry, abi::GEMM_THREADS, abi::$smem);
            kernel!(#[doc = "The same tile; q and k with norm and RoPE."]
                $heads, $stem, $heads_entry, abi::GEMM_THREADS, abi::$smem);
        )*

        /// Those of one format.
        pub fn entries(format: Format) -> [(Epilogues, &'static Kernel); 4] {
            match format {
                $(Format::$format => [
                    (Epilogues::Store, &$store),
                    (Epilogues::Residual, &$residual),
                    (Epilogues::Combine, &$combine),
                    (Epilogues::Heads, &$heads),
                ],)*
            }
        }

        /// What the format's entry points are called in messages, and their file.
        fn name(format: Format) -> &'static str {
            match format {
                $(Format::$format => $stem,)*
            }
        }
    };
}

kept! {
    Q8_0 "q8_0_gemm" Q8_0_GEMM_SMEM_BYTES:
        Q8_0_STORE q8_0_gemm_store_sm80, Q8_0_RESIDUAL q8_0_gemm_residual_sm80,
        Q8_0_COMBINE q8_0_gemm_combine_sm80, Q8_0_HEADS q8_0_gemm_heads_sm80;
    F8E4M3 "f8_e4m3_gemm" F8_E4M3_GEMM_SMEM_BYTES:
        F8_E4M3_STORE f8_e4m3_gemm_store_sm80, F8_E4M3_RESIDUAL f8_e4m3_gemm_residual_sm80,
        F8_E4M3_COMBINE f8_e4m3_gemm_combine_sm80, F8_E4M3_HEADS f8_e4m3_gemm_heads_sm80;
    F8E5M2 "f8_e5m2_gemm" F8_E5M2_GEMM_SMEM_BYTES:
        F8_E5M2_STORE f8_e5m2_gemm_store_sm80, F8_E5M2_RESIDUAL f8_e5m2_gemm_residual_sm80,
        F8_E5M2_COMBINE f8_e5m2_gemm_combine_sm80, F8_E5M2_HEADS f8_e5m2_gemm_heads_sm80;
    Q6K "q6_k_gemm" Q6_K_GEMM_SMEM_BYTES:
        Q6_K_STORE q6_k_gemm_store_sm80, Q6_K_RESIDUAL q6_k_gemm_residual_sm80,
        Q6_K_COMBINE q6_k_gemm_combine_sm80, Q6_K_HEADS q6_k_gemm_heads_sm80;
    Q5K "q5_k_gemm" Q5_K_GEMM_SMEM_BYTES:
        Q5_K_STORE q5_k_gemm_store_sm80, Q5_K_RESIDUAL q5_k_gemm_residual_sm80,
        Q5_K_COMBINE q5_k_gemm_combine_sm80, Q5_K_HEADS q5_k_gemm_heads_sm80;
    Q5_0 "q5_0_gemm" Q5_0_GEMM_SMEM_BYTES:
        Q5_0_STORE q5_0_gemm_store_sm80, Q5_0_RESIDUAL q5_0_gemm_residual_sm80,
        Q5_0_COMBINE q5_0_gemm_combine_sm80, Q5_0_HEADS q5_0_gemm_heads_sm80;
    Q5_1 "q5_1_gemm" Q5_1_GEMM_SMEM_BYTES:
        Q5_1_STORE q5_1_gemm_store_sm80, Q5_1_RESIDUAL q5_1_gemm_residual_sm80,
        Q5_1_COMBINE q5_1_gemm_combine_sm80, Q5_1_HEADS q5_1_gemm_heads_sm80;
    Q4K "q4_k_gemm" Q4_K_GEMM_SMEM_BYTES:
        Q4_K_STORE q4_k_gemm_store_sm80, Q4_K_RESIDUAL q4_k_gemm_residual_sm80,
        Q4_K_COMBINE q4_k_gemm_combine_sm80, Q4_K_HEADS q4_k_gemm_heads_sm80;
    Q4_0 "q4_0_gemm" Q4_0_GEMM_SMEM_BYTES:
        Q4_0_STORE q4_0_gemm_store_sm80, Q4_0_RESIDUAL q4_0_gemm_residual_sm80,
        Q4_0_COMBINE q4_0_gemm_combine_sm80, Q4_0_HEADS q4_0_gemm_heads_sm80;
    Q4_1 "q4_1_gemm" Q4_1_GEMM_SMEM_BYTES:
        Q4_1_STORE q4_1_gemm_store_sm80, Q4_1_RESIDUAL q4_1_gemm_residual_sm80,
        Q4_1_COMBINE q4_1_gemm_combine_sm80, Q4_1_HEADS q4_1_gemm_heads_sm80;
    Q3K "q3_k_gemm" Q3_K_GEMM_SMEM_BYTES:
        Q3_K_STORE q3_k_gemm_store_sm80, Q3_K_RESIDUAL q3_k_gemm_residual_sm80,
        Q3_K_COMBINE q3_k_gemm_combine_sm80, Q3_K_HEADS q3_k_gemm_heads_sm80;
    Q2K "q2_k_gemm" Q2_K_GEMM_SMEM_BYTES:
        Q2_K_STORE q2_k_gemm_store_sm80, Q2_K_RESIDUAL q2_k_gemm_residual_sm80,
        Q2_K_COMBINE q2_k_gemm_combine_sm80, Q2_K_HEADS q2_k_gemm_heads_sm80;
}

/// A weight `[n, k]` in the bits of its file, in [`KeptLayout::Panels`]; `k` as [`Format::takes`] has it.
///
/// What is multiplied is what the file means in f32, rounded to bf16.
#[derive(Clone, Copy, Debug)]
pub struct KeptWeight<'a> {
    /// Of all weights in one launch.
    pub format: Format,
    /// [`Format::kept_len`] bytes, 16-byte aligned.
    pub bytes: &'a View<u8>,
}

/// Products with [`KeptWeight`]s.
pub type KeptGemm<'a> = Gemm<'a, KeptWeight<'a>>;

impl Weight for KeptWeight<'_> {}

impl Stored for KeptWeight<'_> {
    fn name(&self) -> &'static str {
        name(self.format)
    }

    fn entries(&self, _: &Capability) -> Entries {
        Entries { tile: &TILE, kernels: entries(self.format) }
    }

    fn operand(
        &self,
        problem: &Problem<'_>,
        params: &mut abi::gemm_problem,
        footprint: &mut Footprint<'_>,
    ) -> Result<()> {
        let (name, k) = (name(self.format), problem.k);
        if !self.format.takes(k) {
            let of = self.format.values().max(super::kept::WORD_K);
            return Err(refuse(name, format!("k = {k} is not a multiple of {of}")));
        }
        check_len(name, "weight", self.bytes, self.format.kept_len(KeptLayout::Panels, problem.n, k))?;
        check_aligned(name, "weight", self.bytes.address())?;
        params.w = footprint.reads(self.bytes)?;
        Ok(())
    }
}
