//! Text to image with FLUX.1-schnell on CUDA kernels of our own: planned memory, exact timings, the same bytes for the
//! same seed, and an emulator that runs the same kernels where there is no GPU.
//!
//! Start at [`pipeline`], which has an example. The way of a prompt: [`text::tokenizer`] makes ids, the networks of [`models`]
//! record what turns them into vectors, noise into latents and latents into pixels; the private module `program` makes a plan of
//! that, every byte's place included, before anything is loaded; all of it is launches of [`kernels`] on a [`device`].
//!
//! The modules, in the order to read them:

pub mod error;
pub mod files;
mod json;

pub mod config;
pub mod sampling;
pub mod text;
pub mod weights;

#[allow(unsafe_code)]
pub mod device;
#[allow(unsafe_code)]
pub mod kernels;
mod memory;

#[allow(unsafe_code)]
pub mod abi;

mod program;

pub mod models;

#[allow(unsafe_code)]
pub mod pipeline;

pub mod demo;
pub mod image;

#[cfg(feature = "check")]
pub mod check;

pub use error::{Error, Result};
