//! A tensor of a file: what it is, where its bytes are, and how they are read. Every source of weights is made of these.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Dtype;
use super::bitsandbytes::Quantized;
use super::generated::Values;
use crate::{Error, Result};

/// An open file that tensors live in, or what computes one.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    contents: Contents,
    /// Of tensors, so far.
    bytes_read: AtomicU64,
}

#[derive(Debug)]
enum Contents {
    File(File),
    Generated(Values),
}

impl TensorFile {
    /// A file that has been opened.
    pub(super) fn open(path: &Path, file: File) -> TensorFile {
        TensorFile { path: path.to_path_buf(), contents: Contents::File(file), bytes_read: AtomicU64::new(0) }
    }

    /// In place of a file: one bf16 tensor.
    pub(super) fn generated(values: Values) -> TensorFile {
        TensorFile {
            path: PathBuf::from("generated weights"),
            contents: Contents::Generated(values),
            bytes_read: AtomicU64::new(0),
        }
    }

    /// Removes its name, if it is still the one of this file.
    pub(super) fn remove(&self) {
        let Contents::File(file) = &self.contents else { return };
        let same = |a: Metadata, b: Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        if file.metadata().ok().zip(self.path.metadata().ok()).is_some_and(|(a, b)| same(a, b)) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// A line that is another when the file is: its name, length, and the time of its last change.
    pub(super) fn stamp(&self) -> Result<Option<String>> {
        let Contents::File(file) = &self.contents else { return Ok(None) };
        let found = file.metadata().map_err(Error::io("read", &self.path))?;
        // Components have files of one name.
        let mut last = self.path.components().rev().map(|part| part.as_os_str().to_string_lossy());
        let (name, folder) = (last.next().unwrap_or_default(), last.next().unwrap_or_default());
        Ok(Some(format!("{folder}/{name} {} {}.{}\n", found.len(), found.mtime(), found.mtime_nsec())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of its tensors that were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

/// One stored tensor: what it is and where its bytes are. Cheap to clone; keeps its file open.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The type of one element.
    pub dtype: Dtype,
    /// Sizes, slowest-varying first.
    pub shape: Vec<usize>,
    /// The file.
    pub file: Arc<TensorFile>,
    /// Where in the file its first byte is.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// Set for a tensor that the file holds in 4 bits: it reads as f32, and `offset` is where its codes are.
    pub quantized: Option<Arc<Quantized>>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes of the file it takes: less than `bytes` where the file holds it in 4 bits.
    pub fn stored_bytes(&self) -> u64 {
        self.quantized.as_ref().map_or(self.bytes, |quantized| quantized.stored_bytes())
    }

    /// Bytes of one index of the first axis: a row of a matrix, an element of a vector.
    pub fn row_bytes(&self) -> usize {
        match self.shape.first() {
            Some(&rows) if rows > 0 => (self.bytes / rows as u64) as usize,
            _ => self.bytes as usize,
        }
    }

    /// Fills `buf` with the tensor's bytes from `start` on, little-endian as stored. Any thread may call it.
    ///
    /// # Errors
    /// [`Error::Weights`] when the tensor ends before `buf` is full, [`Error::Io`] when reading fails,
    /// [`Error::Input`] for part of a value of a quantized tensor.
    pub fn read_at(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        if start.checked_add(buf.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(Error::weights(
                &self.file.path,
                format!(
                    "tensor {}: {} bytes asked for at byte {start}, but it has {}",
                    self.name,
                    buf.len(),
                    self.bytes
                ),
            ));
        }
        if let Some(quantized) = &self.quantized {
            if !start.is_multiple_of(4) || !buf.len().is_multiple_of(4) {
                return Err(Error::Input(format!("tensor {}: f32 values are read whole", self.name)));
            }
            return quantized.read((start / 4) as usize, buf);
        }
        self.file.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        match &self.file.contents {
            Contents::File(file) => {
                file.read_exact_at(buf, self.offset + start).map_err(Error::io("read", &self.file.path))
            }
            Contents::Generated(values) => values.read_bf16(start, buf),
        }
    }

    /// All of it, as f32. For small tensors and tests; big ones are better read in pieces.
    ///
    /// # Errors
    /// Those of [`TensorInfo::read_at`] and [`super::convert::to_f32`].
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        let mut bytes = vec![0; self.bytes as usize];
        self.read_at(0, &mut bytes)?;
        let mut out = vec![0.0; self.elements()];
        super::convert::to_f32(self.dtype, &bytes, &mut out)?;
        self.check_finite(&out)?;
        Ok(out)
    }
}

impl TensorInfo {
    /// Refuses values of this tensor that are not finite.
    pub(crate) fn check_finite<T: Copy + Finite>(&self, values: &[T]) -> Result<()> {
        // Counted, not searched: without a way out early the loop becomes vectors.
        let count = values.iter().filter(|value| !value.is_finite()).count();
        if count == 0 { Ok(()) } else { Err(self.not_finite(count as u64)) }
    }

    /// The refusal of a tensor of nothing but zeros: a file that was made at its full size and then not filled.
    pub(crate) fn all_zero(&self) -> Error {
        let what = format!("every number of tensor {} is 0: download the file again", self.name);
        Error::weights(self.file.path(), what)
    }

    /// The refusal of so many.
    pub(crate) fn not_finite(&self, count: u64) -> Error {
        let what = format!(
            "{count} of the numbers of tensor {} are not finite: the file is damaged, or was converted wrongly",
            self.name
        );
        Error::weights(self.file.path(), what)
    }
}

/// Numbers as weights are kept.
pub(crate) trait Finite {
    /// Neither NaN nor infinite.
    fn is_finite(&self) -> bool;
}

impl Finite for f32 {
    fn is_finite(&self) -> bool {
        f32::is_finite(*self)
    }
}

impl Finite for half::bf16 {
    fn is_finite(&self) -> bool {
        half::bf16::is_finite(*self)
    }
}
