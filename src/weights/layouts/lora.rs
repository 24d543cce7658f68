//! LoRAs, as far as to tell one from a model: by which names they are known, how many matrices they change, and of which rank.
//!
//! | names | whose |
//! |---|---|
//! | `transformer.P.lora_A.weight` | diffusers, PEFT |
//! | `lora_unet_P.lora_down.weight`, `P.alpha` | kohya |
//! | `diffusion_model.P.lora_A.weight` | ComfyUI, ai-toolkit, by Black Forest Labs' names |
//! | `double_blocks.N.processor.qkv_lora1.down.weight` | XLabs |
//! | `double_blocks.N.img_attn.qkv.lora_A.weight` with norms | Black Forest Labs' control LoRAs |

use std::collections::BTreeSet;

use crate::weights::Component;

/// Ends of the names of matrices that go down to the rank, whose first size is the rank.
const DOWN: [&str; 5] =
    [".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight", ".lora.down.weight", ".down.weight"];

/// What a LoRA is, told by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoraFile {
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
        let target = |name: &str| DOWN.iter().any(|end| name.ends_with(end)) && name.contains("lora");
        let down: Vec<_> = file.iter().filter(|tensor| target(&tensor.name)).collect();
        if down.is_empty() {
            return None;
        }
        let has = |text: &str| file.iter().any(|tensor| tensor.name.contains(text));
        let starts = |text: &str| down.iter().any(|tensor| tensor.name.starts_with(text));
        let family = if has(".processor.") {
            "XLabs' names"
        } else if starts("lora_unet_") {
            "kohya's names"
        } else if has("query_norm.scale") {
            "Black Forest Labs' names, a control LoRA"
        } else if starts("transformer.") {
            "diffusers' names"
        } else if starts("diffusion_model.") || starts("double_blocks.") || starts("base_model.") {
            "Black Forest Labs' names"
        } else {
            "names that are not known here"
        };
        let ranks: BTreeSet<usize> = down.iter().filter_map(|tensor| tensor.shape.first().copied()).collect();
        Some(LoraFile { family, targets: down.len(), ranks: ranks.into_iter().collect() })
    }
}

impl std::fmt::Display for LoraFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rank = match (self.ranks.first(), self.ranks.last()) {
            (Some(least), Some(most)) if least == most => least.to_string(),
            (Some(least), Some(most)) => format!("{least} to {most}"),
            _ => "unknown".to_string(),
        };
        write!(f, "a LoRA under {}, of {} matrices and rank {rank}", self.family, self.targets)
    }
}
