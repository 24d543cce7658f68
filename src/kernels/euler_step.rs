//! `latents += dt * velocity`, with a bf16 copy.

use half::bf16;

use super::{check_len, kernel};
use crate::Result;
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};

kernel!(
    /// One thread per element.
    EULER_STEP, "euler_step", euler_step_f32, abi::EULER_STEP_THREADS, abi::EULER_STEP_SMEM_BYTES
);

/// `latents += dt * velocity` over `latents.len()` elements, two roundings in f32; `latents_bf16` gets the result
/// rounded to bf16.
///
/// - `latents`, `velocity`: f32 `[n]`; `latents_bf16`: bf16 `[n]`
/// - `dt`: f32 `[steps]`, each the sigma of the next step minus its own; `step`: which, i32 `[1]`
/// - source: diffusers, `FlowMatchEulerDiscreteScheduler.step`
#[derive(Clone, Copy, Debug)]
pub struct EulerStep<'a> {
    /// Updated in place.
    pub latents: &'a View<f32>,
    /// The network's output.
    pub velocity: &'a View<f32>,
    /// True CFG: the negative prompt's output, and f32 `[1]`, the scale `s` in `negative + s (velocity - negative)`.
    pub negative: Option<(&'a View<f32>, &'a View<f32>)>,
    /// The next step's input.
    pub latents_bf16: &'a View<bf16>,
    /// Negative numbers, one per step.
    pub dt: &'a View<f32>,
    /// The step's number, below `dt.len()`.
    pub step: &'a View<i32>,
}

impl EulerStep<'_> {
    /// Enqueues the step.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when a view is too short.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let count = self.latents.len();
        check_len("euler_step", "velocity", self.velocity, count)?;
        check_len("euler_step", "latents_bf16", self.latents_bf16, count)?;
        check_len("euler_step", "dt", self.dt, 1)?;
        check_len("euler_step", "step", self.step, 1)?;
        if let Some((negative, scale)) = self.negative {
            check_len("euler_step", "negative", negative, count)?;
            check_len("euler_step", "true_cfg_scale", scale, 1)?;
        }
        let mut footprint = Footprint::new(device);
        let params = abi::euler_step_params {
            latents: footprint.updates(self.latents)?,
            velocity: footprint.reads(self.velocity)?,
            negative: footprint.reads_optional(self.negative.map(|(view, _)| view))?,
            latents_bf16: footprint.writes(self.latents_bf16)?,
            count: count as i64,
            dt: footprint.reads(self.dt)?,
            step: footprint.reads(self.step)?,
            true_cfg_scale: footprint.reads_optional(self.negative.map(|(_, scale)| scale))?,
        };
        let grid = [count.div_ceil(abi::EULER_STEP_THREADS as usize) as u32, 1, 1];
        // SAFETY: params is this entry's generated type; every view covers `count` elements, beyond which no
        // thread reaches, `dt` one per step and `step`, which only `next_step` writes, a step's number.
        unsafe { device.launch(stream, Config { kernel: &EULER_STEP, grid }, &params, &footprint) }
    }
}
