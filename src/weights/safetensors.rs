//! The safetensors container, one file ([`SafeTensors`]) or several behind an index ([`Component`], which a GGUF file may be,
//! too: see [`super::gguf`]).
//!
//! The format, as bytes: a little-endian `u64` header length n; n bytes of JSON
//! `{name: {"dtype", "shape", "data_offsets": [begin, end)}}`, offsets counted from the end of the header, plus
//! an optional `__metadata__`, padded with spaces; then the data, each byte of it in exactly one tensor. Tensors
//! may start anywhere, aligned or not. An index is JSON `{"weight_map": {name: file in the same folder}}`.
//!
//! Ways to be malformed, each an [`Error::Weights`]: shorter than its length field; header length beyond the
//! file or absurd; header that is no JSON of that form, names something twice, or is out of all proportion; shape and dtype that disagree with the offsets; offsets
//! that overlap, leave a hole, or end before or after the file; an index naming a shard or tensor that is not
//! there, or a file outside the folder.

use std::collections::HashMap;
use std::path::{Component as PathPart, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::gguf::{self, Gguf};
use super::tensor::{Encoding, TensorFile, TensorInfo};
use crate::{Error, Result, files, json};

pub use ::safetensors::Dtype;

/// The reference implementation's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Of what a header may hold: the largest models have some ten thousand tensors, of at most five dimensions.
const HEADER: json::Limits = json::Limits { names: 1 << 18, values: 16, name_bytes: 1 << 12 };

/// One safetensors file, its header read and checked.
#[derive(Debug)]
pub struct SafeTensors {
    file: Arc<TensorFile>,
    tensors: HashMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

impl SafeTensors {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Weights`] when it is malformed (see the module).
    pub fn open(path: &Path) -> Result<Self> {
        let (file, file_bytes) = files::open(path)?;
        let mut start = [0; files::FOREIGN_BYTES];
        let len = files::read_at(&file, path, &mut start, 0)?;
        let found = files::foreign(&start[..len]);
        let wrong = |what: String| Error::weights(path, found.map_or(what, str::to_string));

        if file_bytes < 8 {
            return Err(wrong(format!("not a safetensors file: {file_bytes} bytes, expected at least 8")));
        }
        let mut length = [0; 8];
        files::read_exact_at(&file, path, &mut length, 0)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes - 8 {
            return Err(wrong(format!(
                "header of {header_bytes} bytes in a file of {file_bytes}: truncated, or not a safetensors file"
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        files::read_exact_at(&file, path, &mut header, 8)?;
        // Deserializing also checks that the tensors follow each other without overlap or hole and that each
        // is as long as its shape and dtype say.
        let malformed = |e| wrong(format!("malformed safetensors header: {e}")).because(e);
        json::check(&header, &HEADER).map_err(malformed)?;
        let metadata: ::safetensors::tensor::Metadata = serde_json::from_slice(&header).map_err(malformed)?;
        let expected_bytes = 8 + header_bytes + metadata.data_len() as u64;
        if expected_bytes != file_bytes {
            return Err(wrong(format!(
                "{file_bytes} bytes, but its header describes {expected_bytes}: {}",
                if file_bytes < expected_bytes {
                    "truncated"
                } else {
                    "there is something after the tensors"
                }
            )));
        }

        let file = Arc::new(TensorFile::open(path, file));
        let words = metadata.metadata().clone().unwrap_or_default();
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (begin, end) = info.data_offsets;
                let tensor = TensorInfo {
                    name: name.clone(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    file: file.clone(),
                    offset: 8 + header_bytes + begin as u64,
                    bytes: (end - begin) as u64,
                    encoding: Encoding::Plain,
                    rows: None,
                };
                (name, tensor)
            })
            .collect();
        Ok(SafeTensors { file, tensors, metadata: words })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The tensor called `name`, if there.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// What the file says beside its tensors, by name.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// All tensors, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The tensors of one network: a single file, or shards behind an index.
#[derive(Debug)]
pub struct Component {
    path: PathBuf,
    tensors: HashMap<String, TensorInfo>,
    warnings: Vec<String>,
    /// Version, where it is a GGUF file.
    gguf: Option<u32>,
    /// Into how many it was divided.
    num_files: usize,
    metadata: HashMap<String, String>,
}

/// Which of two sets of weights in one folder counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// The shards: diffusers' rule.
    Index,
    /// The single file: transformers' rule.
    Single,
}

impl Component {
    /// Opens `<dir>/<stem>.safetensors`, or `<dir>/<stem>.safetensors.index.json` and the shards it names. With an index,
    /// only the tensors it lists exist, each in the shard it says.
    ///
    /// Where both are there, `first` counts: diffusers follows the index, transformers the single file. Where neither is, the
    /// one set of weights of a variant (`<stem>.fp16.safetensors`) is taken.
    ///
    /// # Errors
    /// [`Error::Io`] for files that cannot be read, [`Error::Weights`] for missing or malformed ones, and for two variants.
    pub fn open(dir: &Path, stem: &str, first: First) -> Result<Self> {
        let single = dir.join(format!("{stem}.safetensors"));
        let index = dir.join(format!("{stem}.safetensors.index.json"));
        match (files::exists(&single)?, files::exists(&index)?, first) {
            (true, true, First::Index) => {
                let warning = format!(
                    "{} is ignored: the index beside it counts",
                    crate::error::shown(&single.to_string_lossy())
                );
                let mut component = Component::sharded(dir, index)?;
                component.warnings.push(warning);
                Ok(component)
            }
            (true, true, First::Single) => {
                let warning = format!(
                    "{} is ignored: the single file beside it counts",
                    crate::error::shown(&index.to_string_lossy())
                );
                let mut component = Component::single(single)?;
                component.warnings.push(warning);
                Ok(component)
            }
            (true, false, _) => Component::single(single),
            (false, true, _) => Component::sharded(dir, index),
            (false, false, _) => Component::variant(dir, stem),
        }
    }

    /// Opens one file, safetensors or GGUF by what it begins with; GGUF that was divided into several by any of them.
    ///
    /// # Errors
    /// Those of [`SafeTensors::open`] and [`Gguf::open`].
    pub fn file(path: &Path) -> Result<Self> {
        let (file, _) = files::open(path)?;
        let mut magic = [0; gguf::MAGIC.len()];
        let len = files::read_at(&file, path, &mut magic, 0)?;
        if magic[..len] != gguf::MAGIC[..] {
            return Component::single(path.to_path_buf());
        }
        let Gguf { version, files: num_files, metadata, tensors } = Gguf::open(path)?;
        let path = path.to_path_buf();
        Ok(Component { path, tensors, warnings: Vec::new(), gguf: Some(version), num_files, metadata })
    }

    fn single(path: PathBuf) -> Result<Self> {
        let SafeTensors { tensors, metadata, .. } = SafeTensors::open(&path)?;
        Ok(Component { path, tensors, warnings: Vec::new(), gguf: None, num_files: 1, metadata })
    }

    /// `<stem>.<variant>.safetensors`, or `<stem>.safetensors.index.<variant>.json`, of which there must be one.
    fn variant(dir: &Path, stem: &str) -> Result<Self> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
            let name = entry.map_err(Error::io("read", dir))?.file_name().to_string_lossy().into_owned();
            if is_variant(stem, &name) {
                found.push(name);
            }
        }
        found.sort();
        match &found[..] {
            [] => Err(Error::weights(
                dir,
                format!("no weights: expected {stem}.safetensors or {stem}.safetensors.index.json"),
            )),
            [one] => {
                let path = dir.join(one);
                let warning = format!("{} is used: there are no other weights", crate::error::shown(one));
                let mut component = if one.ends_with(".json") {
                    Component::sharded(dir, path)?
                } else {
                    Component::single(path)?
                };
                component.warnings.push(warning);
                Ok(component)
            }
            [first, second, ..] => {
                let what = format!("several sets of weights, {first} and {second}: leave one of them there");
                Err(Error::weights(dir, what))
            }
        }
    }

    fn sharded(dir: &Path, path: PathBuf) -> Result<Self> {
        let index: Index = files::read_json(&path, files::Kind::Index)?;
        let mut shards: HashMap<&str, SafeTensors> = HashMap::new();
        let mut tensors = HashMap::with_capacity(index.weight_map.len());
        // Sorted, so that the same damage always gives the same message.
        let mut entries: Vec<_> = index.weight_map.iter().collect();
        entries.sort();
        for (name, shard_name) in entries {
            if !shards.contains_key(shard_name.as_str()) {
                let shard = open_shard(dir, &path, shard_name)?;
                shards.insert(shard_name, shard);
            }
            let info = shards[shard_name.as_str()].get(name).ok_or_else(|| {
                Error::weights(&path, format!("places tensor {name} in {shard_name}, which does not hold it"))
            })?;
            tensors.insert(name.clone(), info.clone());
        }
        let num_files = shards.len();
        Ok(Component { path, tensors, warnings: Vec::new(), gguf: None, num_files, metadata: HashMap::new() })
    }

    /// The version of the format, where it is a GGUF file.
    pub fn gguf_version(&self) -> Option<u32> {
        self.gguf
    }

    /// How many files its tensors lie in.
    pub fn num_files(&self) -> usize {
        self.num_files
    }

    /// What a file says beside its tensors, by name.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// What a person should know of how the files were chosen.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The single file, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensor called `name`, if there.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }
}

/// Whether `name` is `<stem>.<variant>.safetensors` or `<stem>.safetensors.index.<variant>.json`.
pub(crate) fn is_variant(stem: &str, name: &str) -> bool {
    let Some(rest) = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.')) else { return false };
    let of_index = || rest.strip_prefix("safetensors.index.").and_then(|rest| rest.strip_suffix(".json"));
    let variant = rest.strip_suffix(".safetensors").or_else(of_index);
    variant.is_some_and(|variant| !variant.is_empty() && !variant.contains("-of-"))
}

/// Opens a shard by the name the index gives it, which must not lead out of the folder.
fn open_shard(dir: &Path, index_path: &Path, shard_name: &str) -> Result<SafeTensors> {
    let mut parts = Path::new(shard_name).components();
    if !matches!((parts.next(), parts.next()), (Some(PathPart::Normal(_)), None)) {
        return Err(Error::weights(
            index_path,
            format!("names shard {shard_name:?}: expected a file in the same folder"),
        ));
    }
    let shard_path = dir.join(shard_name);
    if !files::exists(&shard_path)? {
        return Err(Error::weights(index_path, format!("names shard {shard_name}, which is missing")));
    }
    SafeTensors::open(&shard_path)
}
