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
//! Left out: tokenizer files ([`crate::text::tokenizer`]) and tensors ([`crate::weights`]).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// No real width, count or length comes near this; products of three such numbers still fit 64 bits.
const LARGEST_SIZE: u64 = 1 << 20;

/// Everything that the config files of a FLUX.1 folder decide.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineConfig {
    /// `transformer/config.json`
    pub flux: FluxConfig,
    /// `text_encoder_2/config.json`
    pub t5: T5Config,
    /// `text_encoder/config.json`
    pub clip: ClipConfig,
    /// `vae/config.json`
    pub vae: VaeConfig,
    /// `scheduler/scheduler_config.json`
    pub scheduler: SchedulerConfig,
    /// The T5 length to use unless told otherwise, padding included: 256 for schnell, less where
    /// `tokenizer_2/tokenizer_config.json` allows less (`model_max_length`).
    pub t5_length: usize,
}

/// T5 tokens that schnell was trained with.
const SCHNELL_T5_TOKENS: usize = 256;

/// The transformer, diffusers' `FluxTransformer2DModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct FluxConfig {
    /// Attention heads.
    pub heads: usize,
    /// Channels of one head; the sum of `axes`.
    pub head_dim: usize,
    /// Double blocks (`num_layers`).
    pub layers: usize,
    /// Single blocks (`num_single_layers`).
    pub single_layers: usize,
    /// Channels of an image token going in: four latent channels' worth, more for models with extra inputs.
    pub in_channels: usize,
    /// Channels of an image token coming out.
    pub out_channels: usize,
    /// Width of the T5 states (`joint_attention_dim`).
    pub joint_width: usize,
    /// Width of the pooled CLIP vector (`pooled_projection_dim`).
    pub pooled_width: usize,
    /// Channels of a head that each position axis rotates.
    pub axes: [usize; 3],
    /// Base of the rotation frequencies. Fixed in the reference.
    pub theta: f64,
    /// Whether the guidance scale is an input (FLUX.1-dev and its family).
    pub guidance: bool,
}

impl FluxConfig {
    /// Width of the residual streams: heads times head_dim.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the hidden layer of the MLPs. The ratio is fixed in the reference.
    pub fn ff(&self) -> usize {
        4 * self.width()
    }
}

/// The T5 encoder, transformers' `T5EncoderModel`, gated with tanh GELU (the only form this crate reads).
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Width of the residual stream (`d_model`).
    pub width: usize,
    /// Channels of one head (`d_kv`); heads times head_dim need not be the width.
    pub head_dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the hidden layer of the gated MLP (`d_ff`).
    pub ff: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Relative position buckets, both directions together.
    pub buckets: usize,
    /// Distance from which all positions share the last bucket.
    pub max_distance: usize,
    /// Added to the mean square in RMSNorm.
    pub eps: f32,
    /// Rows of the embedding table; may exceed the tokenizer's vocabulary.
    pub vocab_rows: usize,
}

impl T5Config {
    /// Width of q, k and v: heads times head_dim.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// The activation of CLIP's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipActivation {
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// The exact GELU, by the error function.
    Gelu,
}

/// Which position of the last hidden states is the pooled vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipPooling {
    /// The first position of the largest id: what transformers does for `eos_token_id` 2, a value that old
    /// configs carry by mistake and FLUX's still has.
    LargestId,
    /// The first position of this id.
    FirstOf(u32),
}

/// The CLIP text encoder, transformers' `CLIPTextModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Width of the residual stream, and of the pooled vector.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the MLP's hidden layer.
    pub ff: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Rows of the position table: the length prompts are padded to.
    pub positions: usize,
    /// The MLP's activation.
    pub activation: ClipActivation,
    /// Added to the variance in LayerNorm.
    pub eps: f32,
    /// Rows of the token table.
    pub vocab_rows: usize,
    /// Which position is pooled.
    pub pooling: ClipPooling,
}

impl ClipConfig {
    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }
}

/// The VAE, diffusers' `AutoencoderKL`; only its decoder is used.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the latent image.
    pub latent_channels: usize,
    /// Channels per level, finest first, as in the file. The decoder walks them backwards.
    pub block_channels: Vec<usize>,
    /// Resnets per level of the encoder; a level of the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every GroupNorm.
    pub groups: usize,
    /// `model latent = (vae latent - shift) * scaling`
    pub scaling: f32,
    /// See `scaling`.
    pub shift: f32,
    /// Channels of the picture: always 3.
    pub out_channels: usize,
    /// Whether the middle block has its attention layer.
    pub mid_attention: bool,
    /// Whether a 1x1 convolution comes before the decoder (not in FLUX).
    pub use_post_quant_conv: bool,
}

impl VaeConfig {
    /// Pixels per latent pixel along each side: every level but the last doubles.
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.block_channels.len() - 1)
    }

    /// Channels of the decoder's first, coarsest level.
    pub fn top_channels(&self) -> usize {
        self.block_channels.last().copied().unwrap_or(0)
    }
}

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

impl PipelineConfig {
    /// Reads the config files of the diffusers-layout folder `dir`. No weights need be present.
    ///
    /// # Errors
    /// [`Error::Io`] when a file is missing or unreadable, [`Error::Weights`] when one is malformed or they
    /// contradict each other, [`Error::Unsupported`] when they describe a model or option with no code here.
    pub fn open(dir: &Path) -> Result<Self> {
        check_model_index(dir)?;
        let config = PipelineConfig {
            flux: FluxConfig::read(&dir.join("transformer/config.json"))?,
            clip: ClipConfig::read(&dir.join("text_encoder/config.json"))?,
            t5: T5Config::read(&dir.join("text_encoder_2/config.json"))?,
            vae: VaeConfig::read(&dir.join("vae/config.json"))?,
            scheduler: SchedulerConfig::read(&dir.join("scheduler/scheduler_config.json"))?,
            t5_length: t5_length(&dir.join("tokenizer_2/tokenizer_config.json"))?,
        };
        config.check_agreement(dir)?;
        Ok(config)
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
            t5_length: SCHNELL_T5_TOKENS,
        }
    }

    /// What one file alone cannot show: that the parts fit together.
    fn check_agreement(&self, dir: &Path) -> Result<()> {
        let flux_path = dir.join("transformer/config.json");
        let latent_token = 4 * self.vae.latent_channels;
        if self.flux.out_channels != latent_token {
            return Err(Error::weights(
                flux_path,
                format!(
                    "out_channels is {}, but the VAE's latent_channels {} make {latent_token} (four per token)",
                    self.flux.out_channels, self.vae.latent_channels
                ),
            ));
        }
        // Fill, Canny and Depth feed a second image beside the latents: a whole number of tokens more.
        if self.flux.in_channels > latent_token && self.flux.in_channels.is_multiple_of(latent_token) {
            return Err(Error::Unsupported(format!(
                "{}: in_channels {} instead of {latent_token}: models with image conditions are not supported",
                flux_path.display(),
                self.flux.in_channels
            )));
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
                    "joint_attention_dim is {}, but text_encoder_2's d_model is {}",
                    self.flux.joint_width, self.t5.width
                ),
            ));
        }
        if self.flux.pooled_width != self.clip.width {
            return Err(Error::weights(
                flux_path,
                format!(
                    "pooled_projection_dim is {}, but text_encoder's hidden_size is {}",
                    self.flux.pooled_width, self.clip.width
                ),
            ));
        }
        Ok(())
    }
}

// ---- model_index.json ------------------------------------------------------------------------------------

/// Each component and the classes that this crate stands in for.
const COMPONENTS: [(&str, &[&str]); 7] = [
    ("transformer", &["FluxTransformer2DModel"]),
    ("text_encoder", &["CLIPTextModel"]),
    ("text_encoder_2", &["T5EncoderModel"]),
    ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("tokenizer_2", &["T5TokenizerFast", "T5Tokenizer"]),
    ("vae", &["AutoencoderKL"]),
    ("scheduler", &["FlowMatchEulerDiscreteScheduler"]),
];

fn check_model_index(dir: &Path) -> Result<()> {
    let path = dir.join("model_index.json");
    let index: serde_json::Map<String, serde_json::Value> = read_json(&path)?;
    let class = index.get("_class_name").and_then(|v| v.as_str()).unwrap_or("");
    if class.is_empty() {
        return Err(Error::weights(path, "no _class_name: expected FluxPipeline"));
    }
    if class != "FluxPipeline" {
        return Err(Error::Unsupported(format!(
            "{}: pipeline class {class}: only FluxPipeline is supported",
            path.display()
        )));
    }
    for (component, classes) in COMPONENTS {
        // ["library", "class"], or [null, null] for a component that was left out.
        let found = index.get(component).and_then(|v| v.get(1)).and_then(|v| v.as_str());
        match found {
            Some(class) if classes.contains(&class) => {}
            Some(class) => {
                return Err(Error::Unsupported(format!(
                    "{}: {component} is a {class}: only {} is supported",
                    path.display(),
                    classes.join(" or ")
                )));
            }
            None => {
                return Err(Error::weights(
                    path,
                    format!("component {component} is absent: expected {}", classes.join(" or ")),
                ));
            }
        }
    }
    Ok(())
}

// ---- the components --------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct FluxFile {
    _class_name: Option<String>,
    patch_size: Option<u64>,
    in_channels: Option<u64>,
    out_channels: Option<u64>,
    num_layers: Option<u64>,
    num_single_layers: Option<u64>,
    attention_head_dim: Option<u64>,
    num_attention_heads: Option<u64>,
    joint_attention_dim: Option<u64>,
    pooled_projection_dim: Option<u64>,
    guidance_embeds: Option<bool>,
    axes_dims_rope: Option<Vec<u64>>,
}

impl FluxConfig {
    /// Reads `transformer/config.json`. Defaults: diffusers `FluxTransformer2DModel.__init__`.
    fn read(path: &Path) -> Result<Self> {
        let raw: FluxFile = read_json(path)?;
        let file = Fields(path);
        file.class("_class_name", raw._class_name.as_deref(), "FluxTransformer2DModel")?;
        if let Some(patch_size) = raw.patch_size.filter(|&p| p != 1) {
            return Err(file.unsupported("patch_size", patch_size, "only 1 is"));
        }
        let in_channels = file.size("in_channels", raw.in_channels, 64)?;
        let head_dim = file.size("attention_head_dim", raw.attention_head_dim, 128)?;
        let axes = match raw.axes_dims_rope {
            None => [16, 56, 56],
            Some(list) => {
                let sizes = list
                    .iter()
                    .map(|&axis| file.size("axes_dims_rope", Some(axis), 0))
                    .collect::<Result<Vec<_>>>()?;
                <[usize; 3]>::try_from(sizes).map_err(|sizes| {
                    file.wrong(format!("axes_dims_rope has {} entries: expected 3", sizes.len()))
                })?
            }
        };
        if axes.iter().any(|axis| axis % 2 != 0) {
            return Err(
                file.wrong(format!("axes_dims_rope {axes:?} has an odd entry: channels turn in pairs"))
            );
        }
        if axes.iter().sum::<usize>() != head_dim {
            return Err(file.wrong(format!(
                "axes_dims_rope {axes:?} sums to {}: expected attention_head_dim {head_dim}",
                axes.iter().sum::<usize>()
            )));
        }
        Ok(FluxConfig {
            heads: file.size("num_attention_heads", raw.num_attention_heads, 24)?,
            head_dim,
            layers: file.size("num_layers", raw.num_layers, 19)?,
            single_layers: file.size("num_single_layers", raw.num_single_layers, 38)?,
            in_channels,
            out_channels: file.size("out_channels", raw.out_channels, in_channels as u64)?,
            joint_width: file.size("joint_attention_dim", raw.joint_attention_dim, 4096)?,
            pooled_width: file.size("pooled_projection_dim", raw.pooled_projection_dim, 768)?,
            axes,
            theta: 10_000.0,
            guidance: raw.guidance_embeds.unwrap_or(false),
        })
    }
}

#[derive(Deserialize)]
struct T5File {
    model_type: Option<String>,
    d_model: Option<u64>,
    d_kv: Option<u64>,
    d_ff: Option<u64>,
    num_heads: Option<u64>,
    num_layers: Option<u64>,
    relative_attention_num_buckets: Option<u64>,
    relative_attention_max_distance: Option<u64>,
    layer_norm_epsilon: Option<f64>,
    vocab_size: Option<u64>,
    feed_forward_proj: Option<String>,
    dense_act_fn: Option<String>,
}

impl T5Config {
    /// Reads `text_encoder_2/config.json`. Defaults: transformers `T5Config.__init__`.
    fn read(path: &Path) -> Result<Self> {
        let raw: T5File = read_json(path)?;
        let file = Fields(path);
        file.class("model_type", raw.model_type.as_deref(), "t5")?;
        let proj = raw.feed_forward_proj.as_deref().unwrap_or("relu");
        let Some(gate) = proj.strip_prefix("gated-") else {
            return Err(file.unsupported("feed_forward_proj", proj, "only gated-gelu is"));
        };
        // "gated-gelu" means the tanh form; `dense_act_fn`, where present, has the last word.
        let activation = match (raw.dense_act_fn.as_deref(), gate) {
            (Some(name), _) => name,
            (None, "gelu") => "gelu_new",
            (None, other) => other,
        };
        if !matches!(activation, "gelu_new" | "gelu_pytorch_tanh") {
            return Err(file.unsupported("the MLP's activation", activation, "only gated-gelu (tanh) is"));
        }
        let config = T5Config {
            width: file.size("d_model", raw.d_model, 512)?,
            head_dim: file.size("d_kv", raw.d_kv, 64)?,
            heads: file.size("num_heads", raw.num_heads, 8)?,
            ff: file.size("d_ff", raw.d_ff, 2048)?,
            layers: file.size("num_layers", raw.num_layers, 6)?,
            buckets: file.size("relative_attention_num_buckets", raw.relative_attention_num_buckets, 32)?,
            max_distance: file.size(
                "relative_attention_max_distance",
                raw.relative_attention_max_distance,
                128,
            )?,
            eps: file.eps("layer_norm_epsilon", raw.layer_norm_epsilon, 1e-6)?,
            vocab_rows: file.size("vocab_size", raw.vocab_size, 32128)?,
        };
        // Half the buckets per direction, half of those exact: the logarithm's base and span must make sense.
        if !config.buckets.is_multiple_of(4) || config.max_distance <= config.buckets / 4 {
            return Err(file.wrong(format!(
                "relative_attention_num_buckets {} with relative_attention_max_distance {}: expected a multiple \
                 of 4 buckets and a distance above a quarter of them",
                config.buckets, config.max_distance
            )));
        }
        Ok(config)
    }
}

#[derive(Deserialize)]
struct ClipFile {
    model_type: Option<String>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    max_position_embeddings: Option<u64>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    vocab_size: Option<u64>,
    eos_token_id: Option<u32>,
}

impl ClipConfig {
    /// Reads `text_encoder/config.json`. Defaults: transformers `CLIPTextConfig.__init__`.
    fn read(path: &Path) -> Result<Self> {
        let raw: ClipFile = read_json(path)?;
        let file = Fields(path);
        file.class("model_type", raw.model_type.as_deref(), "clip_text_model")?;
        let activation = match raw.hidden_act.as_deref().unwrap_or("quick_gelu") {
            "quick_gelu" => ClipActivation::QuickGelu,
            "gelu" => ClipActivation::Gelu,
            other => return Err(file.unsupported("hidden_act", other, "only quick_gelu and gelu are")),
        };
        let config = ClipConfig {
            width: file.size("hidden_size", raw.hidden_size, 512)?,
            heads: file.size("num_attention_heads", raw.num_attention_heads, 8)?,
            ff: file.size("intermediate_size", raw.intermediate_size, 2048)?,
            layers: file.size("num_hidden_layers", raw.num_hidden_layers, 12)?,
            positions: file.size("max_position_embeddings", raw.max_position_embeddings, 77)?,
            activation,
            eps: file.eps("layer_norm_eps", raw.layer_norm_eps, 1e-5)?,
            vocab_rows: file.size("vocab_size", raw.vocab_size, 49408)?,
            pooling: match raw.eos_token_id.unwrap_or(49407) {
                2 => ClipPooling::LargestId,
                id => ClipPooling::FirstOf(id),
            },
        };
        if !config.width.is_multiple_of(config.heads) {
            return Err(file.wrong(format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                config.width, config.heads
            )));
        }
        if config.positions < 2 {
            return Err(file.wrong("max_position_embeddings is 1: the start and end tokens need 2"));
        }
        Ok(config)
    }
}

#[derive(Deserialize)]
struct VaeFile {
    _class_name: Option<String>,
    out_channels: Option<u64>,
    up_block_types: Option<Vec<String>>,
    block_out_channels: Option<Vec<u64>>,
    layers_per_block: Option<u64>,
    act_fn: Option<String>,
    latent_channels: Option<u64>,
    norm_num_groups: Option<u64>,
    scaling_factor: Option<f64>,
    shift_factor: Option<f64>,
    use_post_quant_conv: Option<bool>,
    mid_block_add_attention: Option<bool>,
}

impl VaeConfig {
    /// Reads `vae/config.json`. Defaults: diffusers `AutoencoderKL.__init__`.
    fn read(path: &Path) -> Result<Self> {
        let raw: VaeFile = read_json(path)?;
        let file = Fields(path);
        file.class("_class_name", raw._class_name.as_deref(), "AutoencoderKL")?;
        if let Some(act) = raw.act_fn.as_deref().filter(|&act| act != "silu" && act != "swish") {
            return Err(file.unsupported("act_fn", act, "only silu is"));
        }
        let block_channels = raw
            .block_out_channels
            .unwrap_or_else(|| vec![64])
            .iter()
            .map(|&channels| file.size("block_out_channels", Some(channels), 0))
            .collect::<Result<Vec<_>>>()?;
        if block_channels.is_empty() || block_channels.len() > 8 {
            return Err(file
                .wrong(format!("block_out_channels has {} entries: expected 1 to 8", block_channels.len())));
        }
        if let Some(types) = raw.up_block_types {
            if let Some(other) = types.iter().find(|&t| t != "UpDecoderBlock2D") {
                return Err(file.unsupported("up_block_types", other, "only UpDecoderBlock2D is"));
            }
            if types.len() != block_channels.len() {
                return Err(file.wrong(format!(
                    "up_block_types has {} entries: expected {} as block_out_channels",
                    types.len(),
                    block_channels.len()
                )));
            }
        }
        let groups = file.size("norm_num_groups", raw.norm_num_groups, 32)?;
        if let Some(channels) = block_channels.iter().find(|&channels| channels % groups != 0) {
            return Err(file
                .wrong(format!("block_out_channels {channels} is no multiple of norm_num_groups {groups}")));
        }
        let out_channels = file.size("out_channels", raw.out_channels, 3)?;
        if out_channels != 3 {
            return Err(file.unsupported("out_channels", out_channels, "only 3 is"));
        }
        let scaling = raw.scaling_factor.unwrap_or(0.18215);
        if !scaling.is_finite() || scaling <= 0.0 {
            return Err(file.wrong(format!("scaling_factor is {scaling}: expected a positive number")));
        }
        // Absent in VAEs of other models; FluxPipeline itself cannot run without it.
        let shift = raw
            .shift_factor
            .filter(|shift| shift.is_finite())
            .ok_or_else(|| file.wrong("no shift_factor: expected a number (0.1159 for FLUX.1)"))?;
        Ok(VaeConfig {
            latent_channels: file.size("latent_channels", raw.latent_channels, 4)?,
            block_channels,
            layers_per_block: file.size("layers_per_block", raw.layers_per_block, 1)?,
            groups,
            scaling: scaling as f32,
            shift: shift as f32,
            out_channels,
            mid_attention: raw.mid_block_add_attention.unwrap_or(true),
            use_post_quant_conv: raw.use_post_quant_conv.unwrap_or(true),
        })
    }
}

#[derive(Deserialize)]
struct SchedulerFile {
    _class_name: Option<String>,
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

impl SchedulerConfig {
    /// Reads `scheduler/scheduler_config.json`. Defaults: diffusers
    /// `FlowMatchEulerDiscreteScheduler.__init__`.
    fn read(path: &Path) -> Result<Self> {
        let raw: SchedulerFile = read_json(path)?;
        let file = Fields(path);
        file.class("_class_name", raw._class_name.as_deref(), "FlowMatchEulerDiscreteScheduler")?;
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
        if !config.shift.is_finite() || config.shift <= 0.0 {
            return Err(file.wrong(format!("shift is {}: expected a positive number", config.shift)));
        }
        if config.dynamic_shifting
            && (config.base_tokens >= config.max_tokens
                || !config.base_shift.is_finite()
                || !config.max_shift.is_finite())
        {
            return Err(file.wrong(format!(
                "dynamic shifting from {} at {} tokens to {} at {}: expected finite shifts and rising tokens",
                config.base_shift, config.base_tokens, config.max_shift, config.max_tokens
            )));
        }
        Ok(config)
    }
}

#[derive(Deserialize)]
struct TokenizerFile {
    // transformers writes 10^30 for "no limit".
    model_max_length: Option<f64>,
}

/// See [`PipelineConfig::t5_length`]. Planning needs no tokenizer, so that the file may be absent.
fn t5_length(path: &Path) -> Result<usize> {
    if !path.exists() {
        return Ok(SCHNELL_T5_TOKENS);
    }
    let raw: TokenizerFile = read_json(path)?;
    match raw.model_max_length {
        None => Ok(SCHNELL_T5_TOKENS),
        Some(length) if length >= 1.0 => Ok((length as usize).min(SCHNELL_T5_TOKENS)),
        Some(length) => Err(Fields(path).wrong(format!("model_max_length is {length}: expected 1 or more"))),
    }
}

// ---- reading and naming the field at fault ---------------------------------------------------------------

/// Reads a JSON file; what is malformed is named with line and column.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::weights(path, format!("malformed JSON: {e}")))
}

/// The file whose fields are being checked.
struct Fields<'a>(&'a Path);

impl Fields<'_> {
    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::weights(PathBuf::from(self.0), what)
    }

    fn unsupported(&self, field: &str, got: impl std::fmt::Display, expected: &str) -> Error {
        Error::Unsupported(format!("{}: {field} {got} is not supported: {expected}", self.0.display()))
    }

    /// A width or count, `default` where the file has none.
    fn size(&self, field: &str, value: Option<u64>, default: u64) -> Result<usize> {
        let value = value.unwrap_or(default);
        if value == 0 || value > LARGEST_SIZE {
            return Err(self.wrong(format!("{field} is {value}: expected 1 to {LARGEST_SIZE}")));
        }
        Ok(value as usize)
    }

    fn eps(&self, field: &str, value: Option<f64>, default: f64) -> Result<f32> {
        let value = value.unwrap_or(default);
        if !(value > 0.0 && value < 1.0) {
            return Err(self.wrong(format!("{field} is {value}: expected a small positive number")));
        }
        Ok(value as f32)
    }

    /// An absent class name is taken for the right one: hand-made folders often leave it out.
    fn class(&self, field: &str, found: Option<&str>, expected: &str) -> Result<()> {
        match found {
            Some(class) if class != expected => {
                Err(self.unsupported(field, class, &format!("only {expected} is")))
            }
            _ => Ok(()),
        }
    }
}
