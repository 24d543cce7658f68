//! Where tensors come from: the files of a model, opened, and checked against the list of what the networks need before a
//! byte of theirs is read.
//!
//! Reading order: [`Needed`] is a tensor that there must be, as the networks ask for it, [`safetensors`] and [`gguf`] find and
//! read them, [`Source`] here joins the two, [`convert`] turns stored numbers into f32 and bf16, and [`nf4`] is the 4-bit
//! format as the host computes it: the reference for the kernels.
//!
//! ```no_run
//! use schnell::{config::PipelineConfig, weights::{Part, Source}};
//! # fn main() -> schnell::Result<()> {
//! let dir = std::path::Path::new("FLUX.1-schnell");
//! let source = Source::open(dir, &PipelineConfig::open(dir)?)?;
//! let weight = source.tensor(Part::Transformer, "x_embedder.weight")?;
//! let mut row = vec![0; weight.row_bytes()];
//! weight.read_at(0, &mut row)?;
//! # Ok(()) }
//! ```
//!
//! Files are read by `pread`, never mapped: a mapped file that shrinks kills the process, and pages of a mapping
//! count as ours. Checkpoints that come already quantized by [`bitsandbytes`] keep their codes, and read as what they mean
//! where these are not wanted; [`quantize`] writes such. Other [`formats`] of few bits stay what they are, too ([`kept`]), or read as f32.
//!
//! A part may lie in a folder of diffusers or in a file of its own, alone or with others, under one of several sets of names
//! ([`layouts`]); [`parts`] finds what the networks need in any of them.

pub mod adapters;
mod ahead;
pub mod bitsandbytes;
pub mod convert;
pub mod formats;
mod fp8;
pub mod generated;
pub mod gguf;
pub mod hub;
pub mod kept;
pub mod layouts;
pub mod lora;
pub mod nf4;
pub(crate) mod packed;
pub mod parts;
pub mod quantize;
pub mod safetensors;
pub(crate) mod target;
pub mod tensor;
pub mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::adapters::Half;
use self::formats::Format;
use self::layouts::diffusers;
use crate::config::PipelineConfig;
use crate::{Error, Result};

pub use self::parts::{ModelFiles, PartFiles};
pub use self::safetensors::{Component, Dtype, First, SafeTensors};
pub use self::tensor::{Encoding, TensorInfo};

/// A network with weights of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The FLUX transformer.
    Transformer,
    /// The T5 encoder.
    T5,
    /// The CLIP text encoder.
    Clip,
    /// The VAE's decoder.
    Vae,
}

impl Part {
    /// All parts, biggest first.
    pub const ALL: [Part; 4] = [Part::Transformer, Part::T5, Part::Clip, Part::Vae];
}

impl Part {
    /// The tensors that this part needs, in the order in which the network asks for them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn needed(self, config: &PipelineConfig) -> Result<Vec<Needed>> {
        let all = crate::models::flux::needed(config)?;
        Ok(all.into_iter().filter(|(part, _)| *part == self).map(|(_, needed)| needed).collect())
    }
}

/// A tensor that a network cannot do without. (None is optional: what a model lacks by its config is not asked for.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// The name used throughout this crate: as in diffusers-layout files.
    pub name: String,
    /// Its shape, row-major: Linear weights are `[out, in]`, convolutions `[out, in, height, width]`. A 1x1 convolution may be
    /// stored as a matrix and the other way round.
    pub shape: Vec<usize>,
    /// Other names to look for, in this order, when `name` is not there.
    pub aliases: Vec<String>,
}

impl Needed {
    /// With the other names that files are known to use.
    pub fn new(part: Part, name: String, shape: &[usize]) -> Needed {
        let aliases = layouts::diffusers::aliases(part, &name);
        Needed { name, shape: shape.to_vec(), aliases }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// Which matrices a model's files hold in NF4, under the names of [`Needed`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InNf4 {
    names: BTreeSet<(Part, String)>,
}

impl InNf4 {
    /// Of the transformer and T5 in `files`. Looks at headers only; what is missing or damaged holds
    /// nothing: it is refused when it is opened as a whole.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn find(files: &ModelFiles, config: &PipelineConfig) -> Result<InNf4> {
        let needed = crate::models::flux::needed(config)?;
        let mut names = BTreeSet::new();
        for part in [Part::Transformer, Part::T5] {
            let Ok(opened) = files.open(part) else { continue };
            let of_part = needed.iter().filter(|(of, _)| *of == part).map(|(_, needed)| needed);
            let quantized = of_part.filter(|needed| opened.is_nf4(needed));
            names.extend(quantized.map(|needed| (part, needed.name.clone())));
        }
        Ok(InNf4 { names })
    }

    /// Whether the matrix `name` of `part` is.
    pub fn holds(&self, part: Part, name: &str) -> bool {
        self.names.contains(&(part, name.to_string()))
    }

    /// Whether any of `part` is.
    pub fn has_any(&self, part: Part) -> bool {
        self.names.iter().any(|(of, _)| *of == part)
    }
}

/// Which matrices a model's files hold in formats of few bits that kernels multiply with as they are, under the names of [`Needed`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InFormats {
    formats: BTreeMap<(Part, String), Format>,
}

impl InFormats {
    /// Of the transformer and T5 in `files`; as [`InNf4::find`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn find(files: &ModelFiles, config: &PipelineConfig) -> Result<InFormats> {
        let needed = crate::models::flux::needed(config)?;
        let mut formats = BTreeMap::new();
        for part in [Part::Transformer, Part::T5] {
            let Ok(opened) = files.open(part) else { continue };
            for (_, needed) in needed.iter().filter(|(of, needed)| *of == part && needed.shape.len() == 2) {
                if let Some(format) = opened.format(needed) {
                    formats.insert((part, needed.name.clone()), format);
                }
            }
        }
        Ok(InFormats { formats })
    }

    /// That of the matrix `name` of `part`, where it is in one.
    pub fn of(&self, part: Part, name: &str) -> Option<Format> {
        self.formats.get(&(part, name.to_string())).copied()
    }

    /// Whether any of `part` is.
    pub fn has_any(&self, part: Part) -> bool {
        self.formats.keys().any(|(of, _)| *of == part)
    }

    /// Whether none is, of any part.
    pub fn is_empty(&self) -> bool {
        self.formats.is_empty()
    }
}

/// Number of parameters of all of `needed`.
pub fn parameters(needed: &[Needed]) -> u64 {
    needed.iter().map(Needed::elements).sum()
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Transformer => "transformer",
            Part::T5 => "t5",
            Part::Clip => "clip",
            Part::Vae => "vae",
        })
    }
}

/// Bytes of every tensor that go into [`Source::digest`].
const DIGESTED_BYTES: u64 = 4096;

/// All tensors of a model, each found and checked, under the names of [`Needed`] whatever the files call them.
#[derive(Debug)]
pub struct Source {
    dir: PathBuf,
    warnings: Vec<String>,
    tensors: [BTreeMap<String, TensorInfo>; 4],
}

impl Source {
    /// Opens the four components of the diffusers-layout folder `dir`: [`Source::of`] with no other files.
    ///
    /// # Errors
    /// Those of [`Source::of`].
    pub fn open(dir: &Path, config: &PipelineConfig) -> Result<Self> {
        Source::of(&ModelFiles::folder(dir), config)
    }

    /// Opens the four parts in `files` and checks that every needed tensor is there with the shape that `config` asks for, in
    /// a type that can be read. Reads headers, and of quantized tensors what describes them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Weights`] or [`Error::Unsupported`]: the first error found, with a count of
    /// further ones.
    pub fn of(files: &ModelFiles, config: &PipelineConfig) -> Result<Self> {
        let needed = crate::models::flux::needed(config)?;
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        let mut tensors = [const { BTreeMap::new() }; 4];
        for part in Part::ALL {
            let opened = match files.open(part) {
                Ok(opened) => opened,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            for needed in needed.iter().filter(|(of, _)| *of == part).map(|(_, needed)| needed) {
                match opened.tensor(needed) {
                    Ok(info) => drop(tensors[part as usize].insert(needed.name.clone(), info)),
                    Err(error) => errors.push(error),
                }
            }
            warnings.extend_from_slice(opened.component().warnings());
            warnings.extend(opened.left_over(&tensors[part as usize]));
        }
        match first_of(errors) {
            Some(error) => Err(error),
            None => Ok(Source { dir: files.dir().to_path_buf(), warnings, tensors }),
        }
    }

    /// All tensors that `config` asks for, computed when they are read (see [`generated`]): bf16, no files. The pictures are
    /// texture; times and memory are those of a real model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn generated(config: &PipelineConfig) -> Result<Self> {
        let mut tensors = [const { BTreeMap::new() }; 4];
        for (part, needed) in crate::models::flux::needed(config)? {
            let values = generated::Values::of(&format!("{part}/{}", needed.name), &needed.shape);
            let info = TensorInfo {
                name: needed.name.clone(),
                dtype: Dtype::BF16,
                bytes: 2 * needed.elements(),
                shape: needed.shape,
                file: Arc::new(self::tensor::TensorFile::generated(values)),
                offset: 0,
                encoding: Encoding::Plain,
                rows: None,
            };
            tensors[part as usize].insert(needed.name, info);
        }
        Ok(Source { dir: PathBuf::from("generated weights"), warnings: Vec::new(), tensors })
    }

    /// Puts what `loras` say into the tensors that a model with room for them needs beside those of its files.
    pub(crate) fn set_loras(
        &mut self,
        config: &PipelineConfig,
        loras: adapters::Strengths<'_>,
    ) -> Result<()> {
        for (part, needed) in crate::models::flux::needed(config)? {
            if Half::told(&needed.name).is_some() {
                let info = adapters::tensor(loras, part, &needed)?;
                self.tensors[part as usize].insert(needed.name, info);
            }
        }
        Ok(())
    }

    /// The tensor called `name` among those that `part` needs.
    ///
    /// # Errors
    /// [`Error::Weights`] when there is no such name.
    pub fn tensor(&self, part: Part, name: &str) -> Result<&TensorInfo> {
        self.tensors[part as usize].get(name).ok_or_else(|| {
            Error::weights(self.dir.join(diffusers::folder(part)), format!("the {part} has no tensor {name}"))
        })
    }

    /// All tensors of `part` with the names of [`Needed`], sorted by name.
    pub fn tensors(&self, part: Part) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors[part as usize].iter().map(|(name, info)| (name.as_str(), info))
    }

    /// A fingerprint of the weights: the first 64 bits, in hex, of the SHA-256 over every tensor's name, shape, and first
    /// 4096 bytes, LoRAs aside. Not over all bytes, which would double the time that loading takes.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for part in Part::ALL {
            for (name, info) in self.tensors(part).filter(|(name, _)| Half::told(name).is_none()) {
                let mut bytes = vec![0; info.bytes.min(DIGESTED_BYTES) as usize];
                info.read_at(0, &mut bytes)?;
                hash.update(format!("{part} {name} {:?}\n", info.shape));
                hash.update(&bytes);
            }
        }
        Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether the files are still the ones that they were: a digest of every one's name, length, and time of its last change, and of
    /// where each tensor is in them.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be looked at.
    pub(crate) fn stamps(&self) -> Result<String> {
        let mut stamps = BTreeSet::new();
        for part in Part::ALL {
            for (name, info) in self.tensors(part) {
                stamps.insert(format!("{part} {name} {}\n", info.place()));
                stamps.extend(info.file.stamp()?);
            }
        }
        let mut hash = Sha256::new();
        stamps.iter().for_each(|stamp| hash.update(stamp));
        Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Bytes of tensors that were read from the files so far.
    pub fn bytes_read(&self) -> u64 {
        let files = Part::ALL.into_iter().flat_map(|part| self.tensors(part)).map(|(_, info)| &info.file);
        let files: BTreeMap<_, _> = files.map(|file| (Arc::as_ptr(file), file)).collect();
        files.values().map(|file| file.bytes_read()).sum()
    }

    /// What a person should know of these files: weights that nothing uses, and which of two sets was taken.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The folder that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// One error for many: the first, saying how many more there are.
fn first_of(errors: Vec<Error>) -> Option<Error> {
    let more = errors.len().saturating_sub(1);
    let first = errors.into_iter().next()?;
    if more == 0 {
        return Some(first);
    }
    let suffix = format!(" (and {more} more such error{})", if more == 1 { "" } else { "s" });
    Some(match first {
        Error::Weights { path, what, source } => Error::Weights { path, what: what + &suffix, source },
        Error::Unsupported(what) => Error::Unsupported(what + &suffix),
        other => other,
    })
}
