//! The transformer's config file.

use std::path::Path;

use serde::Deserialize;

use super::fields::{ClassName, Fields, QuantizationFile, read_json};
use crate::Result;

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

    /// Steps and T5 tokens that models of its family are meant for: those with a guidance embedder are dev's, not distilled
    /// to few steps.
    pub(super) fn usual(&self) -> (usize, usize) {
        if self.guidance { (28, 512) } else { (4, 256) }
    }

    /// Reads `transformer/config.json`. Defaults: diffusers `FluxTransformer2DModel.__init__`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let raw: FluxFile = read_json(path)?;
        let file = Fields(path);
        file.class("_class_name", raw._class_name.as_ref(), "FluxTransformer2DModel")?;
        file.quantization(raw.quantization_config.as_ref())?;
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
            heads: file.count("num_attention_heads", raw.num_attention_heads, 24)?,
            head_dim,
            layers: file.count("num_layers", raw.num_layers, 19)?,
            single_layers: file.count("num_single_layers", raw.num_single_layers, 38)?,
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
struct FluxFile {
    _class_name: Option<ClassName>,
    quantization_config: Option<QuantizationFile>,
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
