//! Text to image with FLUX.1-schnell on CUDA kernels of our own: planned memory, exact timings, the same bytes for the
//! same seed, and an emulator that runs the same kernels where there is no GPU.
//!
//! In the order to read them:

pub mod error;
pub mod config;
pub mod weights;
pub mod sampling;
#[allow(unsafe_code)]
pub mod device;
#[allow(unsafe_code)]
pub mod kernels;
#[allow(unsafe_code)]
pub mod abi;
pub mod text;
pub mod image;

pub use error::{Error, Result};
