//! A tensor of a file: what it is, where its bytes are, and how they are read. Every source of weights is made of these.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Dtype;
use super::adapters::Sum;
use super::bitsandbytes::Quantized;
use super::formats::Format;
use super::generated::Values;
use super::kept::MOST_SCALE;
use super::nf4::BLOCK;
use crate::{Error, Result, files};

/// An open file that tensors live in, or what one is computed from.
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
    Sum(Sum),
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

    /// In place of a file: one f32 tensor, of LoRAs.
    pub(super) fn sum(sum: Sum) -> TensorFile {
        TensorFile {
            path: sum.path().to_path_buf(),
            contents: Contents::Sum(sum),
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
        let file = match &self.contents {
            Contents::File(file) => file,
            Contents::Generated(_) => return Ok(None),
            Contents::Sum(sum) => return sum.stamp().map(Some),
        };
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

/// How a file holds the numbers of a tensor.
#[derive(Debug, Clone)]
pub enum Encoding {
    /// One by one, in the tensor's `dtype`.
    Plain,
    /// In NF4 as bitsandbytes stores it; reads as f32. `offset` is where its codes are.
    Nf4(Arc<Quantized>),
    /// In another format of few bits; reads as f32, each number times `scale`.
    Packed {
        /// Which.
        format: Format,
        /// 1 where there is none.
        scale: f32,
    },
}

/// Which rows of the stored tensor a tensor is, where it is not all of them: fused matrices are cut this way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Runs of rows, in the order in which they follow each other here.
    runs: Vec<Range<u64>>,
    /// Rows of the stored tensor.
    of: u64,
}

/// One tensor: what it is and where its bytes are. Cheap to clone; keeps its file open.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The type of one element as it reads.
    pub dtype: Dtype,
    /// Sizes, slowest-varying first.
    pub shape: Vec<usize>,
    /// The file.
    pub file: Arc<TensorFile>,
    /// Where in the file the first byte of the stored tensor is.
    pub offset: u64,
    /// How many bytes it reads as.
    pub bytes: u64,
    /// How the file holds it.
    pub encoding: Encoding,
    /// Set for a part of the stored tensor, and for one whose rows lie in another order.
    pub rows: Option<Arc<Rows>>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes of the file it takes: less than `bytes` where the file holds it in few bits.
    pub fn stored_bytes(&self) -> u64 {
        let packed = |format: Format| self.elements() as u64 / format.values() as u64 * format.bytes() as u64;
        match &self.encoding {
            Encoding::Plain => self.bytes,
            Encoding::Packed { format, .. } => packed(*format),
            Encoding::Nf4(quantized) => {
                let (of, rows) = match &self.rows {
                    Some(rows) => (rows.of.max(1), self.shape.first().map_or(1, |&rows| rows as u64)),
                    None => (1, 1),
                };
                quantized.stored_bytes() / of * rows
            }
        }
    }

    /// What the file holds it as, in a word: `BF16`, `NF4`, `F8_E4M3`, `Q4_K`.
    pub fn stored_as(&self) -> String {
        match &self.encoding {
            Encoding::Plain => self.dtype.to_string(),
            Encoding::Nf4(_) => "NF4".to_string(),
            Encoding::Packed { format, .. } => format.to_string(),
        }
    }

    /// Whether the file holds it in NF4.
    pub fn is_nf4(&self) -> bool {
        matches!(self.encoding, Encoding::Nf4(_))
    }

    /// Bytes of one index of the first axis: a row of a matrix, an element of a vector.
    pub fn row_bytes(&self) -> usize {
        match self.shape.first() {
            Some(&rows) if rows > 0 => (self.bytes / rows as u64) as usize,
            _ => self.bytes as usize,
        }
    }

    /// These runs of rows of a whole tensor, one behind the other, as a tensor. Nothing is read.
    ///
    /// # Errors
    /// [`Error::Internal`] for rows that it does not have, and for a part of a part.
    pub fn cut(&self, runs: Vec<Range<u64>>) -> Result<TensorInfo> {
        let of = self.shape.first().map_or(0, |&rows| rows as u64);
        if self.rows.is_some() || runs.iter().any(|run| run.start > run.end || run.end > of) {
            return Err(Error::Internal(format!("rows {runs:?} of the {of} of tensor {}", self.name)));
        }
        let rows: u64 = runs.iter().map(|run| run.end - run.start).sum();
        let mut shape = self.shape.clone();
        let bytes = rows * self.row_bytes() as u64;
        if let Some(first) = shape.first_mut() {
            *first = rows as usize;
        }
        Ok(TensorInfo { shape, bytes, rows: Some(Arc::new(Rows { runs, of })), ..self.clone() })
    }

    /// A line that is another where the numbers lie elsewhere in the file, or are to be read otherwise.
    pub(super) fn place(&self) -> String {
        let scale = match &self.encoding {
            Encoding::Packed { scale, .. } => scale.to_bits(),
            _ => 0,
        };
        let runs = self.rows.as_ref().map(|rows| &rows.runs);
        format!("{} {scale:08x} {} {} {runs:?}", self.stored_as(), self.dtype, self.offset)
    }

    /// Fills `buf` with the tensor's bytes from `start` on, little-endian. Any thread may call it.
    ///
    /// # Errors
    /// [`Error::Weights`] when the tensor ends before `buf` is full, [`Error::Io`] when reading fails,
    /// [`Error::Input`] for part of a value of a tensor that the file holds in few bits.
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
        self.runs(start, buf.len(), self.row_bytes(), |from, to| self.read_stored(from, &mut buf[to]))
    }

    /// Calls `read` for each run of the `len` units from `start` on, `row` of which are a row: with its place in the stored
    /// tensor, and with that among those asked for.
    fn runs(
        &self,
        start: u64,
        len: usize,
        row: usize,
        mut read: impl FnMut(u64, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let Some(rows) = &self.rows else { return read(start, 0..len) };
        let (mut before, mut at) = (0, 0);
        for run in &rows.runs {
            let units = (run.end - run.start) * row as u64;
            let next = start + at as u64;
            if at < len && next < before + units {
                let count = (len - at).min((before + units - next) as usize);
                read(run.start * row as u64 + (next - before), at..at + count)?;
                at += count;
            }
            before += units;
        }
        Ok(())
    }

    /// The same of the stored tensor.
    fn read_stored(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        let is_whole = start.is_multiple_of(4) && buf.len().is_multiple_of(4);
        match &self.encoding {
            Encoding::Plain => self.read_file(start, buf),
            _ if !is_whole => Err(Error::Input(format!("tensor {}: f32 values are read whole", self.name))),
            Encoding::Nf4(quantized) => quantized.read((start / 4) as usize, buf),
            Encoding::Packed { format, scale } => {
                format.read((start / 4) as usize, *scale, buf, |at, bytes| self.read_file(at, bytes))
            }
        }
    }

    /// Bytes as they are in the file, from byte `start` of the stored tensor on.
    fn read_file(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        self.file.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        match &self.file.contents {
            Contents::File(file) => files::read_exact_at(file, &self.file.path, buf, self.offset + start),
            Contents::Generated(values) => values.read_bf16(start, buf),
            Contents::Sum(sum) => sum.read(start, buf),
        }
    }

    /// Of a tensor in NF4 whose rows are whole quant blocks, rows from `first` on: absmax as little-endian f32, and codes.
    ///
    /// # Errors
    /// [`Error::Weights`] for absmax that is negative or not finite, [`Error::Io`].
    pub(super) fn read_nf4(
        &self,
        first: usize,
        row_len: usize,
        absmax: &mut [u8],
        codes: &mut [u8],
    ) -> Result<()> {
        let Encoding::Nf4(quantized) = &self.encoding else {
            return Err(Error::Internal(format!("{} is not in NF4", self.name)));
        };
        let count = codes.len() * 2 / row_len.max(1);
        self.runs(first as u64, count, 1, |row, to| {
            let of = |bytes: usize| to.start * bytes..to.end * bytes;
            let blocks = row_len / BLOCK;
            quantized.read_absmax(row as usize * blocks, &mut absmax[of(4 * blocks)])?;
            quantized.read_codes(row * (row_len / 2) as u64, &mut codes[of(row_len / 2)])
        })
    }

    /// Of a tensor in this format, rows from `first` on, as many as `out` holds, as they are in the file; returns their scale.
    ///
    /// # Errors
    /// [`Error::Weights`] for a scale of fp8 that kernels cannot take, [`Error::Io`].
    pub(super) fn read_kept(&self, format: Format, first: usize, out: &mut [u8]) -> Result<f32> {
        let scale = match self.encoding {
            Encoding::Packed { format: held, scale } if held == format => scale,
            _ => return Err(Error::Internal(format!("{} is not in {format}", self.name))),
        };
        if scale >= MOST_SCALE {
            let what = format!(
                "tensor {} has the scale {scale}: fp8 is kept with scales below {MOST_SCALE}; load it in NF4 or bf16",
                self.name
            );
            return Err(Error::weights(&self.file.path, what));
        }
        let row = self.shape.last().map_or(0, |row_len| row_len / format.values() * format.bytes());
        let count = out.len() / row.max(1);
        self.runs(first as u64, count, 1, |from, to| {
            self.read_file(from * row as u64, &mut out[to.start * row..to.end * row])
        })?;
        Ok(scale)
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
    pub(crate) fn check_finite<T: Finite>(&self, values: &[T]) -> Result<()> {
        if !T::any_is_not_finite(values) {
            return Ok(());
        }
        let count = values.chunks(1).filter(|value| T::any_is_not_finite(value)).count();
        Err(self.not_finite(count as u64))
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
pub(crate) trait Finite: Sized {
    /// Whether there is a NaN or an infinity. Every number is looked at: without a way out early, and in lanes as wide as the
    /// numbers, the loop becomes vectors.
    fn any_is_not_finite(values: &[Self]) -> bool;
}

impl Finite for f32 {
    fn any_is_not_finite(values: &[f32]) -> bool {
        const EXPONENT: u32 = 0x7f80_0000;
        values.iter().fold(0, |any, value| any | u32::from(value.to_bits() & EXPONENT == EXPONENT)) != 0
    }
}

impl Finite for half::bf16 {
    fn any_is_not_finite(values: &[half::bf16]) -> bool {
        const EXPONENT: u16 = 0x7f80;
        values.iter().fold(0, |any, value| any | u16::from(value.to_bits() & EXPONENT == EXPONENT)) != 0
    }
}
