//! Bounded reads of regular files.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result, json};

/// What a file is for, which says how long it may be and who mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A config file of a model: a few KB, with added tokens some hundred.
    Config,
    /// A tokenizer with its vocabulary: `tokenizer.json` of FLUX.1's T5 has 2.4 MB; the blow-up of JSON in memory is tenfold.
    Tokenizer,
    /// The index of a model's shards: 120 KB for FLUX.1's transformer.
    Index,
    /// A commit's name in the Hugging Face cache.
    Reference,
    /// Prompts that the user wrote.
    Prompts,
    /// Times that an earlier run has written.
    Times,
    /// Which pictures of a batch an earlier run has drawn.
    Manifest,
    /// A picture that an earlier run has written: the largest contact sheet, of noise, is no larger.
    Picture,
}

impl Kind {
    /// Bytes that it may have at most: far more than any real one, and little memory.
    pub fn limit_bytes(self) -> u64 {
        match self {
            Kind::Config => 4 << 20,
            Kind::Tokenizer => 16 << 20,
            Kind::Index => 32 << 20,
            Kind::Reference => 4 << 10,
            Kind::Prompts => 4 << 20,
            Kind::Times | Kind::Manifest => 64 << 20,
            Kind::Picture => 2 << 30,
        }
    }

    fn wrong(self, path: &Path, what: &str) -> Error {
        match self {
            Kind::Prompts | Kind::Times | Kind::Manifest | Kind::Picture => {
                Error::Input(format!("{}: {what}", path.display()))
            }
            _ => Error::weights(path, what),
        }
    }
}

/// Whether there is an entry of that name: a link counts, wherever it leads.
///
/// # Errors
/// [`Error::Io`] when that cannot be told.
pub fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// A regular file for reading, and its bytes. Links are followed; a FIFO is not waited for.
///
/// # Errors
/// [`Error::Io`] when it is not there or may not be read, [`Error::Weights`] for what is no regular file and for a link
/// that leads nowhere.
pub fn open(path: &Path) -> Result<(File, u64)> {
    open_as(path, |path, what| Error::weights(path, what))
}

fn open_as(path: &Path, wrong: impl Fn(&Path, &str) -> Error) -> Result<(File, u64)> {
    let open = |()| OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let opened = may_fail(path).and_then(open);
    let file = opened.map_err(|source| match (source.kind(), path.read_link()) {
        (ErrorKind::NotFound, Ok(to)) => {
            wrong(path, &format!("a link to {}, which is missing; fetch it again", to.display()))
        }
        // What a socket answers.
        _ if source.raw_os_error() == Some(libc::ENXIO) => wrong(path, "expected a regular file"),
        _ => Error::io("read", path)(source),
    })?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    let kind = metadata.file_type();
    let found = if kind.is_file() {
        return Ok((file, metadata.len()));
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else {
        "a device"
    };
    Err(wrong(path, &format!("this is {found}; expected a regular file")))
}

/// Where tests let reads fail.
fn may_fail(_path: &Path) -> std::io::Result<()> {
    #[cfg(feature = "check")]
    super::injection::due(_path)?;
    Ok(())
}

/// As much of `bytes` as `file`, which is the one at `path`, has from byte `at` on.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn read_at(file: &File, path: &Path, bytes: &mut [u8], at: u64) -> Result<usize> {
    may_fail(path).and_then(|()| file.read_at(bytes, at)).map_err(Error::io("read", path))
}

/// All of `bytes` from byte `at` of `file` on, which is the one at `path`.
///
/// # Errors
/// [`Error::Io`], also when it is shorter.
pub(crate) fn read_exact_at(file: &File, path: &Path, bytes: &mut [u8], at: u64) -> Result<()> {
    may_fail(path).and_then(|()| file.read_exact_at(bytes, at)).map_err(Error::io("read", path))
}

/// A file that is read from its beginning on.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub file: File,
    pub path: &'a Path,
}

impl Read for Reader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        may_fail(self.path)?;
        self.file.read(bytes)
    }
}

/// All of a regular file.
///
/// # Errors
/// Those of [`open`], and the same for a file beyond its limit; [`Error::Input`] in place of [`Error::Weights`] for files
/// that are no part of a model.
pub fn read(path: &Path, kind: Kind) -> Result<Vec<u8>> {
    let (file, len) = open_as(path, |path, what| kind.wrong(path, what))?;
    let limit = kind.limit_bytes();
    let mut bytes = Vec::new();
    if len <= limit {
        // It may grow meanwhile, and files of /proc say 0.
        Reader { file, path }.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    }
    let len = len.max(bytes.len() as u64);
    if len > limit {
        return Err(kind.wrong(path, &format!("{len} bytes or more; expected at most {limit}")));
    }
    match kind {
        Kind::Prompts | Kind::Reference => Ok(bytes),
        _ => match super::foreign(&bytes[..bytes.len().min(super::FOREIGN_BYTES)]) {
            Some(what) => Err(kind.wrong(path, what)),
            None => Ok(bytes),
        },
    }
}

/// Reads a JSON file; what is malformed is named with line and column.
///
/// # Errors
/// Those of [`read`], and [`Error::Weights`] for what is not the JSON that is expected.
pub fn read_json<T: DeserializeOwned>(path: &Path, kind: Kind) -> Result<T> {
    let bytes = read(path, kind)?;
    let malformed = |e| Error::weights(path, format!("malformed JSON: {e}")).because(e);
    json::check(&bytes, &json::CONFIG).map_err(malformed)?;
    serde_json::from_slice(&bytes).map_err(malformed)
}
