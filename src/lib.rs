//! Text to image with FLUX.1-schnell on CUDA kernels of our own: planned memory, exact timings, the same bytes for the
//! same seed, and an emulator that runs the same kernels where there is no GPU.
//!
//! ```
//! use schnell::{Model, Pipeline, Request, Shape, gib};
//! # fn main() -> schnell::Result<()> {
//! # let folder = std::env::temp_dir().join(format!("schnell-example-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).unwrap();
//! let model = Model::demo()?; // or Model::open("FLUX.1-schnell")?
//! let mut pipeline = Pipeline::builder(&model).budget(gib(6.0)).warm_up([Shape::square(64)]).load()?;
//! let image = pipeline.generate(&Request::new("a red circle").seed(42))?;
//! image.save(folder.join("circle.png"))?;
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok(()) }
//! ```
//!
//! The way of a prompt, for readers of the source: tokenizers (`text`) make ids; the networks (`models`) record what turns them
//! into vectors, noise into latents and latents into pixels; `program` makes a plan of that, every byte's place included, before
//! anything is loaded; all of it is launches of `kernels` on a `device`. `pipeline` is what callers see of that.
//!
//! The feature `check` makes the modules public, for this crate's own tests; it promises nothing.

#![cfg_attr(
    not(feature = "check"),
    allow(
        dead_code,
        unused_imports,
        reason = "what only the tests and gpu-check use, which build with that feature"
    )
)]

// Only the names at the end are for dependents. The project's own tests and `gpu-check` look into every module.
pub mod image;
mod json;
mod memory;
mod program;

// The command writes by the same rules as the library.
#[cfg(any(feature = "cli", feature = "check"))]
#[doc(hidden)]
pub mod files;
#[cfg(not(any(feature = "cli", feature = "check")))]
mod files;

#[cfg(feature = "check")]
#[allow(unsafe_code)]
pub mod abi;
// What `schnell doctor` runs and says.
#[cfg(any(feature = "cli", feature = "check"))]
#[cfg_attr(not(feature = "check"), doc(hidden))]
pub mod check;
#[cfg(feature = "check")]
pub mod config;
#[cfg(all(feature = "demo", feature = "check"))]
pub mod demo;
#[cfg(feature = "check")]
#[allow(unsafe_code)]
pub mod device;
#[cfg(any(feature = "cli", feature = "check"))]
#[doc(hidden)]
pub mod doctor;
#[cfg(feature = "check")]
pub mod error;
#[cfg(all(feature = "fetch", feature = "check"))]
pub mod fetch;
#[cfg(feature = "check")]
#[allow(unsafe_code)]
pub mod kernels;
#[cfg(feature = "check")]
pub mod models;
#[cfg(feature = "check")]
#[allow(unsafe_code)]
pub mod pipeline;
#[cfg(feature = "check")]
pub mod sampling;
#[cfg(feature = "check")]
pub mod text;
#[cfg(feature = "check")]
pub mod weights;

#[cfg(not(feature = "check"))]
#[allow(unsafe_code)]
mod abi;
#[cfg(not(feature = "check"))]
mod config;
#[cfg(all(feature = "demo", not(feature = "check")))]
mod demo;
#[cfg(not(feature = "check"))]
#[allow(unsafe_code)]
mod device;
#[cfg(not(feature = "check"))]
mod error;
#[cfg(all(feature = "fetch", not(feature = "check")))]
mod fetch;
#[cfg(not(feature = "check"))]
#[allow(unsafe_code)]
mod kernels;
#[cfg(not(feature = "check"))]
mod models;
#[cfg(not(feature = "check"))]
#[allow(unsafe_code)]
mod pipeline;
#[cfg(not(feature = "check"))]
mod sampling;
#[cfg(not(feature = "check"))]
mod text;
#[cfg(not(feature = "check"))]
mod weights;

pub use config::PipelineConfig;
#[cfg(feature = "emulator")]
pub use device::EmulatorOptions;
pub use device::{Capability, Device, DeviceBuffer};
pub use error::{Error, Result};
#[cfg(feature = "fetch")]
pub use fetch::{Fetch, FetchProgress};
pub use image::ImageFormat;
pub use models::layers::{Precision, Quantize};
pub use pipeline::timing::{StageTime, Timings};
pub use pipeline::{
    Card, Dump, DumpValues, InspectedPart, Inspection, Interval, Late, Model, ModelFolder, Noise, NoiseFile,
    OnProgress, Output, OutputBuffer, Pipeline, PipelineBuilder, Pixels, Plan, Prediction, Preview, Progress,
    Quantizer, Receipt, Recipe, Region, Request, Shape, StoredType, Trace, Traffic, Use, Work, gib,
    human_bytes,
};
pub use sampling::{NoiseKind, TimeRounding};
pub use weights::lora::{Lora, LoraFile};
pub use weights::quantize::QuantizedLinear;

/// The examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
