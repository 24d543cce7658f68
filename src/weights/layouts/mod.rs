//! Where the tensors of each layout of files lie, and under which names: one file a layout, each in terms of the names that
//! the networks use, which are those of diffusers.
//!
//! A layout answers one question: of a tensor that a network needs, which stored tensor holds it, and which rows of that
//! ([`Stored`]). It knows nothing of sizes: rows are counted in shares, so that the same answer serves a file whose sizes
//! are not known yet. [`recognize`] says what a file holds by the names of its tensors; `docs/adr/0018` says why so.

pub mod bfl;
pub mod bfl_vae;
pub mod diffusers;
pub mod llama_cpp;

use std::ops::Range;

use super::{Needed, Part};

/// What tensors are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As diffusers and transformers call them, and this crate.
    Diffusers,
    /// The transformer as Black Forest Labs call it: matrices are fused.
    Bfl,
    /// The VAE as Black Forest Labs call it, which counts so many levels from the finest.
    BflVae {
        /// Of the decoder.
        levels: usize,
    },
    /// T5 as llama.cpp calls it.
    LlamaCpp,
}

/// A stored tensor that holds a needed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Which of its rows.
    pub cut: Cut,
}

/// Which rows of a stored tensor a needed one is: runs of equal units, of which the stored tensor has `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// First unit and number of units of each run, in the order in which they are needed.
    pub runs: &'static [(usize, usize)],
    /// Units of the stored tensor.
    pub of: usize,
}

impl Cut {
    /// All rows, in their order.
    pub const WHOLE: Cut = Cut { runs: &[(0, 1)], of: 1 };

    /// Units that are needed.
    fn units(self) -> usize {
        self.runs.iter().map(|(_, count)| count).sum()
    }

    /// Rows of a unit, and of the stored tensor, where `rows` are needed; nothing where these are no whole number of units.
    pub fn sizes(self, rows: usize) -> Option<(usize, usize)> {
        let unit = rows / self.units();
        (unit * self.units() == rows).then_some((unit, unit * self.of))
    }

    /// The runs in rows, of which a unit has so many.
    pub(super) fn rows(self, unit: usize) -> Vec<Range<u64>> {
        let rows = |(first, count): &(usize, usize)| (first * unit) as u64..((first + count) * unit) as u64;
        self.runs.iter().map(rows).collect()
    }
}

impl Stored {
    /// All of the tensor `name`.
    pub fn whole(name: impl Into<String>) -> Stored {
        Stored { name: name.into(), cut: Cut::WHOLE }
    }
}

impl Layout {
    /// What may hold `needed`, to be looked for in this order.
    pub fn stored(self, needed: &Needed) -> Vec<Stored> {
        let name = &needed.name;
        let one = |stored: Option<Stored>| stored.into_iter().collect();
        match self {
            Layout::Diffusers => std::iter::once(name).chain(&needed.aliases).map(Stored::whole).collect(),
            Layout::Bfl => one(bfl::stored(name)),
            Layout::BflVae { levels } => one(bfl_vae::stored(name, levels)),
            Layout::LlamaCpp => one(llama_cpp::stored(name)),
        }
    }

    /// Whether real files have a tensor of this name beside those of the network that this crate runs.
    pub fn is_harmless(self, part: Part, name: &str) -> bool {
        match self {
            Layout::Diffusers => diffusers::is_harmless(part, name),
            Layout::BflVae { .. } => bfl_vae::is_harmless(name),
            Layout::LlamaCpp => llama_cpp::is_harmless(name),
            Layout::Bfl => false,
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Layout::Diffusers => "diffusers' names",
            Layout::Bfl | Layout::BflVae { .. } => "Black Forest Labs' names",
            Layout::LlamaCpp => "llama.cpp's names",
        })
    }
}

/// A part that a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub part: Part,
    /// What its tensors are called,
    pub layout: Layout,
    /// behind this.
    pub prefix: String,
}

/// What precedes the names of a part's tensors in files that hold it alone (nothing), or with others.
fn prefixes(part: Part) -> &'static [&'static str] {
    match part {
        Part::Transformer => &["", "model.diffusion_model.", "diffusion_model."],
        Part::T5 => &["", "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."],
        Part::Clip => &["", "text_encoders.clip_l.transformer.", "text_encoders.clip_l."],
        Part::Vae => &["", "vae.", "first_stage_model."],
    }
}

/// A tensor that every file of a part in a layout has, and no file of another part.
const SIGNS: [(Part, Layout, &str); 9] = [
    (Part::Transformer, Layout::Diffusers, "transformer_blocks.0.attn.norm_q.weight"),
    (Part::Transformer, Layout::Diffusers, "single_transformer_blocks.0.attn.norm_q.weight"),
    (Part::Transformer, Layout::Bfl, "double_blocks.0.img_attn.norm.query_norm.scale"),
    (Part::Transformer, Layout::Bfl, "single_blocks.0.norm.query_norm.scale"),
    (Part::T5, Layout::Diffusers, "encoder.block.0.layer.0.SelfAttention.q.weight"),
    (Part::T5, Layout::LlamaCpp, "enc.blk.0.attn_q.weight"),
    (Part::Clip, Layout::Diffusers, "text_model.encoder.layers.0.self_attn.q_proj.weight"),
    (Part::Clip, Layout::Diffusers, "encoder.layers.0.self_attn.q_proj.weight"),
    (Part::Vae, Layout::Diffusers, "decoder.up_blocks.0.resnets.0.conv1.weight"),
];

/// Which parts there are in a file, biggest first; `has` says whether it holds a tensor.
pub fn recognize(has: impl Fn(&str) -> bool) -> Vec<Found> {
    let mut found = Vec::new();
    for part in Part::ALL {
        let layout = prefixes(part).iter().find_map(|prefix| {
            let has = |name: &str| has(&format!("{prefix}{name}"));
            let sign = SIGNS.iter().find(|(of, _, name)| *of == part && has(name));
            let levels = || Some(Layout::BflVae { levels: bfl_vae::levels(has)? });
            let layout = match sign {
                Some((_, layout, _)) => Some(*layout),
                None if part == Part::Vae => levels(),
                None => None,
            };
            Some((layout?, prefix))
        });
        if let Some((layout, prefix)) = layout {
            found.push(Found { part, layout, prefix: prefix.to_string() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_rows_become_rows() {
        assert_eq!(Cut::WHOLE.sizes(7), Some((7, 7)));
        let last = Cut { runs: &[(3, 4)], of: 7 };
        assert_eq!(last.sizes(12), Some((3, 21)));
        assert_eq!(last.sizes(13), None);
        let swapped = Cut { runs: &[(1, 1), (0, 1)], of: 2 };
        assert_eq!(swapped.sizes(6), Some((3, 6)));
        assert_eq!(swapped.sizes(7), None);
    }

    #[test]
    fn files_are_known_by_their_tensors() {
        let found = |names: &[&str]| {
            let found = recognize(|name| names.contains(&name));
            found.into_iter().map(|f| (f.part, f.layout, f.prefix)).collect::<Vec<_>>()
        };
        assert_eq!(found(&[]), []);
        let bfl = "double_blocks.0.img_attn.norm.query_norm.scale";
        assert_eq!(found(&[bfl]), [(Part::Transformer, Layout::Bfl, String::new())]);
        let vae = ["decoder.up.0.block.0.conv1.weight", "decoder.up.1.block.0.conv1.weight"];
        assert_eq!(found(&vae), [(Part::Vae, Layout::BflVae { levels: 2 }, String::new())]);
        let all = [
            "model.diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale",
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
            "vae.decoder.up.0.block.0.conv1.weight",
        ];
        let parts: Vec<Part> = found(&all).into_iter().map(|(part, ..)| part).collect();
        assert_eq!(parts, Part::ALL);
        // A LoRA of the same modules is no transformer.
        assert_eq!(found(&["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"]), []);
    }
}
