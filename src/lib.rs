//! Text to image with FLUX.1-schnell on CUDA kernels of our own: planned memory, exact timings, the same bytes for the
//! same seed, and an emulator that runs the same kernels where there is no GPU.
//!
//! Start at [`pipeline`], which has an example. The way of a prompt: [`text::tokenizer`] makes ids, [`text`] makes
//! vectors of them, [`flux`] turns noise into latents step by step, [`vae`] makes pixels. All of it is launches of
//! [`kernels`] on a [`device`], in memory that [`plan`] laid out before anything was loaded.
//!
//! The modules, in the order to read them:

pub mod error;

pub mod config;
pub mod sampling;
pub mod weights;

pub mod arena;
#[allow(unsafe_code)]
pub mod device;
#[allow(unsafe_code)]
pub mod kernels;

#[allow(unsafe_code)]
pub mod abi;

pub mod nn;
pub mod text;

pub mod flux;
pub mod vae;

pub mod pipeline;
pub mod plan;
pub mod timing;

pub mod demo;
pub mod image;

#[cfg(feature = "check")]
pub mod check;

pub use error::{Error, Result};
