//! One file per kernel: what it computes, what it checks, how it is launched. The CUDA source of `src/kernels/X.rs` is
//! `kernels/X.cu`, its parameters are `kernels/X.h`.
//!
//! Every wrapper has the same shape: a struct of views and shapes (the problem); where a kernel has several entry points,
//! `select`, which chooses one and its grid, a [`Config`](crate::device::Config), from the problem and the machine's
//! [`Capability`](crate::device::Capability) alone; and `launch`, which checks all that can be wrong and enqueues.
//!
//! # Safety
//! A launch hands raw device addresses to a kernel. What makes the safe `launch` functions sound: every view is
//! checked against the extent that the kernel touches for the given shapes, views keep their memory alive, and memory
//! is freed only after the streams have drained.

pub mod attention;
pub mod bf16_gemm;
pub mod conv2d;
pub mod count_nonfinite;
pub mod euler_step;
pub mod gemm;
pub mod gemv;
pub mod group_norm_silu;
pub mod head_norm_rope;
pub mod kept;
pub mod kept_gemm;
pub mod kept_gemv;
pub mod layer_norm_mod;
pub mod next_step;
pub mod nf4_gemm;
pub mod nf4_gemm_sm90;
pub mod nf4_half_gemm;
pub mod nf4_quantize;
#[cfg(any(feature = "cli", feature = "check"))]
pub mod probe;
#[cfg(any(feature = "cli", feature = "check"))]
pub mod probe_sm90;
pub mod rms_norm;
pub mod scale_rows;
pub mod select_row;
pub mod to_rgb;
pub mod unpack_latents;

use half::bf16;

use crate::device::{Footprint, Kernel, View};
use crate::{Error, Result};

#[cfg(any(feature = "cli", feature = "check"))]
/// Those that a pipeline may launch: not the probes, of which some have code for Hopper alone.
pub fn of_pipelines() -> impl Iterator<Item = &'static Kernel> {
    all().into_iter().filter(|kernel| !kernel.stem.starts_with("probe"))
}

#[cfg(any(feature = "cli", feature = "check"))]
/// All but those of kept weights.
static ALONE: &[&Kernel] = &[
    &attention::ATTENTION_D64,
    &attention::ATTENTION_D64_BIAS,
    &attention::ATTENTION_D128,
    &attention::ATTENTION_D128_BIAS,
    &attention::ATTENTION_D256,
    &attention::ATTENTION_D256_BIAS,
    &attention::ATTENTION_D512,
    &attention::ATTENTION_D512_BIAS,
    &bf16_gemm::BF16_GEMM_STORE,
    &bf16_gemm::BF16_GEMM_RESIDUAL,
    &bf16_gemm::BF16_GEMM_COMBINE,
    &bf16_gemm::BF16_GEMM_HEADS,
    &conv2d::CONV2D,
    &conv2d::CONV2D_ENLARGE,
    &conv2d::CONV2D_NARROW,
    &count_nonfinite::COUNT_NONFINITE,
    &euler_step::EULER_STEP,
    &gemv::GEMV_BF16_M1,
    &gemv::GEMV_BF16_M2,
    &gemv::GEMV_BF16_M4,
    &gemv::GEMV_BF16_M8,
    &gemv::GEMV_NF4_M1,
    &gemv::GEMV_NF4_M2,
    &gemv::GEMV_NF4_M4,
    &gemv::GEMV_NF4_M8,
    &group_norm_silu::GROUP_NORM_PARTIALS_X8,
    &group_norm_silu::GROUP_NORM_PARTIALS_X1,
    &group_norm_silu::GROUP_NORM_FINISH,
    &group_norm_silu::GROUP_NORM_APPLY_X8,
    &group_norm_silu::GROUP_NORM_APPLY_X1,
    &head_norm_rope::HEAD_NORM_ROPE,
    &layer_norm_mod::LAYER_NORM_MOD_SMALL,
    &layer_norm_mod::LAYER_NORM_MOD_WIDE,
    &layer_norm_mod::LAYER_NORM_MOD_ANY,
    &next_step::NEXT_STEP,
    &nf4_gemm::NF4_GEMM_STORE,
    &nf4_gemm::NF4_GEMM_RESIDUAL,
    &nf4_gemm::NF4_GEMM_COMBINE,
    &nf4_gemm::NF4_GEMM_HEADS,
    &nf4_gemm_sm90::NF4_GEMM_STORE,
    &nf4_gemm_sm90::NF4_GEMM_RESIDUAL,
    &nf4_gemm_sm90::NF4_GEMM_COMBINE,
    &nf4_gemm_sm90::NF4_GEMM_HEADS,
    &nf4_half_gemm::NF4_HALF_GEMM_STORE,
    &nf4_half_gemm::NF4_HALF_GEMM_RESIDUAL,
    &nf4_half_gemm::NF4_HALF_GEMM_COMBINE,
    &nf4_half_gemm::NF4_HALF_GEMM_HEADS,
    &nf4_quantize::NF4_QUANTIZE,
    &rms_norm::RMS_NORM_SMALL,
    &rms_norm::RMS_NORM_WIDE,
    &rms_norm::RMS_NORM_ANY,
    &scale_rows::SCALE_ROWS_WIDE,
    &scale_rows::SCALE_ROWS_ANY,
    &select_row::SELECT_ROW,
    &to_rgb::TO_RGB,
    &to_rgb::TO_RGB_PLANAR,
    &to_rgb::TO_RGB_F32,
    &to_rgb::TO_RGB_F32_PLANAR,
    &unpack_latents::UNPACK_LATENTS,
    // `probe`: not part of any pipeline
    &probe::ECHO,
    &probe::INDEX,
    &probe::COUNT,
    &probe::WARP,
    &probe::CP_ASYNC,
    &probe::PIPELINE,
    &probe::LDMATRIX,
    &probe::MMA_1X1,
    &probe::MMA_1X3,
    &probe::MMA_2X4,
    &probe::MMA_4X8,
    &probe::MMA_HALF_1X8,
    &probe::MMA_HALF_2X3,
    &probe::MATH,
    &probe_sm90::BARRIERS,
    &probe_sm90::COPIES,
    &probe_sm90::SS_N64,
    &probe_sm90::SS_N128,
    &probe_sm90::SS_N256,
    &probe_sm90::RS_N64,
    &probe_sm90::RS_N128,
    &probe_sm90::RS_N256,
    &probe_sm90::STORED,
];

#[cfg(any(feature = "cli", feature = "check"))]
/// Every entry point that is compiled for a GPU: `tests/resources.rs` keeps a line per entry and architecture.
pub fn all() -> Vec<&'static Kernel> {
    let of_gemm = |format| kept_gemm::entries(format).map(|(_, kernel)| kernel);
    let kept = kept::Format::ALL.into_iter();
    let kept = kept.flat_map(|format| of_gemm(format).into_iter().chain(kept_gemv::entries(format)));
    ALONE.iter().copied().chain(kept).collect()
}

/// Defines the static [`Kernel`](crate::device::Kernel) of one entry point: module stem, entry, CTA size, shared memory.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $stem:literal, $entry:ident, $threads:expr, $smem_bytes:expr) => {
        $(#[$doc])*
        pub static $name: $crate::device::Kernel = {
            #[cfg(feature = "emulator")]
            unsafe extern "C" {
                fn $entry(params: *const std::ffi::c_void);
            }
            $crate::device::Kernel {
                stem: $stem,
                name: stringify!($entry),
                #[cfg(feature = "cuda")]
                image: include_bytes!(concat!(env!("OUT_DIR"), "/", $stem, ".fatbin")),
                #[cfg(feature = "emulator")]
                emulated: $entry,
                threads: $threads,
                smem_bytes: $smem_bytes,
            }
        };
    };
}
pub(crate) use kernel;

/// `needed` elements must fit into the view called `what`; [`TOO_MANY`] fit into none.
pub(crate) fn check_len<T>(kernel: &str, what: &str, view: &View<T>, needed: usize) -> Result<()> {
    if needed == TOO_MANY {
        let len = view.len();
        return Err(Error::Internal(format!(
            "{kernel}: `{what}` has {len} elements, needs more than can be counted"
        )));
    }
    if view.len() < needed {
        return Err(Error::Internal(format!(
            "{kernel}: `{what}` has {} elements, needs {needed}",
            view.len()
        )));
    }
    Ok(())
}

/// A number of elements that is beyond `usize`, or as good as that: no memory has so many.
pub(crate) const TOO_MANY: usize = usize::MAX;

/// Elements up to the last one that indices reach, each from 0 to below its count, at its stride; none without indices.
/// [`TOO_MANY`] where that cannot be counted: shapes come from the caller, and a wrapped product would pass as small.
pub(crate) fn extent(dimensions: &[(usize, usize)]) -> usize {
    dimensions
        .iter()
        .try_fold(1usize, |last, &(count, stride)| {
            // `None` ends the fold: with a count of 0 there is nothing, whatever the others are.
            let steps = count.checked_sub(1)?;
            Some(last.saturating_add(steps.saturating_mul(stride)))
        })
        .unwrap_or(0)
}

/// A product of counts; [`TOO_MANY`] where that is beyond `usize`.
pub(crate) fn volume(counts: &[usize]) -> usize {
    if counts.contains(&0) { 0 } else { counts.iter().fold(1, |volume: usize, &n| volume.saturating_mul(n)) }
}

/// `n` rounded up to a multiple of `of`, or [`TOO_MANY`].
pub(crate) fn round_up(n: usize, of: usize) -> usize {
    n.checked_next_multiple_of(of).unwrap_or(TOO_MANY)
}

/// A shape that the kernel cannot take.
pub(crate) fn refuse(kernel: &str, why: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!("{kernel}: {why}"))
}

/// Shapes are `usize` here and `i32` in the kernels.
pub(crate) fn to_i32(kernel: &str, what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Unsupported(format!("{kernel}: {what} = {n} exceeds 2^31 - 1")))
}

/// Elements that a row-major `[rows, width]` matrix with row pitch `pitch` spans; no rows, no elements.
pub(crate) fn matrix_len(rows: usize, pitch: usize, width: usize) -> usize {
    extent(&[(rows, pitch), (width, 1)])
}

/// A row must not reach into the next one.
pub(crate) fn check_pitch(kernel: &str, what: &str, pitch: usize, width: usize) -> Result<()> {
    if pitch < width {
        return Err(Error::Internal(format!(
            "{kernel}: `{what}` = {pitch} is less than the row width {width}"
        )));
    }
    Ok(())
}

/// Whether every address is a multiple of `bytes`.
pub(crate) fn all_aligned(addresses: &[u64], bytes: u64) -> bool {
    addresses.iter().all(|address| address % bytes == 0)
}

/// Where a kernel leaves its f32 results.
#[derive(Clone, Copy, Debug)]
pub enum FloatOut<'a> {
    /// Rounded to bf16, to nearest even.
    Bf16(&'a View<bf16>),
    /// As they are.
    F32(&'a View<f32>),
}

impl FloatOut<'_> {
    fn check_len(&self, kernel: &str, needed: usize) -> Result<()> {
        match self {
            FloatOut::Bf16(view) => check_len(kernel, "out", view, needed),
            FloatOut::F32(view) => check_len(kernel, "out", view, needed),
        }
    }

    /// The addresses of the bf16 and of the f32 output; the one that is not meant is null.
    fn addresses(
        &self,
        footprint: &mut Footprint<'_>,
        rows: usize,
        pitch: usize,
        width: usize,
    ) -> Result<(u64, u64)> {
        Ok(match self {
            FloatOut::Bf16(view) => (footprint.writes_rows(view, rows, pitch, width)?, 0),
            FloatOut::F32(view) => (0, footprint.writes_rows(view, rows, pitch, width)?),
        })
    }

    /// Whether rows of whole float4 (or of as many bf16) can be stored at this pitch.
    fn takes_vectors(&self, pitch: usize) -> bool {
        pitch.is_multiple_of(4)
            && match self {
                FloatOut::Bf16(view) => all_aligned(&[view.address()], 8),
                FloatOut::F32(view) => all_aligned(&[view.address()], 16),
            }
    }
}
