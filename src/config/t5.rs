//! The T5 encoder's config file, and how many of its tokens a prompt is given.

use std::path::Path;

use serde::Deserialize;

use super::fields::{ClassName, Fields, QuantizationFile, read_json};
use crate::Result;

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

    /// Reads `text_encoder_2/config.json`. Defaults: transformers `T5Config.__init__`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let raw: T5File = read_json(path)?;
        let file = Fields(path);
        file.class("model_type", raw.model_type.as_ref(), "t5")?;
        file.quantization(raw.quantization_config.as_ref())?;
        // As transformers: `feed_forward_proj` says both, and what the file says of one has the last word. "gated-gelu" means
        // the tanh form.
        let proj = raw.feed_forward_proj.as_deref().unwrap_or("relu");
        let (is_gated, activation) = match proj.strip_prefix("gated-") {
            Some("gelu") => (true, "gelu_new"),
            Some(other) => (true, other),
            None => (false, proj),
        };
        let is_gated = raw.is_gated_act.unwrap_or(is_gated);
        let activation = raw.dense_act_fn.as_deref().unwrap_or(activation);
        if !is_gated || !matches!(activation, "gelu_new" | "gelu_pytorch_tanh") {
            let gated = if is_gated { "gated" } else { "ungated" };
            let found = format!("({gated} {activation})");
            return Err(file.unsupported("the MLP's activation", found, "only gated GELU (tanh) is"));
        }
        let config = T5Config {
            width: file.size("d_model", raw.d_model, 512)?,
            head_dim: file.size("d_kv", raw.d_kv, 64)?,
            heads: file.count("num_heads", raw.num_heads, 8)?,
            ff: file.size("d_ff", raw.d_ff, 2048)?,
            layers: file.count("num_layers", raw.num_layers, 6)?,
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
struct T5File {
    model_type: Option<ClassName>,
    quantization_config: Option<QuantizationFile>,
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
    is_gated_act: Option<bool>,
}

#[derive(Deserialize)]
struct TokenizerFile {
    // transformers writes 10^30 for "no limit".
    model_max_length: Option<f64>,
}

/// `usual`, or less where the tokenizer allows less. Planning needs no tokenizer, so that the file may be absent.
pub(super) fn t5_length(path: &Path, usual: usize) -> Result<usize> {
    if !crate::files::exists(path)? {
        return Ok(usual);
    }
    let raw: TokenizerFile = read_json(path)?;
    match raw.model_max_length {
        None => Ok(usual),
        Some(length) if length >= 1.0 => Ok((length as usize).min(usual)),
        Some(length) => Err(Fields(path).wrong(format!("model_max_length is {length}: expected 1 or more"))),
    }
}
