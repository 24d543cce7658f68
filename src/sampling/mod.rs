//! The numbers around the networks: noise levels, initial noise, the order of latents in tokens, and the tables
//! of time and position. All on the host, all equal to diffusers' and PyTorch's to the bit where that is
//! possible, because a seed and a prompt are expected to give the same picture everywhere.
//!
//! Reading order: [`mod@sigmas`], [`mod@noise`], [`latents`], [`tables`].
//!
//! ```
//! use schnell::sampling::{NoiseKind, noise, schnell_sigmas};
//! assert_eq!(schnell_sigmas(4), [1.0, 0.75, 0.5, 0.25, 0.0]);
//! let latents = noise(NoiseKind::F32, 0, &[1, 16, 64, 64]);
//! assert_eq!(latents.len(), 65536);
//! ```
//!
//! The step itself, `x += (sigma_next - sigma) * velocity`, is a kernel and not here.

pub mod latents;
pub mod noise;
pub mod sigmas;
pub mod tables;

pub use latents::{pack, unpack};
pub use noise::{Generator, NoiseKind, noise};
pub use sigmas::{schnell_sigmas, sigmas};
pub use tables::{TimeRounding, guidance_embedding, rope_tables, t5_bucket, timestep_embedding};
