//! What a LoRA is, told by its names alone: enough to tell one from a model, and for people.

use std::collections::BTreeSet;

use super::names::{Key, Kind};
use crate::weights::Component;

/// What a LoRA is, told by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoraFile {
    /// `LoRA`; of relatives, which do not load, their name: `LoKr`, `LoHa`, `DoRA`, `OFT`.
    pub kind: &'static str,
    /// Whose names.
    pub family: &'static str,
    /// How many matrices it changes.
    pub targets: usize,
    /// All that occur, ascending.
    pub ranks: Vec<usize>,
}

impl LoraFile {
    /// The LoRA in a file; nothing for a file of none.
    pub(crate) fn of(file: &Component) -> Option<LoraFile> {
        let (mut targets, mut others) = (BTreeSet::new(), BTreeSet::new());
        let (mut ranks, mut kind) = (BTreeSet::new(), None);
        let (mut is_control, mut is_xlabs, mut is_diffusers) = (false, false, false);
        for tensor in file.iter() {
            let key = Key::of(&tensor.name);
            match key.kind {
                Kind::Down => {
                    ranks.extend(tensor.shape.first().copied());
                    targets.insert((key.prefix, key.module));
                }
                Kind::Other(name) => {
                    // Of files with several, which no trainer writes, one and always the same.
                    kind = kind.max(Some(name));
                    others.insert((key.prefix, key.module));
                }
                Kind::Own => is_control |= key.module.ends_with("norm.query_norm"),
                _ => {}
            }
            is_xlabs |= tensor.name.contains(".processor.");
            is_diffusers |= key.module.contains("transformer_blocks");
        }
        if targets.is_empty() && others.is_empty() {
            return None;
        }
        let starts = |prefix: &str| targets.iter().chain(&others).any(|(of, _)| *of == prefix);
        let has = |text: &str| targets.iter().chain(&others).any(|(_, module)| module.contains(text));
        let family = if is_xlabs {
            "XLabs' names"
        } else if is_control {
            "Black Forest Labs' names, a control LoRA"
        } else if starts("transformer.") || starts("text_encoder.") {
            "diffusers' names"
        } else if starts("lora_transformer_") || starts("lycoris_") {
            "diffusers' names with kohya's prefixes"
        } else if starts("lora_unet_") || starts("lora_te1_") || starts("lora_te_") {
            "kohya's names"
        } else if is_diffusers {
            "diffusers' names"
        } else if has("double_blocks") || has("single_blocks") || starts("diffusion_model.") {
            "Black Forest Labs' names"
        } else {
            "names that are not known here"
        };
        targets.extend(others);
        Some(LoraFile {
            kind: kind.unwrap_or("LoRA"),
            family,
            targets: targets.len(),
            ranks: ranks.into_iter().collect(),
        })
    }
}

impl std::fmt::Display for LoraFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let LoraFile { kind, family, targets, ranks } = self;
        write!(f, "a {kind} under {family}, of {targets} matrices")?;
        match (ranks.first(), ranks.last()) {
            (Some(least), Some(most)) if least == most => write!(f, " and rank {least}"),
            (Some(least), Some(most)) => write!(f, " and rank {least} to {most}"),
            _ => Ok(()),
        }
    }
}
