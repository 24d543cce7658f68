//! A model's folder in NF4, from one that is wide: what diffusers saves of it with bitsandbytes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::ops::ControlFlow::{self, Break, Continue};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Model, OnProgress, Progress, human_bytes};
use crate::files::{self, Kind, WholeFolder};
use crate::models::flux;
use crate::weights::layouts::diffusers;
use crate::weights::nf4::BLOCK;
use crate::weights::quantize::{Item, Output, QUANTIZATION, config_file};
use crate::weights::target::Target;
use crate::weights::{Dtype, Part};
use crate::{Error, Result};

pub use crate::weights::quantize::QuantizedLinear;

/// The networks whose Linears are quantized.
const QUANTIZED: [Part; 2] = [Part::Transformer, Part::T5];

/// Folders beside those of networks.
const OTHERS: [&str; 3] = ["scheduler", "tokenizer", "tokenizer_2"];

/// What a folder of the diffusers layout begins with; written last.
const INDEX: &str = "model_index.json";

/// Copied at a time.
const PIECE: usize = 1 << 20;

/// Writes a model anew, the Linears of its transformer and T5 in NF4 as bitsandbytes has it, ready for diffusers, transformers
/// and this crate.
///
/// ```no_run
/// use schnell::{Model, Quantizer};
/// # fn main() -> schnell::Result<()> {
/// let model = Model::open("FLUX.1-schnell")?;
/// for linear in Quantizer::new(&model).double_quant(true).write("FLUX.1-schnell-nf4")? {
///     println!("{}: {:.2} %", linear.name, 100.0 * linear.relative_rms_error);
/// }
/// # Ok(()) }
/// ```
///
/// What bitsandbytes leaves wide stays as it is stored: T5's `wo`, embeddings, norms, biases. (Of an f16 file `wo` becomes f32,
/// as transformers has it.) CLIP, the VAE, tokenizers and the scheduler's config are copied. It takes some tens of MB of
/// memory, however large the model.
#[derive(Clone, Debug)]
pub struct Quantizer<'a> {
    model: &'a Model,
    double_quant: bool,
    shard_bytes: u64,
}

/// What is copied as it is.
struct Copied {
    from: PathBuf,
    to: String,
    bytes: u64,
}

impl<'a> Quantizer<'a> {
    /// Of `model`, with absmax in f32 and files of 5 GB at most.
    pub fn new(model: &'a Model) -> Quantizer<'a> {
        Quantizer { model, double_quant: false, shard_bytes: 5_000_000_000 }
    }

    /// Sets whether absmax is quantized, too: 8 % smaller, and hardly farther from the model.
    pub fn double_quant(self, double_quant: bool) -> Quantizer<'a> {
        Quantizer { double_quant, ..self }
    }

    /// Sets how large a weight file may become, if there is more than one Linear in it.
    pub fn shard_bytes(self, shard_bytes: u64) -> Quantizer<'a> {
        Quantizer { shard_bytes, ..self }
    }

    /// Writes the folder `to`, which is not there yet; returns what became of every Linear.
    ///
    /// All of it is there at the end, or nothing: until then it has another name beside `to`, `.NAME.schnell`, and what a run
    /// that was killed has left there the next one removes.
    ///
    /// # Errors
    /// Before any work: [`Error::Input`] for a model that is quantized already, or has parts in files of their own, and for a folder that exists, is being written
    /// or would lie in the model's; [`Error::Unsupported`] for rows that are no whole number of quant blocks;
    /// [`Error::Capacity`] when the disk has not enough room. Later [`Error::Weights`] for a tensor that is not finite or all
    /// zero, and [`Error::Io`]: then nothing is left.
    pub fn write(&self, to: impl AsRef<Path>) -> Result<Vec<QuantizedLinear>> {
        self.write_with(to, &mut |_| Continue(()))
    }

    /// As [`Quantizer::write`], telling how far it has come: [`Progress::Loading`], of bytes to read; what is quantized is read
    /// twice.
    ///
    /// # Errors
    /// Its own, and [`Error::Stopped`] when `progress` says so.
    pub fn write_with(
        &self,
        to: impl AsRef<Path>,
        progress: &mut OnProgress<'_>,
    ) -> Result<Vec<QuantizedLinear>> {
        let to = to.as_ref();
        let from = self.model.folder.path();
        if let Some(files) = Part::ALL.into_iter().find_map(|part| self.model.folder.files().instead(part)) {
            let what = format!(
                "{} is no folder in the diffusers layout, of which one in NF4 is made",
                files.path().display()
            );
            return Err(Error::Input(what));
        }
        let configs = QUANTIZED.map(|part| read_config(from, part));
        let [transformer, t5] = configs;
        let configs = [transformer?, t5?].map(|config| config_file(config, self.double_quant));
        let outputs = self.outputs()?;
        let copied = copied(from)?;
        let target = WholeFolder::target(to)?;
        let inside = from.canonicalize().map_err(Error::io("read", from))?;
        if target.starts_with(&inside) {
            let what = format!("{} lies in the model's own folder; name another", to.display());
            return Err(Error::Input(what));
        }
        let bytes = outputs.iter().map(Output::bytes).chain(copied.iter().map(|file| file.bytes)).sum();
        check_room(to, bytes, files::free_bytes(target.parent().unwrap_or(Path::new("/")))?)?;

        let total =
            outputs.iter().map(Output::bytes_to_read).chain(copied.iter().map(|file| file.bytes)).sum();
        let mut done = 0;
        let mut told = |bytes| {
            done += bytes;
            progress(Progress::Loading { done, total })
        };
        if told(0).is_break() {
            return Err(Error::Stopped);
        }
        let folder = WholeFolder::begin(to)?;
        let mut linears = Vec::new();
        for (output, config) in outputs.iter().zip(configs) {
            let create = |name: &str| folder.create(&format!("{}/{name}", output.folder));
            let (path, mut file) = create("config.json")?;
            file.write_all(config.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(Error::io("write", path))?;
            linears.extend(output.write(&create, &mut told)?);
        }
        for file in &copied {
            copy(file, &folder, &mut told)?;
        }
        folder.finish()?;
        Ok(linears)
    }

    /// The weight files of the networks that are quantized.
    fn outputs(&self) -> Result<Vec<Output>> {
        let mut items: [Vec<Item>; QUANTIZED.len()] = Default::default();
        for weight in flux::weights(self.model.config())? {
            let Some(of_part) = QUANTIZED.iter().position(|part| *part == weight.part) else { continue };
            let name = weight.needed.name;
            let tensor = self.model.source.tensor(weight.part, &name)?.clone();
            if tensor.is_nf4() {
                return Err(already_quantized(self.model.folder.path(), weight.part));
            }
            let in_nf4 = matches!(weight.target, Target::Nf4 { .. });
            let left_wide = matches!(weight.target, Target::Bf16 { .. });
            let row_len = tensor.shape.last().copied().unwrap_or(0);
            if left_wide && row_len % BLOCK != 0 {
                let what =
                    format!("tensor {name} has rows of {row_len}: no whole number of blocks of {BLOCK}");
                return Err(Error::Unsupported(what));
            }
            let dtype = if left_wide && tensor.dtype == Dtype::F16 { Dtype::F32 } else { tensor.dtype };
            items[of_part].push(Item { name, tensor, in_nf4, dtype });
        }
        let outputs = QUANTIZED.into_iter().zip(items).map(|(part, items)| {
            let names = (diffusers::folder(part), diffusers::stem(part));
            Output::new(names, items, self.double_quant, self.shard_bytes)
        });
        Ok(outputs.collect())
    }
}

fn already_quantized(from: &Path, part: Part) -> Error {
    let folder = from.join(diffusers::folder(part));
    Error::Input(format!("{} is quantized already; name a model in 16 or 32 bits", folder.display()))
}

/// The config of a network that is not quantized yet.
fn read_config(from: &Path, part: Part) -> Result<Map<String, Value>> {
    let path = from.join(diffusers::folder(part)).join("config.json");
    let config: Map<String, Value> = files::read_json(&path, Kind::Config)?;
    match config.get(QUANTIZATION) {
        None | Some(Value::Null) => Ok(config),
        Some(_) => Err(already_quantized(from, part)),
    }
}

/// All that is copied: of every folder what is no weights, of CLIP and the VAE those weights that count.
fn copied(from: &Path) -> Result<Vec<Copied>> {
    let mut copied = Vec::new();
    let mut add = |from: PathBuf, to: String| -> Result<()> {
        let (_, bytes) = files::open(&from)?;
        copied.push(Copied { from, to, bytes });
        Ok(())
    };
    for folder in Part::ALL.map(diffusers::folder).into_iter().chain(OTHERS) {
        let is_quantized = QUANTIZED.iter().any(|part| diffusers::folder(*part) == folder);
        for name in small_files(&from.join(folder))? {
            if !(is_quantized && name == "config.json") {
                add(from.join(folder).join(&name), format!("{folder}/{name}"))?;
            }
        }
    }
    for part in Part::ALL.into_iter().filter(|part| !QUANTIZED.contains(part)) {
        let component = diffusers::open(from, part)?;
        let (folder, stem) = (diffusers::folder(part), diffusers::stem(part));
        let files: BTreeSet<&Path> = component.iter().map(|tensor| tensor.file.path()).collect();
        // What is called after a variant would not be looked for beside networks that are not.
        let is_single = files.contains(component.path());
        let ending = if is_single { "safetensors" } else { "safetensors.index.json" };
        add(component.path().to_path_buf(), format!("{folder}/{stem}.{ending}"))?;
        for shard in files.into_iter().filter(|_| !is_single) {
            let name = shard.file_name().unwrap_or_default().to_string_lossy();
            add(shard.to_path_buf(), format!("{folder}/{name}"))?;
        }
    }
    for name in small_files(from)? {
        if ["LICENSE", "NOTICE"].iter().any(|start| name.starts_with(start)) {
            add(from.join(&name), name)?;
        }
    }
    add(from.join(INDEX), INDEX.to_string())?;
    Ok(copied)
}

/// The names of the files in `folder` that are neither weights nor hidden, sorted.
fn small_files(folder: &Path) -> Result<Vec<String>> {
    const WEIGHTS: [&str; 11] = [
        ".safetensors",
        ".index.json",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".msgpack",
        ".h5",
        ".onnx",
        ".gguf",
        ".sft",
    ];
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_weights =
            name.contains(".safetensors.index.") || WEIGHTS.iter().any(|end| name.ends_with(end));
        if !is_weights && !name.starts_with('.') && !entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn copy(file: &Copied, folder: &WholeFolder, told: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<()> {
    let (mut from, _) = files::open(&file.from)?;
    let (path, mut to) = folder.create(&file.to)?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = from.read(&mut piece).map_err(Error::io("read", &file.from))?;
        if count == 0 {
            return to.sync_all().map_err(Error::io("write", path));
        }
        to.write_all(&piece[..count]).map_err(Error::io("write", &path))?;
        if let Break(()) = told(count as u64) {
            return Err(Error::Stopped);
        }
    }
}

/// Refuses what the disk has no room for.
fn check_room(to: &Path, needed_bytes: u64, available_bytes: u64) -> Result<()> {
    if needed_bytes <= available_bytes {
        return Ok(());
    }
    Err(Error::Capacity {
        what: crate::error::shown(&to.to_string_lossy()),
        needed_bytes,
        available_bytes,
        advice: format!(
            "make room for {} on its disk, or name a folder on another",
            human_bytes(needed_bytes)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_said_with_both_numbers() {
        check_room(Path::new("new"), 7, 7).unwrap();
        let error = check_room(Path::new("new"), 8 << 30, 7).unwrap_err();
        let Error::Capacity { needed_bytes, available_bytes, .. } = &error else { panic!("{error}") };
        assert_eq!((*needed_bytes, *available_bytes), (8 << 30, 7));
        assert!(error.to_string().starts_with("new needs 8589934592 bytes"), "{error}");
    }
}
