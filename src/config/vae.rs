//! The VAE's config file.

use std::path::Path;

use serde::Deserialize;

use super::fields::{ClassName, Fields, QuantizationFile, read_json};
use crate::Result;

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

    /// Reads `vae/config.json`. Defaults: diffusers `AutoencoderKL.__init__`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let raw: VaeFile = read_json(path)?;
        let file = Fields(path);
        file.class("_class_name", raw._class_name.as_ref(), "AutoencoderKL")?;
        file.quantization(raw.quantization_config.as_ref())?;
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
            return Err(file.wrong(format!(
                "block_out_channels {channels} is not a multiple of norm_num_groups {groups}"
            )));
        }
        let out_channels = file.size("out_channels", raw.out_channels, 3)?;
        if out_channels != 3 {
            return Err(file.unsupported("out_channels", out_channels, "only 3 is"));
        }
        let scaling = file.factor("scaling_factor", raw.scaling_factor.unwrap_or(0.18215))?;
        // Absent in VAEs of other models; FluxPipeline itself cannot run without it.
        let shift = raw
            .shift_factor
            .ok_or_else(|| file.wrong("no shift_factor: expected a number (0.1159 for FLUX.1)"))?;
        let shift = file.offset("shift_factor", shift)?;
        Ok(VaeConfig {
            latent_channels: file.size("latent_channels", raw.latent_channels, 4)?,
            block_channels,
            layers_per_block: file.count("layers_per_block", raw.layers_per_block, 1)?,
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
struct VaeFile {
    _class_name: Option<ClassName>,
    quantization_config: Option<QuantizationFile>,
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
