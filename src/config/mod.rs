//! What a model folder says about itself: the config files of a diffusers-layout FLUX.1 folder, read, completed
//! with the defaults of diffusers and transformers, and checked against each other.
//!
//! [`PipelineConfig::open`] reads the six JSON files and touches no weights, so it serves planning as well as
//! loading. [`PipelineConfig::schnell`] is FLUX.1-schnell itself, for planning with no files at hand.
//!
//! ```
//! let config = schnell::config::PipelineConfig::schnell();
//! assert_eq!(config.flux.width(), 3072);
//! assert_eq!(config.vae.pixels_per_latent(), 8);
//! ```
//!
//! Two kinds of refusal: [`Error::Weights`] for a folder that contradicts itself (its owner mends it),
//! [`Error::Unsupported`] for a sound model that this crate has no code for. Which widths the kernels take is
//! not decided here but in the plan.
//!
//! Here stand the whole and how its parts agree; each part is a file beside this one, read with `fields.rs`, which
//! names the field at fault.
//!
//! Left out: tokenizer files ([`crate::text::tokenizer`]) and tensors ([`crate::weights`]).

mod clip;
mod fields;
mod flux;
mod index;
mod infer;
mod layout;
mod scheduler;
mod t5;
mod vae;

use std::path::Path;

pub use clip::{ClipActivation, ClipConfig, ClipPooling};
pub use flux::FluxConfig;
pub(crate) use layout::{file_parts, refusal};
pub use scheduler::SchedulerConfig;
pub use t5::T5Config;
pub use vae::VaeConfig;

use crate::weights::adapters::Adapters;
use crate::weights::{InFormats, InNf4};
use crate::{Error, Result};
use index::check_model_index;
use t5::t5_length;

/// Everything that the config files of a FLUX.1 folder decide.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(not(feature = "check"), non_exhaustive)]
pub struct PipelineConfig {
    /// `transformer/config.json`
    #[doc(hidden)]
    pub flux: FluxConfig,
    /// `text_encoder_2/config.json`
    #[doc(hidden)]
    pub t5: T5Config,
    /// `text_encoder/config.json`
    #[doc(hidden)]
    pub clip: ClipConfig,
    /// `vae/config.json`
    #[doc(hidden)]
    pub vae: VaeConfig,
    /// `scheduler/scheduler_config.json`
    #[doc(hidden)]
    pub scheduler: SchedulerConfig,
    /// The denoising steps to take unless told otherwise: 4 for schnell, 28 for models with a guidance embedder, as dev.
    pub steps: usize,
    /// The T5 length to use unless told otherwise, padding included: 256 for schnell, 512 for models with a guidance
    /// embedder, less where `tokenizer_2/tokenizer_config.json` allows less (`model_max_length`).
    pub t5_length: usize,
    /// What the weight files hold in NF4, as far as they have been looked at: it decides how the rest is kept.
    #[doc(hidden)]
    pub in_nf4: InNf4,
    /// What they hold in other formats of few bits, likewise.
    #[doc(hidden)]
    pub in_formats: InFormats,
    /// Which matrices have room for LoRAs.
    #[doc(hidden)]
    pub adapters: Adapters,
}

impl PipelineConfig {
    /// Reads the config files of the diffusers-layout folder `dir`. No weights need be present.
    ///
    /// # Errors
    /// [`Error::Io`] when a file is missing or unreadable, [`Error::Weights`] when one is malformed or they
    /// contradict each other, [`Error::Unsupported`] when they describe a model or option with no code here.
    #[doc(hidden)]
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        check_model_index(dir)?;
        let flux = FluxConfig::read(&dir.join("transformer/config.json"))?;
        let (steps, t5_tokens) = flux.usual();
        let config = PipelineConfig {
            flux,
            clip: ClipConfig::read(&dir.join("text_encoder/config.json"))?,
            t5: T5Config::read(&dir.join("text_encoder_2/config.json"))?,
            vae: VaeConfig::read(&dir.join("vae/config.json"))?,
            scheduler: SchedulerConfig::read(&dir.join("scheduler/scheduler_config.json"))?,
            steps,
            t5_length: t5_length(&dir.join("tokenizer_2/tokenizer_config.json"), t5_tokens)?,
            in_nf4: InNf4::default(),
            in_formats: InFormats::default(),
            adapters: Adapters::default(),
        };
        config.check_agreement(&dir.join("transformer/config.json"))?;
        Ok(config)
    }

    /// The same with room for `loras`, as [`Model::with_loras`](crate::Model::with_loras) makes it: for a plan without weights.
    #[must_use]
    pub fn with_loras(self, loras: &[(crate::Lora, f32)]) -> PipelineConfig {
        let adapters = self.adapters.or(Adapters::of(loras));
        PipelineConfig { adapters, ..self }
    }

    /// FLUX.1-schnell.
    pub fn schnell() -> Self {
        PipelineConfig {
            flux: FluxConfig {
                heads: 24,
                head_dim: 128,
                layers: 19,
                single_layers: 38,
                in_channels: 64,
                out_channels: 64,
                joint_width: 4096,
                pooled_width: 768,
                axes: [16, 56, 56],
                theta: 10_000.0,
                guidance: false,
            },
            t5: T5Config {
                width: 4096,
                head_dim: 64,
                heads: 64,
                ff: 10240,
                layers: 24,
                buckets: 32,
                max_distance: 128,
                eps: 1e-6,
                vocab_rows: 32128,
            },
            clip: ClipConfig {
                width: 768,
                heads: 12,
                ff: 3072,
                layers: 12,
                positions: 77,
                activation: ClipActivation::QuickGelu,
                eps: 1e-5,
                vocab_rows: 49408,
                pooling: ClipPooling::LargestId,
            },
            vae: VaeConfig {
                latent_channels: 16,
                block_channels: vec![128, 256, 512, 512],
                layers_per_block: 2,
                groups: 32,
                scaling: 0.3611,
                shift: 0.1159,
                out_channels: 3,
                mid_attention: true,
                use_post_quant_conv: false,
            },
            scheduler: SchedulerConfig {
                shift: 1.0,
                dynamic_shifting: false,
                base_shift: 0.5,
                max_shift: 1.15,
                base_tokens: 256,
                max_tokens: 4096,
                train_timesteps: 1000,
            },
            steps: 4,
            t5_length: 256,
            in_nf4: InNf4::default(),
            in_formats: InFormats::default(),
            adapters: Adapters::default(),
        }
    }

    /// What one file alone cannot show: that the parts fit together. `flux_path` is what says how the transformer is.
    fn check_agreement(&self, flux_path: &Path) -> Result<()> {
        let latent_token = 4 * self.vae.latent_channels;
        // Fill, Canny and Depth feed a second image beside the latents: a whole number of tokens more. Where their file leaves
        // `out_channels` out, it counts as `in_channels`, and FLUX's own latents tell them from another VAE.
        let conditioned =
            self.flux.in_channels > latent_token && self.flux.in_channels.is_multiple_of(latent_token);
        if conditioned && (self.flux.out_channels == latent_token || self.vae.latent_channels == 16) {
            let kin = match self.flux.in_channels / latent_token {
                2 => ", as FLUX.1-Canny and -Depth have",
                6 => ", as FLUX.1-Fill has",
                _ => "",
            };
            return Err(Error::Unsupported(format!(
                "{}: in_channels {} instead of {latent_token}{kin}: models with image conditions are not supported",
                flux_path.display(),
                self.flux.in_channels
            )));
        }
        if self.flux.out_channels != latent_token {
            return Err(Error::weights(
                flux_path,
                format!(
                    "out_channels is {}, but the VAE's latent_channels {} make {latent_token} (four per token)",
                    self.flux.out_channels, self.vae.latent_channels
                ),
            ));
        }
        if self.flux.in_channels != latent_token {
            return Err(Error::weights(
                flux_path,
                format!(
                    "in_channels is {}, but the VAE's latent_channels {} make {latent_token} (four per token)",
                    self.flux.in_channels, self.vae.latent_channels
                ),
            ));
        }
        if self.flux.joint_width != self.t5.width {
            return Err(Error::weights(
                flux_path,
                format!(
                    "joint_attention_dim is {}, but text_encoder_2's d_model is {}{}",
                    self.flux.joint_width,
                    self.t5.width,
                    right_encoder(
                        self.flux.joint_width,
                        4096,
                        "the encoder of T5 v1.1 XXL, google/t5-v1_1-xxl"
                    )
                ),
            ));
        }
        if self.flux.pooled_width != self.clip.width {
            return Err(Error::weights(
                flux_path,
                format!(
                    "pooled_projection_dim is {}, but text_encoder's hidden_size is {}{}",
                    self.flux.pooled_width,
                    self.clip.width,
                    right_encoder(self.flux.pooled_width, 768, "CLIP-L, openai/clip-vit-large-patch14")
                ),
            ));
        }
        Ok(())
    }
}

/// Where to get the encoder that all published FLUX.1 models take, for a transformer that takes its `width`.
fn right_encoder(width: usize, published: usize, name: &str) -> String {
    match width == published {
        true => format!("; FLUX.1 takes {name}, which its own folder holds, too"),
        false => String::new(),
    }
}
