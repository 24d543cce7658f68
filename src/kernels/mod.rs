//! One file per kernel: what it computes, what it checks, how it is launched. The CUDA source of `src/kernels/X.rs` is
//! `kernels/X.cu`, its parameters are `kernels/X.h`.
//!
//! Every wrapper has the same shape: a struct of views and shapes (the problem), `check` (all that can be wrong with
//! them), `launch_config` (the grid, from the header's constants) and `launch` (which only enqueues).
//!
//! # Safety
//! A launch hands raw device addresses to a kernel. What makes the safe `launch` functions sound: every view is
//! checked against the extent that the kernel touches for the given shapes, views keep their memory alive, and memory
//! is freed only after the streams have drained.

pub mod attention;
pub mod bf16_gemm;
pub mod conv2d;
pub mod euler_step;
pub mod gemm;
pub mod nf4_gemm;
pub mod probe;

use crate::device::{Kernel, View};
use crate::{Error, Result};

/// Every entry point that is compiled for a GPU: `tests/resources.rs` keeps a line per entry and architecture.
pub fn all() -> &'static [&'static Kernel] {
    static ALL: &[&Kernel] = &[
        &attention::ATTENTION_D64,
        &attention::ATTENTION_D128,
        &attention::ATTENTION_D256,
        &attention::ATTENTION_D512,
        &bf16_gemm::BF16_GEMM,
        &conv2d::CONV2D,
        &euler_step::EULER_STEP,
        &nf4_gemm::NF4_GEMM,
        // `probe`: not part of any pipeline
        &probe::ECHO,
        &probe::INDEX,
        &probe::WARP,
        &probe::CP_ASYNC,
        &probe::PIPELINE,
        &probe::LDMATRIX,
        &probe::MMA_1X1,
        &probe::MMA_1X3,
        &probe::MMA_2X4,
        &probe::MMA_4X8,
        &probe::MATH,
    ];
    ALL
}

/// Defines the static [`Kernel`](crate::device::Kernel) of one entry point: module stem, entry, CTA size, shared memory.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $stem:literal, $entry:ident, $threads:expr, $smem_bytes:expr) => {
        $(#[$doc])*
        pub static $name: $crate::device::Kernel = {
            unsafe extern "C" {
                fn $entry(params: *const std::ffi::c_void);
            }
            $crate::device::Kernel {
                stem: $stem,
                name: stringify!($entry),
                image: include_bytes!(concat!(env!("OUT_DIR"), "/", $stem, ".fatbin")),
                emulated: $entry,
                threads: $threads,
                smem_bytes: $smem_bytes,
            }
        };
    };
}
pub(crate) use kernel;

/// `needed` elements must fit into the view called `what`.
pub(crate) fn check_len<T>(kernel: &str, what: &str, view: &View<T>, needed: usize) -> Result<()> {
    if view.len() < needed {
        return Err(Error::Input(format!("{kernel}: `{what}` has {} elements, needs {needed}", view.len())));
    }
    Ok(())
}

/// A shape that the kernel cannot take.
pub(crate) fn refuse(kernel: &str, why: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!("{kernel}: {why}"))
}

/// Shapes are `usize` here and `i32` in the kernels.
pub(crate) fn to_i32(kernel: &str, what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Unsupported(format!("{kernel}: {what} = {n} exceeds 2^31 - 1")))
}
