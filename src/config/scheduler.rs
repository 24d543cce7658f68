//! The sampler's config file.

use std::path::Path;

use serde::Deserialize;

use super::fields::{ClassName, Fields, read_json};
use crate::Result;

/// The sampler, diffusers' `FlowMatchEulerDiscreteScheduler`.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Static shift of the sigmas; 1 leaves them alone. Unused when `dynamic_shifting`.
    pub shift: f64,
    /// Whether the shift depends on the number of image tokens (FLUX.1-dev).
    pub dynamic_shifting: bool,
    /// Shift parameter at `base_tokens`.
    pub base_shift: f64,
    /// Shift parameter at `max_tokens`.
    pub max_shift: f64,
    /// Image tokens of the smallest training size (`base_image_seq_len`).
    pub base_tokens: usize,
    /// Image tokens of the largest training size (`max_image_seq_len`).
    pub max_tokens: usize,
    /// Factor from sigma to the network's time.
    pub train_timesteps: usize,
}

impl SchedulerConfig {
    /// Reads `scheduler/scheduler_config.json`. Defaults: diffusers
    /// `FlowMatchEulerDiscreteScheduler.__init__`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let raw: SchedulerFile = read_json(path)?;
        let file = Fields(path);
        file.class("_class_name", raw._class_name.as_ref(), "FlowMatchEulerDiscreteScheduler")?;
        for (field, set) in [
            ("invert_sigmas", raw.invert_sigmas),
            ("use_karras_sigmas", raw.use_karras_sigmas),
            ("use_exponential_sigmas", raw.use_exponential_sigmas),
            ("use_beta_sigmas", raw.use_beta_sigmas),
            ("use_flow_sigmas", raw.use_flow_sigmas),
            ("stochastic_sampling", raw.stochastic_sampling),
        ] {
            if set == Some(true) {
                return Err(file.unsupported(field, true, "only false is"));
            }
        }
        // diffusers tests its truth: 0 counts as absent.
        if let Some(terminal) = raw.shift_terminal.filter(|&terminal| terminal != 0.0) {
            return Err(file.unsupported("shift_terminal", terminal, "only null is"));
        }
        if let Some(kind) = raw.time_shift_type.filter(|kind| kind != "exponential") {
            return Err(file.unsupported("time_shift_type", kind, "only exponential is"));
        }
        let train_timesteps = file.size("num_train_timesteps", raw.num_train_timesteps, 1000)?;
        if train_timesteps != 1000 {
            return Err(file.unsupported("num_train_timesteps", train_timesteps, "only 1000 is"));
        }
        let config = SchedulerConfig {
            shift: raw.shift.unwrap_or(1.0),
            dynamic_shifting: raw.use_dynamic_shifting.unwrap_or(false),
            base_shift: raw.base_shift.unwrap_or(0.5),
            max_shift: raw.max_shift.unwrap_or(1.15),
            base_tokens: file.size("base_image_seq_len", raw.base_image_seq_len, 256)?,
            max_tokens: file.size("max_image_seq_len", raw.max_image_seq_len, 4096)?,
            train_timesteps,
        };
        file.factor("shift", config.shift)?;
        file.offset("base_shift", config.base_shift)?;
        file.offset("max_shift", config.max_shift)?;
        if config.dynamic_shifting && config.base_tokens >= config.max_tokens {
            return Err(file.wrong(format!(
                "dynamic shifting from {} at {} tokens to {} at {}: expected rising tokens",
                config.base_shift, config.base_tokens, config.max_shift, config.max_tokens
            )));
        }
        Ok(config)
    }
}

#[derive(Deserialize)]
struct SchedulerFile {
    _class_name: Option<ClassName>,
    num_train_timesteps: Option<u64>,
    shift: Option<f64>,
    use_dynamic_shifting: Option<bool>,
    base_shift: Option<f64>,
    max_shift: Option<f64>,
    base_image_seq_len: Option<u64>,
    max_image_seq_len: Option<u64>,
    invert_sigmas: Option<bool>,
    shift_terminal: Option<f64>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_flow_sigmas: Option<bool>,
    stochastic_sampling: Option<bool>,
    time_shift_type: Option<String>,
}
