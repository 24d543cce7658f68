//! The CLIP text encoder's config file.

use std::path::Path;

use serde::Deserialize;

use super::fields::{ClassName, Fields, QuantizationFile, read_json};
use crate::Result;

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

    /// Reads `text_encoder/config.json`. Defaults: transformers `CLIPTextConfig.__init__`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let raw: ClipFile = read_json(path)?;
        let file = Fields(path);
        file.class("model_type", raw.model_type.as_ref(), "clip_text_model")?;
        file.quantization(raw.quantization_config.as_ref())?;
        let activation = match raw.hidden_act.as_deref().unwrap_or("quick_gelu") {
            "quick_gelu" => ClipActivation::QuickGelu,
            "gelu" => ClipActivation::Gelu,
            other => return Err(file.unsupported("hidden_act", other, "only quick_gelu and gelu are")),
        };
        let config = ClipConfig {
            width: file.size("hidden_size", raw.hidden_size, 512)?,
            heads: file.count("num_attention_heads", raw.num_attention_heads, 8)?,
            ff: file.size("intermediate_size", raw.intermediate_size, 2048)?,
            layers: file.count("num_hidden_layers", raw.num_hidden_layers, 12)?,
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
                "hidden_size {} is not a multiple of num_attention_heads {}",
                config.width, config.heads
            )));
        }
        if config.positions < 2 {
            return Err(file.wrong("max_position_embeddings is 1: the start and end tokens need 2"));
        }
        if let ClipPooling::FirstOf(id) = config.pooling
            && id as usize >= config.vocab_rows
        {
            return Err(file.wrong(format!(
                "eos_token_id is {id}, beyond vocab_size {}: no prompt has it, so nothing could be pooled",
                config.vocab_rows
            )));
        }
        Ok(config)
    }
}

#[derive(Deserialize)]
struct ClipFile {
    model_type: Option<ClassName>,
    quantization_config: Option<QuantizationFile>,
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
