//! Text to image with FLUX.1-schnell on CUDA kernels of our own: planned memory, exact timings, the same bytes for the
//! same seed, and an emulator that runs the same kernels where there is no GPU.
//!
//! In the order to read them:

#[allow(unsafe_code)]
pub mod abi;
pub mod arena;
#[cfg(feature = "gpu-check")]
pub mod check;
pub mod config;
pub mod demo;
#[allow(unsafe_code)]
pub mod device;
pub mod error;
pub mod flux;
pub mod image;
#[allow(unsafe_code)]
pub mod kernels;
pub mod nn;
pub mod pipeline;
pub mod plan;
pub mod sampling;
pub mod text;
pub mod timing;
pub mod vae;
pub mod weights;

pub use error::{Error, Result};
