//! What a tensor of a LoRA is for, by its name: whose network it changes, which module of that, and how.
//!
//! A name is a prefix, a module and an ending: `lora_unet_` `double_blocks_0_img_attn_qkv` `.lora_down.weight`. Trainers that write
//! `_` for `.` leave open where a module's parts end (`to_out_0`), so names are not taken apart: they are looked up among those
//! of the model's own modules, all written with `_`.

use std::collections::HashMap;

use crate::config::PipelineConfig;
use crate::weights::layouts::{Cut, bfl};
use crate::weights::{Needed, Part};
use crate::{Error, Result};

/// What names begin with, and whose network they are of. Of several that fit, the first counts.
pub(super) const PREFIXES: [(&str, Part); 19] = [
    ("lora_unet_", Part::Transformer),
    ("lora_transformer_", Part::Transformer),
    ("lycoris_", Part::Transformer),
    ("model.diffusion_model.", Part::Transformer),
    ("diffusion_model.", Part::Transformer),
    ("base_model.model.transformer.", Part::Transformer),
    ("base_model.model.", Part::Transformer),
    ("transformer.", Part::Transformer),
    ("lora_te1_", Part::Clip),
    ("lora_te2_", Part::T5),
    ("lora_te3_", Part::T5),
    ("lora_te_", Part::Clip),
    ("text_encoders.clip_l.transformer.", Part::Clip),
    ("text_encoders.clip_l.", Part::Clip),
    ("text_encoders.t5xxl.transformer.", Part::T5),
    ("text_encoders.t5xxl.", Part::T5),
    ("text_encoder.", Part::Clip),
    ("text_encoder_2.", Part::T5),
    ("", Part::Transformer),
];

/// Endings of the two factors. The last is that of modules with a name of their own for it, as `qkv_lora1`.
const FACTORS: [(&str, &str); 6] = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".down.weight", ".up.weight"),
];

/// Changes of another kind, known by what follows the module.
const OTHER_KINDS: [(&str, &str); 6] = [
    (".lokr_", "LoKr"),
    (".hada_", "LoHa"),
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".oft_", "OFT"),
    (".lora_mid.", "LoCon of convolutions"),
];

/// Endings of what is added to a bias, and to a whole tensor.
const ADDED: [&str; 7] = [
    ".lora_A.bias",
    ".lora_B.bias",
    ".lora_B.default.bias",
    ".lora_down.bias",
    ".lora_up.bias",
    ".diff",
    ".diff_b",
];

/// Endings of a model's own tensors, and of what ComfyUI puts in their place.
const OWN: [&str; 4] = [".weight", ".bias", ".scale", ".set_weight"];

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The factor that goes down to the rank.
    Down,
    /// That from the rank up.
    Up,
    /// What the change is to be multiplied with, times the rank.
    Alpha,
    /// A change of full rank: it counts where it is not zero.
    Added,
    /// A tensor in place of the model's own.
    Own,
    /// A change of another kind: its name.
    Other(&'static str),
    /// None of these.
    Unknown,
}

impl Kind {
    /// Whether it belongs to a pair of factors.
    pub fn is_of_pair(self) -> bool {
        matches!(self, Kind::Down | Kind::Up | Kind::Alpha)
    }
}

/// A name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub prefix: &'static str,
    pub part: Part,
    /// As it is written.
    pub module: &'a str,
    pub kind: Kind,
}

impl<'a> Key<'a> {
    pub fn of(name: &'a str) -> Key<'a> {
        let known =
            PREFIXES.iter().find_map(|(prefix, part)| Some((*prefix, *part, name.strip_prefix(prefix)?)));
        let (prefix, part, rest) = known.unwrap_or(("", Part::Transformer, name));
        let (module, kind) = split(rest);
        Key { prefix, part, module, kind }
    }

    /// The module as the model's are looked up.
    pub fn plain(&self) -> String {
        plain(self.module)
    }
}

fn plain(module: &str) -> String {
    module.replace('.', "_")
}

fn split<'a>(rest: &'a str) -> (&'a str, Kind) {
    if let Some((end, kind)) = OTHER_KINDS.iter().find_map(|(mark, kind)| Some((rest.find(mark)?, *kind))) {
        return (&rest[..end], Kind::Other(kind));
    }
    for (down, up) in FACTORS {
        let is_own_name = down != ".down.weight";
        let module =
            |end: &str| rest.strip_suffix(end).filter(|module| is_own_name || module.contains("lora"));
        match (module(down), module(up)) {
            (Some(module), _) => return (module, Kind::Down),
            (_, Some(module)) => return (module, Kind::Up),
            _ => {}
        }
    }
    let without = |text: &'a str, ends: &[&str]| ends.iter().find_map(|end| text.strip_suffix(end));
    if let Some(module) = rest.strip_suffix(".alpha") {
        (module, Kind::Alpha)
    } else if let Some(module) = without(rest, &ADDED) {
        // Of norms, the tensor is named.
        (without(module, &OWN).unwrap_or(module), Kind::Added)
    } else if let Some(module) = without(rest, &OWN) {
        (module, Kind::Own)
    } else {
        (rest, Kind::Unknown)
    }
}

/// A matrix of the model that a LoRA can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub part: Part,
    /// Without `.weight`.
    pub name: String,
    /// Rows, the width of what it gives.
    pub n: usize,
    /// Columns, the width of what it takes.
    pub k: usize,
}

/// The modules of a model's transformer and CLIP, by all names that LoRAs have for them.
#[derive(Debug)]
pub(super) struct Targets {
    pub list: Vec<Target>,
    /// Which targets a module is, and which of its rows each is; of a module that is no Linear, none.
    modules: HashMap<(Part, String), Vec<(usize, Cut)>>,
}

impl Targets {
    /// # Errors
    /// [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn of(config: &PipelineConfig) -> Result<Targets> {
        let needed = crate::models::flux::needed(config)?;
        let mut targets = Targets { list: Vec::new(), modules: HashMap::new() };
        // Linears alone have both; tables of embeddings have no bias, and weights of norms no columns.
        let biases: std::collections::HashSet<(Part, &str)> = needed
            .iter()
            .filter_map(|(part, needed)| Some((*part, needed.name.strip_suffix(".bias")?)))
            .collect();
        for (part, needed) in &needed {
            let Some(name) = needed.name.strip_suffix(".weight") else { continue };
            if !matches!(part, Part::Transformer | Part::Clip) {
                continue;
            }
            let target = match needed.shape[..] {
                [n, k] if biases.contains(&(*part, name)) => {
                    targets.list.push(Target { part: *part, name: name.to_string(), n, k });
                    Some(targets.list.len() - 1)
                }
                _ => None,
            };
            for (module, cut) in spellings(*part, needed, name) {
                let entry = targets.modules.entry((*part, plain(&module))).or_default();
                entry.extend(target.map(|target| (target, cut)));
            }
        }
        match targets.list.is_empty() {
            true => Err(Error::Internal("a model without Linears".to_string())),
            false => Ok(targets),
        }
    }

    /// Which targets a module of this name is; nothing for one that the model does not have.
    pub fn find(&self, key: &Key<'_>) -> Option<&[(usize, Cut)]> {
        self.modules.get(&(key.part, key.plain())).map(|targets| &targets[..])
    }
}

/// All that the module `name`, whose weight is `needed`, is called, and which rows of a module of that name it is.
fn spellings(part: Part, needed: &Needed, name: &str) -> Vec<(String, Cut)> {
    let mut all = vec![(name.to_string(), Cut::WHOLE)];
    if part == Part::Clip {
        if let Some(rest) = name.strip_prefix("text_model.") {
            all.push((rest.to_string(), Cut::WHOLE));
        }
        // As diffusers once wrote them.
        for (new, old) in [("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")]
        {
            if let Some(layer) = name.strip_suffix(&format!(".self_attn.{new}")) {
                all.push((format!("{layer}.self_attn.{old}_lora"), Cut::WHOLE));
            }
        }
        return all;
    }
    let Some(stored) = bfl::stored(&needed.name) else { return all };
    let Some((module, _)) = stored.name.rsplit_once('.') else { return all };
    all.extend(xlabs(module, stored.cut));
    all.push((module.to_string(), stored.cut));
    all
}

/// Ends of modules that XLabs' processors change: as Black Forest Labs call them, as XLabs do.
const XLABS: [(&str, &str); 6] = [
    ("img_attn.qkv", "processor.qkv_lora1"),
    ("txt_attn.qkv", "processor.qkv_lora2"),
    ("img_attn.proj", "processor.proj_lora1"),
    ("txt_attn.proj", "processor.proj_lora2"),
    ("linear1", "processor.qkv_lora"),
    ("linear2", "processor.proj_lora"),
];

/// XLabs' name for the rows `cut` of Black Forest Labs' `module`.
fn xlabs(module: &str, cut: Cut) -> Option<(String, Cut)> {
    let (block, theirs) =
        XLABS.iter().find_map(|(bfl, xlabs)| Some((module.strip_suffix(bfl)?.strip_suffix('.')?, *xlabs)))?;
    // Of `linear1` they have query, key and value, not the MLP.
    let cut = match theirs {
        "processor.qkv_lora" => Cut { of: 3, ..cut },
        _ => cut,
    };
    let is_inside = cut.runs.iter().all(|(first, count)| first + count <= cut.of);
    is_inside.then(|| (format!("{block}.{theirs}"), cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> (&str, Part, &str, Kind) {
        let Key { prefix, part, module, kind } = Key::of(name);
        (prefix, part, module, kind)
    }

    #[test]
    fn names_are_taken_apart() {
        use Part::{Clip, T5, Transformer};
        let qkv = "double_blocks_0_img_attn_qkv";
        assert_eq!(
            key(&format!("lora_unet_{qkv}.lora_down.weight")),
            ("lora_unet_", Transformer, qkv, Kind::Down)
        );
        assert_eq!(key(&format!("lora_unet_{qkv}.alpha")), ("lora_unet_", Transformer, qkv, Kind::Alpha));
        assert_eq!(
            key("transformer.x_embedder.lora_B.weight"),
            ("transformer.", Transformer, "x_embedder", Kind::Up)
        );
        assert_eq!(
            key("text_encoder.text_model.a.to_q_lora.up.weight"),
            ("text_encoder.", Clip, "text_model.a.to_q_lora", Kind::Up)
        );
        assert_eq!(key("lora_te1_a.lora_up.weight"), ("lora_te1_", Clip, "a", Kind::Up));
        assert_eq!(key("lora_te_a.lora_up.weight"), ("lora_te_", Clip, "a", Kind::Up));
        assert_eq!(key("lora_te3_a.lora_up.weight"), ("lora_te3_", T5, "a", Kind::Up));
        assert_eq!(key("lycoris_a.lokr_w1"), ("lycoris_", Transformer, "a", Kind::Other("LoKr")));
        assert_eq!(key("a.lora_B.bias"), ("", Transformer, "a", Kind::Added));
        assert_eq!(key("a.norm.query_norm.scale.diff"), ("", Transformer, "a.norm.query_norm", Kind::Added));
        assert_eq!(key("a.norm.query_norm.scale"), ("", Transformer, "a.norm.query_norm", Kind::Own));
        assert_eq!(key("a.proj.down.weight"), ("", Transformer, "a.proj.down", Kind::Own), "no LoRA's");
        assert_eq!(key("é.x"), ("", Transformer, "é.x", Kind::Unknown));
        assert_eq!(key(""), ("", Transformer, "", Kind::Unknown));
    }

    /// No two modules have one name, though `_` is `.` in some.
    #[test]
    fn modules_have_names_of_their_own() {
        let mut config = PipelineConfig::schnell();
        config.flux.guidance = true;
        let targets = Targets::of(&config).unwrap();
        // 19 double blocks of 14, 38 single of 6, 10 beside them, 12 layers of CLIP of 6.
        assert_eq!(targets.list.len(), 19 * 14 + 38 * 6 + 10 + 12 * 6);
        for (module, found) in &targets.modules {
            let mut rows: Vec<usize> = found
                .iter()
                .flat_map(|(_, cut)| cut.runs.iter().flat_map(|&(first, count)| first..first + count))
                .collect();
            rows.sort_unstable();
            // Each row of a module is of one target, and none is left.
            let of = found.first().map_or(0, |(_, cut)| cut.of);
            assert_eq!(rows, (0..of).collect::<Vec<_>>(), "{module:?}");
        }
        let parts = |name: &str| {
            let found = targets.find(&Key::of(name)).unwrap();
            found.iter().map(|(target, _)| &targets.list[*target].name[..]).collect::<Vec<_>>()
        };
        let single = |rest: &str| format!("single_transformer_blocks.37.{rest}");
        let linear1 = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map(single);
        let mut found = parts("lora_unet_single_blocks_37_linear1.lora_down.weight");
        found.sort_unstable();
        let mut all: Vec<&str> = linear1.iter().map(String::as_str).collect();
        all.sort_unstable();
        assert_eq!(found, all);
        assert_eq!(parts("single_blocks.37.processor.qkv_lora.down.weight").len(), 3);
        assert_eq!(parts("single_blocks.37.processor.proj_lora.up.weight"), [single("proj_out")]);
        assert_eq!(parts("lora_unet_final_layer_adaLN_modulation_1.alpha"), ["norm_out.linear"]);
        let old = "text_encoder.text_model.encoder.layers.11.self_attn.to_out_lora.down.weight";
        assert_eq!(parts(old), ["text_model.encoder.layers.11.self_attn.out_proj"]);
        assert_eq!(
            parts("text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.diff"),
            [""; 0]
        );
        assert_eq!(parts("double_blocks.0.img_attn.norm.query_norm.scale"), [""; 0]);
        assert_eq!(targets.find(&Key::of("lora_unet_double_blocks_19_img_mlp_0.alpha")), None);
    }
}
