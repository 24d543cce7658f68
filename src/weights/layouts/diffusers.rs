//! A folder for each component, as diffusers and transformers save them.

use std::path::Path;

use crate::Result;
use crate::weights::{Component, First, Part};

/// The folder of a part.
pub fn folder(part: Part) -> &'static str {
    match part {
        Part::Transformer => "transformer",
        Part::T5 => "text_encoder_2",
        Part::Clip => "text_encoder",
        Part::Vae => "vae",
    }
}

/// The stem of a part's weight files: diffusers and transformers name theirs differently.
pub fn stem(part: Part) -> &'static str {
    match part {
        Part::Transformer | Part::Vae => "diffusion_pytorch_model",
        Part::T5 | Part::Clip => "model",
    }
}

/// The weights of a part of the model in `dir`.
///
/// # Errors
/// Those of [`Component::open`].
pub fn open(dir: &Path, part: Part) -> Result<Component> {
    Component::open(&dir.join(folder(part)), stem(part), first(part))
}

/// Which of two sets of weights of a part counts: each library has its rule.
pub fn first(part: Part) -> First {
    match part {
        Part::Transformer | Part::Vae => First::Index,
        Part::T5 | Part::Clip => First::Single,
    }
}

/// Other names for the tensor `name` of a part, to look for in this order.
pub fn aliases(part: Part, name: &str) -> Vec<String> {
    let renamed = |old: &str, new: &str| name.contains(old).then(|| name.replace(old, new));
    match part {
        Part::T5 => renamed("shared.weight", "encoder.embed_tokens.weight").into_iter().collect(),
        // What transformers 5 no longer writes before every name.
        Part::Clip => name.strip_prefix("text_model.").map(str::to_string).into_iter().collect(),
        // Files from before diffusers 0.17.
        Part::Vae if name.contains(".attentions.") => {
            let old = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
            old.iter().filter_map(|(new, old)| renamed(&format!(".{new}."), &format!(".{old}."))).collect()
        }
        Part::Vae | Part::Transformer => Vec::new(),
    }
}

/// Whether real files have a tensor of this name beside those of the network that this crate runs.
pub fn is_harmless(part: Part, name: &str) -> bool {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    match part {
        Part::Transformer => false,
        Part::T5 => starts(&["decoder.", "lm_head.", "shared.", "encoder.embed_tokens."]),
        Part::Clip => {
            starts(&["text_projection.", "logit_scale", "vision_model.", "visual_projection."])
                || name.ends_with("embeddings.position_ids")
        }
        Part::Vae => starts(&["encoder.", "quant_conv."]),
    }
}
