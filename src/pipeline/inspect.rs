//! What a file or a folder is, and whether it can be used: told by headers and configs, nothing is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Model, ModelFolder, Plan, Quantize, Shape, human_bytes};
use crate::config::{PipelineConfig, refusal};
use crate::weights::lora::{Lora, LoraFile};
use crate::weights::{Component, InFormats, ModelFiles, Part, PartFiles, bitsandbytes};
use crate::{Error, Result};

/// Pixels of a side of the picture that is planned.
const SIDE: usize = 1024;

/// What a file or a folder holds:
///
/// ```no_run
/// # fn main() -> schnell::Result<()> {
/// println!("{}", schnell::Inspection::of("flux1-dev-Q4_K_S.gguf")?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// As it was named.
    pub path: PathBuf,
    /// `safetensors`, `GGUF 3`, `GGUF 3 in 2 files`, or what a folder is.
    pub container: String,
    /// What it holds of a model, biggest first.
    pub parts: Vec<InspectedPart>,
    /// Types of all tensors, those with most bytes first.
    pub stored: Vec<StoredType>,
    /// Set for a LoRA.
    pub lora: Option<LoraFile>,
    /// Of each part, how many matrices a LoRA changes.
    pub changes: Vec<(String, usize)>,
    /// What of a LoRA is left out, and why.
    pub warnings: Vec<String>,
    /// What planning a picture of 1024 x 1024 says that it would take on the device, by how Linears are kept. Where a file holds
    /// parts only, the others are those of FLUX.1.
    pub device_bytes: Vec<(Quantize, u64)>,
    /// Whether it loads, and how.
    pub usage: Use,
}

/// A part of a model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InspectedPart {
    /// `transformer`, `t5`, `clip` or `vae`: also the flag that names a file of it.
    pub name: String,
    /// Its family and size.
    pub what: String,
    /// Whose names its tensors have, and what precedes them.
    pub names: String,
    /// Types of its tensors, those with most bytes first.
    pub stored: Vec<StoredType>,
}

/// How much is stored in a type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredType {
    /// `BF16`, `F8_E4M3`, `Q4_K`, `NF4`, ...
    pub name: String,
    /// Tensors, of which those that only describe others are none.
    pub tensors: usize,
    /// In the file, what describes them included.
    pub bytes: u64,
}

/// Whether something can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Use {
    /// It loads: the flags of `schnell generate` that name it.
    Loads(String),
    /// It would, with something that is not there: what, and what to do about it.
    Lacks(String),
    /// It does not: why, and what to do about it.
    No(String),
}

impl Inspection {
    /// Looks at a file, a folder, or (feature `hub`) `org/name` in the cache of the Hugging Face tools. Of a LoRA it says whether it
    /// loads beside FLUX.1-schnell; [`Inspection::beside`] is of another model.
    ///
    /// # Errors
    /// [`Error::Io`] for what is not there, and [`Error::Weights`] and [`Error::Unsupported`] for files that are malformed or of
    /// another kind. What is sound but cannot be used is no error.
    pub fn of(path: impl AsRef<Path>) -> Result<Inspection> {
        Inspection::looked_at(path.as_ref(), None)
    }

    /// The same; of a LoRA, whether it loads beside a model of this config.
    ///
    /// # Errors
    /// Those of [`Inspection::of`].
    pub fn beside(path: impl AsRef<Path>, config: &PipelineConfig) -> Result<Inspection> {
        Inspection::looked_at(path.as_ref(), Some(config))
    }

    fn looked_at(path: &Path, config: Option<&PipelineConfig>) -> Result<Inspection> {
        if path.is_file() { Inspection::of_file(path, config) } else { Inspection::of_folder(path) }
    }

    fn of_file(path: &Path, config: Option<&PipelineConfig>) -> Result<Inspection> {
        let component = Arc::new(Component::file(path)?);
        let lora = LoraFile::of(&component);
        // Control LoRAs have norms of their own, as transformers do.
        let parts = if lora.is_none() { PartFiles::all(&component) } else { Vec::new() };
        let container = match component.gguf_version() {
            Some(version) if component.num_files() > 1 => {
                format!("GGUF {version} in {} files", component.num_files())
            }
            Some(version) => format!("GGUF {version}"),
            None => "safetensors".to_string(),
        };
        let mut inspection = Inspection {
            path: path.to_path_buf(),
            container,
            parts: Vec::new(),
            stored: stored(&component, ""),
            lora,
            changes: Vec::new(),
            warnings: Vec::new(),
            device_bytes: Vec::new(),
            usage: Use::No(String::new()),
        };
        if inspection.lora.is_some() {
            inspection.look_at_lora(&component, config);
            return Ok(inspection);
        }
        if parts.is_empty() {
            let why = match refusal(&component) {
                Error::Weights { what, .. } => what,
                other => other.to_string(),
            };
            inspection.usage = Use::No(why);
            return Ok(inspection);
        }
        let files = in_place_of(Path::new("FLUX.1-schnell"), &parts);
        let sized = PipelineConfig::schnell().sized(&files);
        inspection.parts = parts.iter().map(|part| inspected(part, sized.as_ref().ok())).collect();
        inspection.usage = match sized {
            Err(error) => Use::No(error.to_string()),
            Ok(config) => match config.check_agreement_in(&files) {
                Ok(()) => match parts.iter().try_for_each(|part| is_whole(part, &config)) {
                    Ok(()) => {
                        let in_formats = InFormats::find(&files, &config)?;
                        inspection.device_bytes = planned(&PipelineConfig { in_formats, ..config });
                        usage(path, &parts)
                    }
                    Err(error) => Use::No(error.to_string()),
                },
                Err(error @ Error::Unsupported(_)) => Use::No(error.to_string()),
                Err(error) => Use::Lacks(format!(
                    "it belongs to a model of another size than FLUX.1: name that with --model, and this file with {} \
                     ({error})",
                    parts.iter().map(|part| format!("--{}", part.part())).collect::<Vec<_>>().join(" ")
                )),
            },
        };
        Ok(inspection)
    }

    /// What a LoRA changes of a model, and whether it loads beside it.
    fn look_at_lora(&mut self, component: &Component, config: Option<&PipelineConfig>) {
        let published = PipelineConfig::schnell();
        match Lora::of(component, config.unwrap_or(&published)) {
            Ok(lora) => {
                let matrices: BTreeSet<(Part, &str)> =
                    lora.factors().iter().map(|factor| (factor.part, &factor.target[..])).collect();
                let of = |part: Part| matrices.iter().filter(|(of, _)| *of == part).count();
                let changes = Part::ALL.map(|part| (part.to_string(), of(part)));
                self.changes = changes.into_iter().filter(|(_, count)| *count > 0).collect();
                self.warnings = lora.warnings().to_vec();
                self.usage = Use::Loads(format!("--lora {}, beside a --model", self.path.display()));
            }
            Err(error) => {
                let why = match error {
                    Error::Weights { what, .. } => what,
                    other => other.to_string(),
                };
                let which =
                    if config.is_none() { "; looked at beside FLUX.1-schnell, see --model" } else { "" };
                self.usage = Use::No(format!("{why}{which}"));
            }
        }
    }

    fn of_folder(path: &Path) -> Result<Inspection> {
        let folder = ModelFolder::find(path)?;
        let config = folder.config()?;
        let opened = Part::ALL.map(|part| folder.files().open(part));
        let parts = opened.iter().filter_map(|part| part.as_ref().ok());
        let mut all: Vec<StoredType> = Vec::new();
        let mut inspected_parts = Vec::new();
        for part in parts {
            let part = inspected(part, Some(&config));
            add(&mut all, &part.stored);
            inspected_parts.push(part);
        }
        let usage = match Model::open_folder(&folder) {
            Ok(_) => Use::Loads(format!("--model {}", path.display())),
            Err(error) => Use::Lacks(error.to_string()),
        };
        Ok(Inspection {
            path: path.to_path_buf(),
            container: "a folder in the diffusers layout".to_string(),
            parts: inspected_parts,
            stored: all,
            lora: None,
            changes: Vec::new(),
            warnings: Vec::new(),
            device_bytes: planned(&config),
            usage,
        })
    }
}

/// These in place of a folder's.
fn in_place_of(dir: &Path, parts: &[PartFiles]) -> ModelFiles {
    let mut files = ModelFiles::folder(dir);
    parts.iter().for_each(|part| files.set(part.clone()));
    files
}

/// Whether all that a network needs is there.
fn is_whole(part: &PartFiles, config: &PipelineConfig) -> Result<()> {
    part.part().needed(config)?.iter().try_for_each(|needed| part.tensor(needed).map(drop))
}

fn planned(config: &PipelineConfig) -> Vec<(Quantize, u64)> {
    let shape = Shape::square(SIDE).steps(config.steps).t5_length(config.t5_length);
    let plan = |how| Some((how, Plan::new(config, shape, how).ok()?.arena_bytes()));
    let keep = (!config.in_formats.is_empty()).then_some(Quantize::Keep);
    keep.into_iter().chain([Quantize::Nf4, Quantize::None]).filter_map(plan).collect()
}

/// How a file of sound parts is used.
fn usage(path: &Path, parts: &[PartFiles]) -> Use {
    let shown = path.display();
    if parts.iter().any(|part| part.part() == Part::Transformer) {
        return match ModelFolder::find(path).and_then(|folder| Model::open_folder(&folder)) {
            Ok(_) => Use::Loads(format!("--model {shown}")),
            Err(error) => Use::Lacks(error.to_string()),
        };
    }
    let flags: Vec<String> = parts.iter().map(|part| format!("--{} {shown}", part.part())).collect();
    Use::Loads(format!("{}, beside a --model or --transformer", flags.join(" ")))
}

fn inspected(part: &PartFiles, config: Option<&PipelineConfig>) -> InspectedPart {
    let what = config.map_or_else(
        || "of sizes that do not fit together".to_string(),
        |PipelineConfig { flux, t5, clip, vae, .. }| match part.part() {
            Part::Transformer => flux.in_words(),
            Part::T5 => format!("T5 encoder: {} layers of width {}", t5.layers, t5.width),
            Part::Clip => format!("CLIP text encoder: {} layers of width {}", clip.layers, clip.width),
            Part::Vae => {
                format!("VAE: {} levels, {} latent channels", vae.block_channels.len(), vae.latent_channels)
            }
        },
    );
    let names = match part.prefix() {
        "" => part.layout().to_string(),
        prefix => format!("{} behind {prefix}", part.layout()),
    };
    InspectedPart {
        name: part.part().to_string(),
        what,
        names,
        stored: stored(part.component(), part.prefix()),
    }
}

/// Types of the tensors whose names begin with `prefix`.
fn stored(component: &Component, prefix: &str) -> Vec<StoredType> {
    let is_nf4 = |name: &str| component.get(&format!("{name}{}", bitsandbytes::STATE)).is_some();
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for tensor in component.iter().filter(|tensor| tensor.name.starts_with(prefix) && tensor.bytes > 0) {
        let owner = bitsandbytes::SUFFIXES.iter().find_map(|suffix| tensor.name.strip_suffix(suffix));
        let (name, count) = match owner {
            Some(owner) if is_nf4(owner) => ("NF4".to_string(), 0),
            _ if is_nf4(&tensor.name) => ("NF4".to_string(), 1),
            _ => (tensor.stored_as(), 1),
        };
        let (tensors, bytes) = types.entry(name).or_default();
        (*tensors, *bytes) = (*tensors + count, *bytes + tensor.stored_bytes());
    }
    let all = types.into_iter().map(|(name, (tensors, bytes))| StoredType { name, tensors, bytes });
    sorted(all.collect())
}

fn sorted(mut types: Vec<StoredType>) -> Vec<StoredType> {
    types.sort_by_key(|stored| std::cmp::Reverse(stored.bytes));
    types
}

/// All of both.
fn add(all: &mut Vec<StoredType>, more: &[StoredType]) {
    for stored in more {
        match all.iter_mut().find(|known| known.name == stored.name) {
            Some(known) => {
                (known.tensors, known.bytes) = (known.tensors + stored.tensors, known.bytes + stored.bytes);
            }
            None => all.push(stored.clone()),
        }
    }
    *all = sorted(std::mem::take(all));
}

/// `NF4 502 (6.2 GiB), BF16 700 (12 MB)`
fn in_words(types: &[StoredType]) -> String {
    let words = types
        .iter()
        .map(|stored| format!("{} {} ({})", stored.tensors, stored.name, human_bytes(stored.bytes)));
    words.collect::<Vec<_>>().join(", ")
}

impl std::fmt::Display for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |text: &str| crate::error::shown(text);
        let bytes = self.stored.iter().map(|stored| stored.bytes).sum();
        writeln!(f, "{}: {}, {}", shown(&self.path.to_string_lossy()), self.container, human_bytes(bytes))?;
        for part in &self.parts {
            writeln!(f, "  {:11}  {}, {}", part.name, part.what, shown(&part.names))?;
            writeln!(f, "  {:11}  {}", "", in_words(&part.stored))?;
        }
        if let Some(lora) = &self.lora {
            writeln!(f, "  {lora}")?;
            let each = self.changes.iter().map(|(part, count)| format!("{count} matrices of the {part}"));
            if !self.changes.is_empty() {
                writeln!(f, "  changes {}", each.collect::<Vec<_>>().join(", "))?;
            }
        }
        if self.parts.is_empty() {
            writeln!(f, "  {}", in_words(&self.stored))?;
        }
        if !self.device_bytes.is_empty() {
            let each = self
                .device_bytes
                .iter()
                .map(|(how, bytes)| format!("{} with --quantize {}", human_bytes(*bytes), how));
            let each: BTreeSet<String> = each.collect();
            let each = each.into_iter().collect::<Vec<_>>().join(", ");
            let others =
                if self.parts.len() < Part::ALL.len() { ", with the other parts of FLUX.1" } else { "" };
            writeln!(f, "on the card: {each}, for {SIDE} x {SIDE}{others}; less with --budget")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {}", shown(warning))?;
        }
        match &self.usage {
            Use::Loads(flags) => writeln!(f, "loads: {}", shown(flags)),
            Use::Lacks(what) => writeln!(f, "does not load yet: {}", shown(what)),
            Use::No(why) => writeln!(f, "does not load: {}", shown(why)),
        }
    }
}
