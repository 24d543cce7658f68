//! Matrix products with NF4 weights, dequantised in registers.

use super::gemm::{Problem, check_aligned, grid};
use super::{check_len, kernel, refuse, round_up, volume};
use crate::Result;
use crate::abi;
use crate::device::{Device, Footprint, StreamId, View};

kernel!(
    /// 4 warps per 128 columns x 128 rows.
    NF4_GEMM, "nf4_gemm", nf4_gemm_bf16_sm80, abi::GEMM_THREADS, abi::NF4_GEMM_SMEM_BYTES
);

/// An NF4 weight `[n, k]` in fragment order, as [`nf4_quantize`](super::nf4_quantize) writes it.
#[derive(Clone, Copy, Debug)]
pub struct Nf4Weight<'a> {
    /// Codes, two a byte: `[n rounded up to 64, k / 2]` bytes in fragment order.
    pub codes: &'a View<u8>,
    /// f32 `[k / 64, n rounded up to 64]`.
    pub absmax: &'a View<f32>,
}

/// `out = epilogue(x . dequant(w)^T + bias)` for one or two problems in one launch; `kernels/nf4_gemm.cu` says how.
///
/// - `k`: a multiple of 64
/// - numerics: weights are bf16(code * absmax), f32 accumulation, one rounding at the store
/// - source: ours
#[derive(Debug)]
pub struct Nf4Gemm<'a> {
    /// The products and their weights.
    pub problems: &'a [(Problem<'a>, Nf4Weight<'a>)],
}

impl Nf4Gemm<'_> {
    /// Enqueues the products.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for shapes that the kernel cannot take, [`crate::Error::Input`] for views that
    /// are too small or misaligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        const NAME: &str = "nf4_gemm";
        if self.problems.is_empty() || self.problems.len() > abi::GEMM_MAX_PROBLEMS as usize {
            return Err(refuse(NAME, format!("{} problems in one launch", self.problems.len())));
        }
        let mut footprint = Footprint::new(device);
        let mut params = abi::nf4_gemm_params::default();
        for ((problem, weight), out) in self.problems.iter().zip(&mut params.problem) {
            if problem.k % abi::GEMM_BLOCK_K as usize != 0 {
                return Err(refuse(NAME, format!("k = {} is no multiple of 64", problem.k)));
            }
            let n_padded = round_up(problem.n, 64);
            check_len(NAME, "codes", weight.codes, volume(&[n_padded, problem.k / 2]))?;
            check_len(NAME, "absmax", weight.absmax, volume(&[n_padded, problem.k / 64]))?;
            check_aligned(NAME, "codes", weight.codes.address())?;
            check_aligned(NAME, "absmax", weight.absmax.address())?;
            problem.check_tokens(NAME)?;
            *out = problem.params(NAME, &mut footprint)?;
            out.x = problem.tokens(&mut footprint)?;
            out.w = footprint.reads(weight.codes)?;
            out.absmax = footprint.reads(weight.absmax)?;
        }
        let grid = grid(self.problems.iter().map(|(problem, _)| problem));
        // SAFETY: params is this entry's generated type; `Problem::params` and the checks above cover every address
        // for its m, n and k, and the grid has one z per problem filled in.
        unsafe { device.launch(stream, &NF4_GEMM, grid, &params, &footprint) }
    }
}
