//! Matrix products with bf16 weights.

use half::bf16;

use super::gemm::{Problem, check_aligned, grid};
use super::{check_len, kernel, matrix_len, refuse};
use crate::Result;
use crate::abi;
use crate::device::{Device, Footprint, StreamId, View};

kernel!(
    /// 4 warps per 128 columns x 128 rows.
    BF16_GEMM, "bf16_gemm", bf16_gemm_sm80, abi::GEMM_THREADS, abi::BF16_GEMM_SMEM_BYTES
);

/// A bf16 weight `[n, k]` with rows `pitch` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Bf16Weight<'a> {
    /// `[n, pitch]`, 16-byte aligned.
    pub values: &'a View<bf16>,
    /// A multiple of 8, at least `k`.
    pub pitch: usize,
}

impl Bf16Weight<'_> {
    pub(super) fn check(&self, kernel: &str, n: usize, k: usize) -> Result<()> {
        if self.pitch < k || self.pitch % 8 != 0 {
            return Err(refuse(
                kernel,
                format!("weight pitch {} is no multiple of 8 from k = {k} on", self.pitch),
            ));
        }
        check_len(kernel, "weight", self.values, matrix_len(n, self.pitch, k))?;
        check_aligned(kernel, "weight", self.values.address())
    }
}

/// `out = epilogue(x . w^T + bias)` for one or two problems in one launch; `kernels/bf16_gemm.cu` says how.
///
/// - any `k`: tails are filled with zeros on the way into shared memory
/// - numerics: f32 accumulation, one rounding at the store
/// - source: ours
#[derive(Debug)]
pub struct Bf16Gemm<'a> {
    /// The products and their weights.
    pub problems: &'a [(Problem<'a>, Bf16Weight<'a>)],
}

impl Bf16Gemm<'_> {
    /// Enqueues the products.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for shapes that the kernel cannot take, [`crate::Error::Input`] for views that
    /// are too small or misaligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        const NAME: &str = "bf16_gemm";
        if self.problems.is_empty() || self.problems.len() > abi::GEMM_MAX_PROBLEMS as usize {
            return Err(refuse(NAME, format!("{} problems in one launch", self.problems.len())));
        }
        let mut footprint = Footprint::new(device);
        let mut params = abi::bf16_gemm_params::default();
        for ((problem, weight), out) in self.problems.iter().zip(&mut params.problem) {
            problem.check_tokens(NAME)?;
            *out = problem.params(NAME, &mut footprint)?;
            out.x = problem.tokens(&mut footprint)?;
            weight.check(NAME, problem.n, problem.k)?;
            out.w = footprint.reads_rows(weight.values, problem.n, weight.pitch, problem.k)?;
            out.w_pitch = weight.pitch as i64;
        }
        let grid = grid(self.problems.iter().map(|(problem, _)| problem));
        // SAFETY: params is this entry's generated type; `Problem::params` and `Bf16Weight::check` cover every address
        // for its m, n and k, and the grid has one z per problem filled in.
        unsafe { device.launch(stream, &BF16_GEMM, grid, &params, &footprint) }
    }
}
