//! Noise levels: sigma falls from 1 (noise) to 0 (picture), one value per step and a final 0.
//!
//! Source: diffusers `FluxPipeline.__call__` and `FlowMatchEulerDiscreteScheduler.set_timesteps`, down to which
//! operation is in f64 and which in f32.

use crate::config::SchedulerConfig;
use crate::{Error, Result};

/// The `steps + 1` sigmas of FLUX.1-schnell: evenly spaced, not shifted.
pub fn schnell_sigmas(steps: usize) -> Vec<f32> {
    let mut sigmas = even_sigmas(steps);
    sigmas.push(0.0);
    sigmas
}

/// The `steps + 1` sigmas that `config` gives for a picture of `image_tokens` tokens.
///
/// # Errors
/// [`Error::Input`] when `steps` is 0.
pub fn sigmas(config: &SchedulerConfig, steps: usize, image_tokens: usize) -> Result<Vec<f32>> {
    if steps == 0 {
        return Err(Error::Input("0 steps: expected at least 1".to_string()));
    }
    let mut sigmas = even_sigmas(steps);
    if config.dynamic_shifting {
        let strength = dynamic_mu(config, image_tokens).exp() as f32;
        for sigma in &mut sigmas {
            *sigma = strength / (strength + (1.0 / *sigma - 1.0));
        }
    } else {
        // Shift 1 multiplies and divides by one: exact.
        let (shift, excess) = (config.shift as f32, (config.shift - 1.0) as f32);
        for sigma in &mut sigmas {
            *sigma = shift * *sigma / (1.0 + excess * *sigma);
        }
    }
    sigmas.push(0.0);
    Ok(sigmas)
}

/// The logarithm of the dynamic shift: a line through (base_tokens, base_shift) and (max_tokens, max_shift), not
/// clamped beyond them.
pub fn dynamic_mu(config: &SchedulerConfig, image_tokens: usize) -> f64 {
    let slope =
        (config.max_shift - config.base_shift) / (config.max_tokens as f64 - config.base_tokens as f64);
    let offset = config.base_shift - slope * config.base_tokens as f64;
    image_tokens as f64 * slope + offset
}

/// `numpy.linspace(1, 1 / steps, steps)`, computed in f64 as numpy does, then rounded to f32.
fn even_sigmas(steps: usize) -> Vec<f32> {
    if steps <= 1 {
        return vec![1.0; steps];
    }
    let stop = 1.0 / steps as f64;
    let step = (stop - 1.0) / (steps - 1) as f64;
    let mut sigmas: Vec<f32> = (0..steps).map(|k| (k as f64 * step + 1.0) as f32).collect();
    // numpy sets the end point instead of computing it.
    sigmas[steps - 1] = stop as f32;
    sigmas
}
