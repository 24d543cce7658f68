//! Which files a model's parts lie in, and how a needed tensor is found there: [`ModelFiles`] says where each part is,
//! [`PartFiles`] is one of them opened.
//!
//! A needed tensor is a stored one, or rows of one: what a [`Layout`] says in shares of rows becomes a [`TensorInfo`] that reads
//! those rows and no others. Nothing is copied, and no file is written.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::formats::Format;
use super::layouts::{self, Found, Layout, Stored, diffusers};
use super::{Component, Dtype, Encoding, Needed, Part, TensorInfo, bitsandbytes, fp8};
use crate::{Error, Result};

/// What ComfyUI adds to files of any part: a mark of those in fp8, and a vocabulary.
const MARKS: [&str; 2] = ["scaled_fp8", "spiece_model"];

/// Where the parts of a model lie: a folder in the diffusers layout, and files in place of some of its parts.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    dir: PathBuf,
    instead: [Option<PartFiles>; 4],
}

impl ModelFiles {
    /// All of them in the folder `dir`.
    pub fn folder(dir: &Path) -> ModelFiles {
        ModelFiles { dir: dir.to_path_buf(), instead: [const { None }; 4] }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// With this in place of the folder's.
    pub fn set(&mut self, files: PartFiles) {
        let part = files.part;
        self.instead[part as usize] = Some(files);
    }

    /// What is in place of a part of the folder.
    pub fn instead(&self, part: Part) -> Option<&PartFiles> {
        self.instead[part as usize].as_ref()
    }

    /// A part, opened.
    ///
    /// # Errors
    /// Those of [`Component::open`].
    pub fn open(&self, part: Part) -> Result<Cow<'_, PartFiles>> {
        match self.instead(part) {
            Some(files) => Ok(Cow::Borrowed(files)),
            None => {
                PartFiles::folder(&self.dir, part).map(Cow::Owned).map_err(|error| self.advised(part, error))
            }
        }
    }

    /// The error of a part of the folder; where other parts are elsewhere, this one may be meant to be, too.
    fn advised(&self, part: Part, error: Error) -> Error {
        let is_alone = self.instead.iter().all(Option::is_none);
        let advice = format!("; name the file that holds it with --{part} FILE");
        match error {
            Error::Weights { path, what, source } if !is_alone => {
                Error::Weights { path, what: what + &advice, source }
            }
            Error::Io { path, source, .. } if !is_alone && source.kind() == std::io::ErrorKind::NotFound => {
                Error::weights(path, format!("there is no {part}{advice}"))
            }
            other => other,
        }
    }
}

/// A part's tensors: the files that they are in, what they are called there, and what precedes that.
#[derive(Clone, Debug)]
pub struct PartFiles {
    part: Part,
    component: Arc<Component>,
    layout: Layout,
    prefix: String,
}

impl PartFiles {
    /// The folder of a part in the diffusers-layout folder `dir`.
    ///
    /// # Errors
    /// Those of [`Component::open`].
    pub fn folder(dir: &Path, part: Part) -> Result<PartFiles> {
        PartFiles::own_folder(&dir.join(diffusers::folder(part)), part)
    }

    /// The folder `dir` that is a part's own, wherever it is.
    ///
    /// # Errors
    /// Those of [`Component::open`].
    pub fn own_folder(dir: &Path, part: Part) -> Result<PartFiles> {
        let component = Arc::new(Component::open(dir, diffusers::stem(part), diffusers::first(part))?);
        Ok(PartFiles { part, component, layout: Layout::Diffusers, prefix: String::new() })
    }

    /// All parts that a component holds, biggest first.
    pub fn all(component: &Arc<Component>) -> Vec<PartFiles> {
        let found = layouts::recognize(|name| component.get(name).is_some());
        let part =
            |Found { part, layout, prefix }| PartFiles { part, component: component.clone(), layout, prefix };
        found.into_iter().map(part).collect()
    }

    /// Which part.
    pub fn part(&self) -> Part {
        self.part
    }

    /// What its tensors are called.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What precedes the names of its tensors.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The files.
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// The file, or the index of several.
    pub fn path(&self) -> &Path {
        self.component.path()
    }

    /// What may hold `needed`, by the names in the file.
    fn stored(&self, needed: &Needed) -> Vec<Stored> {
        let mut stored = self.layout.stored(needed);
        stored.iter_mut().for_each(|stored| stored.name.insert_str(0, &self.prefix));
        stored
    }

    /// Whether `needed` is in NF4.
    pub(super) fn is_nf4(&self, needed: &Needed) -> bool {
        let state = |stored: &Stored| format!("{}{}", stored.name, bitsandbytes::STATE);
        self.stored(needed).iter().any(|stored| self.component.get(&state(stored)).is_some())
    }

    /// The format of few bits that `needed` is in, if it is in one.
    pub(super) fn format(&self, needed: &Needed) -> Option<Format> {
        let info = self.stored(needed).iter().find_map(|stored| self.component.get(&stored.name))?;
        match (&info.encoding, info.dtype) {
            (Encoding::Packed { format, .. }, _) => Some(*format),
            (Encoding::Plain, Dtype::F8_E4M3) => Some(Format::F8E4M3),
            (Encoding::Plain, Dtype::F8_E5M2) => Some(Format::F8E5M2),
            _ => None,
        }
    }

    /// The stored tensor of which `needed` is all or a part, as it reads; nothing where it is not there.
    fn find(&self, needed: &Needed) -> Result<Option<(TensorInfo, Stored)>> {
        let found = self.stored(needed).into_iter().find_map(|s| Some((self.component.get(&s.name)?, s)));
        let Some((info, stored)) = found else { return Ok(None) };
        let read = match bitsandbytes::open(&self.component, info)? {
            Some(dequantized) => Some(dequantized),
            None => fp8::open(&self.component, info)?,
        };
        let info = read.unwrap_or_else(|| info.clone());
        if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            let dtype = info.dtype;
            let what = format!("tensor {} has dtype {dtype}: expected F32, BF16, F16 or fp8", info.name);
            return Err(Error::weights(info.file.path(), what));
        }
        Ok(Some((info, stored)))
    }

    /// Whether the tensor `name`, as the networks call it, is there.
    pub fn has(&self, name: &str) -> bool {
        let needed = Needed::new(self.part, name.to_string(), &[]);
        self.stored(&needed).iter().any(|stored| self.component.get(&stored.name).is_some())
    }

    /// Whether there are tensors of the module `name`, as the file calls it.
    pub fn has_module(&self, name: &str) -> bool {
        let start = format!("{}{name}.", self.prefix);
        self.component.iter().any(|tensor| tensor.name.starts_with(&start))
    }

    /// The shape of the tensor `name`, as the networks call it, if it is there whole.
    ///
    /// # Errors
    /// [`Error::Weights`] and [`Error::Unsupported`] for one that cannot be read.
    pub fn shape(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let needed = Needed::new(self.part, name.to_string(), &[]);
        Ok(self.find(&needed)?.map(|(info, _)| info.shape))
    }

    /// What serves as `needed`.
    ///
    /// # Errors
    /// [`Error::Weights`] for one that is missing, or of another type or shape; [`Error::Unsupported`] for one that is
    /// quantized in a way that is not read.
    pub fn tensor(&self, needed: &Needed) -> Result<TensorInfo> {
        let Some((info, Stored { cut, .. })) = self.find(needed)? else {
            let names: Vec<String> = self.stored(needed).into_iter().map(|stored| stored.name).collect();
            let names = if names.is_empty() { needed.name.clone() } else { names.join(" or ") };
            let what = format!("tensor {names} is missing: expected {:?}", needed.shape);
            return Err(Error::weights(self.component.path(), what));
        };
        let rows = needed.shape.first().copied().unwrap_or(1);
        let mut shape = needed.shape.clone();
        let Some((unit, stored_rows)) = cut.sizes(rows) else {
            let text = format!("{}: {rows} rows of tensor {} are cut unevenly", needed.name, info.name);
            return Err(Error::Internal(text));
        };
        if let Some(first) = shape.first_mut() {
            *first = stored_rows;
        }
        if !same_shape(&info.shape, &shape) {
            let what = format!("tensor {} has shape {:?}: expected {shape:?}", info.name, info.shape);
            return Err(Error::weights(info.file.path(), what));
        }
        if cut == layouts::Cut::WHOLE {
            // However many ones the file has at its end.
            return Ok(TensorInfo { shape: needed.shape.clone(), ..info });
        }
        info.cut(cut.rows(unit))
    }

    /// A warning that names tensors that nobody asked for: the config describes a smaller network, which draws another
    /// picture.
    pub(super) fn left_over(&self, used: &BTreeMap<String, TensorInfo>) -> Option<String> {
        let (part, component) = (self.part, &self.component);
        let used: HashSet<&str> = used.values().map(|info| info.name.as_str()).collect();
        let belongs_to_used = |name: &str| {
            let codes = bitsandbytes::SUFFIXES.iter().filter_map(|suffix| name.strip_suffix(suffix));
            codes.map(str::to_string).chain(fp8::owner(name)).any(|owner| used.contains(owner.as_str()))
        };
        let mut names: Vec<&str> = component
            .iter()
            .filter(|info| info.elements() > 0)
            .map(|info| info.name.as_str())
            .filter(|name| {
                // What has another prefix is of another part.
                let own = name.strip_prefix(self.prefix.as_str());
                let is_known = |own: &str| MARKS.contains(&own) || self.layout.is_harmless(part, own);
                own.is_some_and(|own| !used.contains(name) && !is_known(own))
            })
            .filter(|name| !belongs_to_used(name))
            .collect();
        names.sort_unstable();
        let (first, last) = (names.first()?, names.last()?);
        let path = crate::error::shown(&component.path().to_string_lossy());
        let names = match names.len() {
            1 => format!("1 tensor, {}, is", crate::error::shown(first)),
            n => format!("{n} tensors, {} to {}, are", crate::error::shown(first), crate::error::shown(last)),
        };
        Some(format!("{path}: {names} not used: the config describes a smaller {part}"))
    }
}

/// Equal but for trailing ones: a 1x1 convolution and a matrix are the same numbers, and both ways of storing
/// them are about.
fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let core = |shape: &[usize]| shape.iter().rposition(|&n| n != 1).map_or(0, |last| last + 1);
    a[..core(a)] == b[..core(b)]
}
