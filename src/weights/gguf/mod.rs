//! The GGUF container, versions 2 and 3, little-endian.
//!
//! The format, as bytes: `GGUF`; u32 version; u64 number of tensors; u64 number of metadata; for each of these a string (the key),
//! a u32 (its type) and the value; for each tensor a string (its name), u32 number of dimensions, u64 each of them (the
//! fastest-varying first, the reverse of everywhere else here), u32 type, u64 offset; padding to the alignment; then the data, from
//! which offsets count, each a multiple of the alignment (`general.alignment`, 32 where it is absent). A string is its u64
//! length and so many bytes; an array the u32 type of its values, their u64 number, and the values.
//!
//! Ways to be malformed, each an [`Error::Weights`]: another version, or big-endian; a header that ends before it says, or is
//! out of all proportion (numbers of tensors, metadata and dimensions, lengths of names and strings, arrays in arrays); types of
//! metadata that there are none of; an alignment that is no power of two; a name that comes twice; sizes beyond 64 bits; rows
//! that are no whole number of blocks; offsets that are not aligned; tensors that overlap or end beyond the file. A type that
//! is sound but has no code here is [`Error::Unsupported`], by its name.
//!
//! Which names tensors have is a matter of [`super::layouts`]; what their blocks mean is in [`blocks`]; large files are divided
//! into several (`split.rs`). Metadata decides nothing but that and the alignment: FLUX files of several makers differ in it, and
//! in `general.architecture`, too.
//!
//! Source: ggml, `docs/gguf.md`, MIT.

pub mod blocks;
pub(crate) mod codes;
mod split;

use std::collections::HashMap;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use super::Dtype;
use super::formats::Format;
use super::tensor::{Encoding, TensorFile, TensorInfo};
use crate::{Error, Result, files};

/// What a file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Of a header: T5's, with its vocabulary, has 2 MB.
const MOST_HEADER_BYTES: u64 = 100_000_000;
/// Of tensors and of metadata: the largest models have some ten thousand.
const MOST_ENTRIES: u64 = 1 << 18;
/// Of names of tensors.
const MOST_NAME_BYTES: u64 = 1 << 12;
/// As the format has it.
const MOST_KEY_BYTES: u64 = (1 << 16) - 1;
/// ggml's own limit.
const MOST_DIMENSIONS: u32 = 4;
/// Of arrays in arrays; ggml itself has none.
const MOST_DEPTH: u32 = 4;
/// Of a string that is kept.
const MOST_KEPT_BYTES: u64 = 1 << 10;
const USUAL_ALIGNMENT: u64 = 32;

/// A GGUF file, alone or in several, its headers read and checked.
#[derive(Debug)]
pub struct Gguf {
    /// 2 or 3; of the first file.
    pub version: u32,
    /// How many there are.
    pub files: usize,
    /// Numbers and short strings of the metadata called `general.*` and `split.*`, as text; of the first file.
    pub metadata: HashMap<String, String>,
    /// By name.
    pub tensors: HashMap<String, TensorInfo>,
}

impl Gguf {
    /// Opens `path` and reads its header; where it is one of the files into which a larger one was divided, theirs, too.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Weights`] when it is malformed (see the module) or a file that belongs to it
    /// is missing, [`Error::Unsupported`] for a type of tensors that there is no code for.
    pub fn open(path: &Path) -> Result<Gguf> {
        split::whole(path, Gguf::one(path)?)
    }

    /// The file at `path` alone.
    fn one(path: &Path) -> Result<Gguf> {
        let (file, file_bytes) = files::open(path)?;
        let reader = files::Reader { file: file.try_clone().map_err(Error::io("read", path))?, path };
        let mut header = Header {
            path,
            reader: BufReader::with_capacity(1 << 16, reader.take(MOST_HEADER_BYTES.min(file_bytes))),
            at: 0,
            is_cut: file_bytes > MOST_HEADER_BYTES,
        };
        let version = header.begin()?;
        let (num_tensors, num_metadata) = (header.count("tensors")?, header.count("metadata")?);
        let (mut metadata, mut alignment) = (HashMap::new(), USUAL_ALIGNMENT);
        for _ in 0..num_metadata {
            let key = header.string(MOST_KEY_BYTES, "a key")?;
            let kind = header.u32()?;
            let value = header.value(kind, 0)?;
            if key == "general.alignment" {
                alignment = header.alignment(value.as_deref())?;
            }
            let is_kept = ["general.", split::PREFIX].iter().any(|prefix| key.starts_with(prefix));
            if let Some(value) = value.filter(|_| is_kept) {
                metadata.insert(key, value);
            }
        }
        let described: Vec<Described> =
            (0..num_tensors).map(|_| header.tensor(alignment)).collect::<Result<_>>()?;
        let data = header.at.next_multiple_of(alignment);
        check_places(path, &described, data, file_bytes)?;
        let file = Arc::new(TensorFile::open(path, file));
        let mut tensors = HashMap::with_capacity(described.len());
        for tensor in described {
            let name = tensor.name.clone();
            if tensors.insert(name, tensor.into_info(&file, data)).is_some() {
                return Err(Error::weights(path, "a malformed GGUF file: it names a tensor twice"));
            }
        }
        Ok(Gguf { version, files: 1, metadata, tensors })
    }
}

/// A tensor as the header has it.
#[derive(Debug)]
struct Described {
    name: String,
    /// Slowest-varying first.
    shape: Vec<usize>,
    kind: Kind,
    /// From the beginning of the data.
    offset: u64,
    /// In the file.
    bytes: u64,
    elements: u64,
}

impl Described {
    fn into_info(self, file: &Arc<TensorFile>, data: u64) -> TensorInfo {
        let (dtype, encoding, bytes) = match self.kind {
            Kind::Plain(dtype) => (dtype, Encoding::Plain, self.bytes),
            // Its blocks are not larger than what they mean, which was counted.
            Kind::Blocks(format) => (Dtype::F32, Encoding::Packed { format, scale: 1.0 }, self.elements * 4),
        };
        TensorInfo {
            name: self.name,
            dtype,
            shape: self.shape,
            file: file.clone(),
            offset: data + self.offset,
            bytes,
            encoding,
            rows: None,
        }
    }
}

/// What a tensor's numbers are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain(Dtype),
    Blocks(Format),
}

impl Kind {
    /// By ggml's number; by its name where there is no code for it.
    fn of(number: u32) -> Result<Kind, String> {
        Ok(match number {
            0 => Kind::Plain(Dtype::F32),
            1 => Kind::Plain(Dtype::F16),
            30 => Kind::Plain(Dtype::BF16),
            2 => Kind::Blocks(Format::Q4_0),
            3 => Kind::Blocks(Format::Q4_1),
            6 => Kind::Blocks(Format::Q5_0),
            7 => Kind::Blocks(Format::Q5_1),
            8 => Kind::Blocks(Format::Q8_0),
            10 => Kind::Blocks(Format::Q2K),
            11 => Kind::Blocks(Format::Q3K),
            12 => Kind::Blocks(Format::Q4K),
            13 => Kind::Blocks(Format::Q5K),
            14 => Kind::Blocks(Format::Q6K),
            9 => return Err("Q8_1".to_string()),
            15 => return Err("Q8_K".to_string()),
            16..=23 | 29 => {
                let names = ["IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"];
                return Err(names.get(number as usize - 16).unwrap_or(&"IQ1_M").to_string());
            }
            // Ids of positions and the like; no weights.
            24 => Kind::Plain(Dtype::I8),
            25 => Kind::Plain(Dtype::I16),
            26 => Kind::Plain(Dtype::I32),
            27 => Kind::Plain(Dtype::I64),
            28 => Kind::Plain(Dtype::F64),
            34 | 35 => return Err(["TQ1_0", "TQ2_0"][number as usize - 34].to_string()),
            39 => return Err("MXFP4".to_string()),
            other => return Err(format!("{other}, which is not known here")),
        })
    }

    /// Numbers and bytes of a block.
    fn block(self) -> (u64, u64) {
        match self {
            Kind::Plain(dtype) => (1, dtype.bitsize() as u64 / 8),
            Kind::Blocks(format) => (format.values() as u64, format.bytes() as u64),
        }
    }
}

/// A header while it is read.
struct Header<'a> {
    path: &'a Path,
    reader: BufReader<std::io::Take<files::Reader<'a>>>,
    /// Bytes read so far.
    at: u64,
    /// The file goes on where no header does.
    is_cut: bool,
}

impl Header<'_> {
    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::weights(self.path, format!("a malformed GGUF file: {what}"))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof if self.is_cut => {
                self.wrong(format!("its header is longer than {MOST_HEADER_BYTES} bytes"))
            }
            ErrorKind::UnexpectedEof => self.wrong("it ends within its header: truncated; download it again"),
            _ => Error::io("read", self.path)(e),
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// Magic and version.
    fn begin(&mut self) -> Result<u32> {
        let magic: [u8; 4] = self.bytes()?;
        if magic != *MAGIC {
            return Err(self.wrong("it does not begin with GGUF"));
        }
        match self.u32()? {
            version @ (2 | 3) => Ok(version),
            1 => Err(self.wrong("version 1: only 2 and 3 are read; convert it anew")),
            version if version & 0xffff == 0 && version > 0 => {
                Err(self.wrong("it is big-endian: only little-endian files are read"))
            }
            version => Err(self.wrong(format!("version {version}: only 2 and 3 are read"))),
        }
    }

    /// How many of something.
    fn count(&mut self, what: &str) -> Result<u64> {
        let count = self.u64()?;
        if count > MOST_ENTRIES {
            return Err(self.wrong(format!("{count} {what}: expected at most {MOST_ENTRIES}")));
        }
        Ok(count)
    }

    /// A string that is kept.
    fn string(&mut self, most: u64, what: &str) -> Result<String> {
        let len = self.u64()?;
        if len > most {
            return Err(self.wrong(format!("{what} of {len} bytes: expected at most {most}")));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.wrong(format!("{what} is no UTF-8")))
    }

    /// Reads on without keeping anything.
    fn skip(&mut self, mut bytes: u64) -> Result<()> {
        let mut scratch = [0; 4096];
        while bytes > 0 {
            let now = bytes.min(scratch.len() as u64);
            self.fill(&mut scratch[..now as usize])?;
            bytes -= now;
        }
        Ok(())
    }

    /// A value of metadata, as text where it is a number or a short string.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Option<String>> {
        Ok(Some(match kind {
            0 => u8::from_le_bytes(self.bytes()?).to_string(),
            1 => i8::from_le_bytes(self.bytes()?).to_string(),
            2 => u16::from_le_bytes(self.bytes()?).to_string(),
            3 => i16::from_le_bytes(self.bytes()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.bytes()?).to_string(),
            6 => f32::from_le_bytes(self.bytes()?).to_string(),
            7 => (self.bytes::<1>()? != [0]).to_string(),
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.bytes()?).to_string(),
            12 => f64::from_le_bytes(self.bytes()?).to_string(),
            8 => {
                let len = self.u64()?;
                if len > MOST_KEPT_BYTES {
                    return self.skip(len).map(|()| None);
                }
                let mut bytes = vec![0; len as usize];
                self.fill(&mut bytes)?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
            9 => return self.array(depth).map(|()| None),
            other => return Err(self.wrong(format!("metadata of type {other}, of which there is none"))),
        }))
    }

    /// Passes over an array. It is not longer than the header, of which each value takes a byte at least.
    fn array(&mut self, depth: u32) -> Result<()> {
        if depth == MOST_DEPTH {
            return Err(self.wrong(format!("arrays in arrays, deeper than {MOST_DEPTH}")));
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 | 9 => {
                for _ in 0..count {
                    match kind {
                        8 => {
                            let len = self.u64()?;
                            self.skip(len)?;
                        }
                        _ => self.array(depth + 1)?,
                    }
                }
                return Ok(());
            }
            other => return Err(self.wrong(format!("an array of type {other}, of which there is none"))),
        };
        let bytes = count.checked_mul(size).ok_or_else(|| self.wrong(format!("an array of {count}")))?;
        self.skip(bytes)
    }

    fn alignment(&self, value: Option<&str>) -> Result<u64> {
        let alignment = value.and_then(|value| value.parse::<u64>().ok());
        // Larger than a header is none that means something.
        alignment.filter(|a| a.is_power_of_two() && *a <= MOST_HEADER_BYTES).ok_or_else(|| {
            self.wrong(format!(
                "general.alignment is {}: expected a power of two",
                value.unwrap_or("no number")
            ))
        })
    }

    fn tensor(&mut self, alignment: u64) -> Result<Described> {
        let name = self.string(MOST_NAME_BYTES, "a tensor's name")?;
        let dimensions = self.u32()?;
        if dimensions > MOST_DIMENSIONS {
            let most = MOST_DIMENSIONS;
            return Err(
                self.wrong(format!("tensor {name} has {dimensions} dimensions: expected at most {most}"))
            );
        }
        let mut sizes = Vec::new();
        for _ in 0..dimensions {
            sizes.push(self.u64()?);
        }
        let number = self.u32()?;
        let offset = self.u64()?;
        let kind = Kind::of(number).map_err(|kind| {
            Error::Unsupported(format!(
                "{}: tensor {name} has the type {kind}; F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, \
                 Q3_K and Q2_K are read: use a file of these",
                self.path.display()
            ))
        })?;
        let (values, block_bytes) = kind.block();
        let row = sizes.first().copied().unwrap_or(1);
        if !row.is_multiple_of(values) {
            return Err(
                self.wrong(format!("tensor {name} has rows of {row}: no whole number of blocks of {values}"))
            );
        }
        // As f32 it must be countable, too.
        let elements = sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
        let elements = elements.filter(|n| n.checked_mul(8).is_some_and(|bytes| bytes < 1 << 62));
        let elements =
            elements.ok_or_else(|| self.wrong(format!("tensor {name} has the sizes {sizes:?}")))?;
        if !offset.is_multiple_of(alignment) {
            return Err(self.wrong(format!("tensor {name} begins at {offset}: no multiple of {alignment}")));
        }
        let bytes = elements / values * block_bytes;
        let shape = sizes.iter().rev().map(|&size| size as usize).collect();
        Ok(Described { name, shape, kind, offset, bytes, elements })
    }
}

/// Refuses tensors that end beyond the file, or lie in each other.
fn check_places(path: &Path, tensors: &[Described], data: u64, file_bytes: u64) -> Result<()> {
    let wrong = |what: String| Err(Error::weights(path, format!("a malformed GGUF file: {what}")));
    let mut places: Vec<&Described> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    places.sort_by_key(|tensor| tensor.offset);
    let (mut end, mut before) = (0, "");
    for tensor in places {
        let Described { name, offset, bytes, .. } = tensor;
        if *offset < end {
            return wrong(format!("tensors {before} and {name} overlap"));
        }
        end = match offset.checked_add(*bytes) {
            Some(end) if end.checked_add(data).is_some_and(|end| end <= file_bytes) => end,
            _ => return wrong(format!("tensor {name} ends beyond the file: truncated; download it again")),
        };
        before = name;
    }
    Ok(())
}
