//! A GGUF file in several, as llama.cpp's `gguf-split` and the package `gguf` divide large ones.
//!
//! Each is a GGUF file of its own and called `<name>-00002-of-00003.gguf`. Metadata says which of them it is: `split.no`, which begins
//! at 0, `split.count`, and `split.tensors.count`, how many tensors they hold together. What else metadata says is in the first.
//! Any of them stands for all.
//!
//! Ways to be malformed, each an [`Error::Weights`]: numbers that are none or lie beyond the count; a name without them, so that
//! the others cannot be found; a file that is not there, or says that it is another one; a tensor in two files; more or fewer
//! tensors than were divided.
//!
//! Source: llama.cpp, `tools/gguf-split`, and gguf-py, `gguf_writer.py`, both MIT.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::Gguf;
use crate::{Error, Result, files};

/// What the names of its metadata begin with.
pub(super) const PREFIX: &str = "split.";

/// As the format has it.
const MOST_FILES: u32 = u16::MAX as u32;

/// Which of how many a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// From 0.
    no: u32,
    /// Two at least.
    count: u32,
}

impl Place {
    /// Of a file with this metadata; none where it is a whole one.
    fn of(path: &Path, metadata: &HashMap<String, String>) -> Result<Option<Place>> {
        let Some(count) = number(path, metadata, "count")?.filter(|count| *count > 1) else {
            return Ok(None);
        };
        if count > MOST_FILES {
            return wrong(path, format!("split.count is {count}: expected at most {MOST_FILES}"));
        }
        match number(path, metadata, "no")? {
            Some(no) if no < count => Ok(Some(Place { no, count })),
            Some(no) => wrong(path, format!("split.no is {no} of {count} files: expected one that is less")),
            None => wrong(path, "it is one of several, and lacks split.no, which says which one".to_string()),
        }
    }

    /// What the file's name ends with.
    fn end(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.no + 1, self.count)
    }
}

fn wrong<T>(path: &Path, what: String) -> Result<T> {
    Err(Error::weights(path, format!("a malformed GGUF file: {what}")))
}

/// The number that metadata calls `split.<name>`, if it is there.
fn number(path: &Path, metadata: &HashMap<String, String>, name: &str) -> Result<Option<u32>> {
    let Some(text) = metadata.get(&format!("{PREFIX}{name}")) else { return Ok(None) };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => wrong(path, format!("split.{name} is {}: expected a number", crate::error::shown(text))),
    }
}

/// `file`, which was read from `path`, with the tensors of all that belong to it.
pub(super) fn whole(path: &Path, file: Gguf) -> Result<Gguf> {
    let Some(place) = Place::of(path, &file.metadata)? else { return Ok(file) };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&place.end()) else {
        let (no, count, end) = (place.no + 1, place.count, place.end());
        let what = format!(
            "this is file {no} of {count} into which a GGUF file was divided: its name must end in {end}, and the others' like it, \
             all in one folder"
        );
        return Err(Error::weights(path, what));
    };
    let at = |no: u32| path.with_file_name(format!("{stem}{}", Place { no, ..place }.end()));
    // Ahead of reading any: what is missing is said once.
    let mut missing = Vec::new();
    for no in 0..place.count {
        if !files::exists(&at(no))? {
            missing.push(at(no));
        }
    }
    if !missing.is_empty() {
        return Err(Error::weights(path, lacking(place, &missing)));
    }
    let mut own = Some(file);
    let mut all: Option<Gguf> = None;
    for no in 0..place.count {
        let part = match own.take_if(|_| no == place.no) {
            Some(own) => own,
            None => Gguf::one(&at(no))?,
        };
        let expected = Place { no, ..place };
        if Place::of(&at(no), &part.metadata)? != Some(expected) {
            let what = format!("its metadata does not say that it is file {} of {}", no + 1, place.count);
            return wrong(&at(no), what);
        }
        match &mut all {
            None => all = Some(part),
            Some(all) => add(&at(no), all, part)?,
        }
    }
    let mut all = all.expect("two files at least");
    all.files = place.count as usize;
    match number(&at(0), &all.metadata, "tensors.count")? {
        Some(count) if count as usize != all.tensors.len() => {
            let what = format!(
                "{count} tensors were divided into files that hold {}: download them again",
                all.tensors.len()
            );
            wrong(&at(0), what)
        }
        _ => Ok(all),
    }
}

/// Which files are not there.
fn lacking(place: Place, missing: &[PathBuf]) -> String {
    let names: Vec<String> = missing
        .iter()
        .take(3)
        .filter_map(|path| Some(crate::error::shown(&path.file_name()?.to_string_lossy())))
        .collect();
    let more = match missing.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "this is file {} of {} into which a GGUF file was divided: {}{more} {} missing beside it",
        place.no + 1,
        place.count,
        names.join(", "),
        if missing.len() == 1 { "is" } else { "are" }
    )
}

/// The tensors of the file at `path`.
fn add(path: &Path, all: &mut Gguf, part: Gguf) -> Result<()> {
    for (name, tensor) in part.tensors {
        if let Some(other) = all.tensors.get(&name) {
            let name = crate::error::shown(&name);
            return wrong(path, format!("tensor {name} is in {}, too", other.file.path().display()));
        }
        all.tensors.insert(name, tensor);
    }
    Ok(())
}
