//! A safetensors file that is written while its tensors are being made.
//!
//! Where a tensor's bytes go is known before the first of them, so that several threads write each its own. Only the strings of
//! JSON that describe quantized tensors have a length that nobody knows before (a number in decimal digits is in them): they come
//! last, and the header, for which room was left, is written at the end. A file that was given up begins with a header of
//! length 0, which no reader takes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::weights::Dtype;
use crate::{Error, Result};

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Entry {
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

/// The file in the making.
#[derive(Debug)]
pub(super) struct TensorWriter {
    path: PathBuf,
    file: File,
    header_bytes: u64,
    /// In the order in which they lie.
    placed: Vec<(Entry, Range<u64>)>,
}

/// Where one tensor's bytes go.
#[derive(Clone, Debug)]
pub(super) struct Place {
    start: u64,
    bytes: u64,
}

impl TensorWriter {
    /// For `fixed`, and strings of these names and at most so many bytes each: [`TensorWriter::string`]. Nothing is written yet.
    pub fn new(path: &Path, file: File, mut fixed: Vec<Entry>, strings: &[(String, usize)]) -> TensorWriter {
        // As the format's own writer does it: wide numbers first, so that all are aligned.
        fixed.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
        let longest = strings.iter().map(|(name, bytes)| string(name, *bytes));
        let header = header(&place(fixed.iter().cloned().chain(longest)));
        let header_bytes = (header.len() as u64).next_multiple_of(8);
        TensorWriter { path: path.to_path_buf(), file, header_bytes, placed: place(fixed.into_iter()) }
    }

    /// The place of a tensor with which the writer was made.
    pub fn place(&self, name: &str) -> Result<Place> {
        let found = self.placed.iter().find(|(entry, _)| entry.name == name);
        let (_, range) = found.ok_or_else(|| Error::Internal(format!("no place for tensor {name}")))?;
        Ok(Place { start: 8 + self.header_bytes + range.start, bytes: range.end - range.start })
    }

    /// Writes bytes of a tensor from its byte `at` on; any thread may.
    pub fn write(&self, place: &Place, at: u64, bytes: &[u8]) -> Result<()> {
        self.check(place, at, bytes.len())?;
        self.file.write_all_at(bytes, place.start + at).map_err(self.failed("write"))
    }

    /// Reads back what was written.
    pub fn read(&self, place: &Place, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.check(place, at, bytes.len())?;
        self.file.read_exact_at(bytes, place.start + at).map_err(self.failed("read"))
    }

    /// Writes one of the strings, behind all that is there.
    pub fn string(&mut self, name: &str, text: &str) -> Result<()> {
        let start = self.end();
        self.placed.push((string(name, text.len()), start..start + text.len() as u64));
        let at = 8 + self.header_bytes + start;
        self.file.write_all_at(text.as_bytes(), at).map_err(self.failed("write"))
    }

    /// Writes the header; returns the bytes of all tensors, which are on the disk then.
    pub fn finish(self) -> Result<u64> {
        let mut bytes = header(&self.placed);
        if bytes.len() as u64 > self.header_bytes {
            return Err(Error::Internal(format!("no room for the header of {}", self.path.display())));
        }
        bytes.resize(self.header_bytes as usize, b' ');
        let written = self
            .file
            .write_all_at(&bytes, 8)
            .and_then(|()| self.file.write_all_at(&self.header_bytes.to_le_bytes(), 0))
            .and_then(|()| self.file.sync_all());
        written.map_err(self.failed("write"))?;
        Ok(self.end())
    }

    fn end(&self) -> u64 {
        self.placed.last().map_or(0, |(_, range)| range.end)
    }

    fn check(&self, place: &Place, at: u64, len: usize) -> Result<()> {
        if at.checked_add(len as u64).is_none_or(|end| end > place.bytes) {
            let what = format!("{len} bytes at {at} of a tensor of {}", place.bytes);
            return Err(Error::Internal(format!("{}: {what}", self.path.display())));
        }
        Ok(())
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        Error::io(action, &self.path)
    }
}

fn string(name: &str, bytes: usize) -> Entry {
    Entry { name: name.to_string(), dtype: Dtype::U8, shape: vec![bytes] }
}

/// One behind the other.
fn place(entries: impl Iterator<Item = Entry>) -> Vec<(Entry, Range<u64>)> {
    let mut end = 0;
    let placed = entries.map(|entry| {
        let start = end;
        end += entry.bytes();
        (entry, start..end)
    });
    placed.collect()
}

fn header(placed: &[(Entry, Range<u64>)]) -> Vec<u8> {
    // What torch's users expect to find there.
    let mut text = r#"{"__metadata__":{"format":"pt"}"#.to_string();
    for (Entry { name, dtype, shape }, range) in placed {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        text += &format!(
            r#",{}:{{"dtype":"{dtype}","shape":[{}],"data_offsets":[{},{}]}}"#,
            serde_json::Value::from(name.as_str()),
            shape.join(","),
            range.start,
            range.end
        );
    }
    text.push('}');
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::SafeTensors;

    #[test]
    fn a_file_is_none_before_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let fixed = [("b", Dtype::U8, vec![3, 1]), ("a\"\n", Dtype::F32, vec![2])];
        let fixed = fixed.map(|(name, dtype, shape)| Entry { name: name.to_string(), dtype, shape });
        let mut writer = TensorWriter::new(&path, file, fixed.to_vec(), &[("s".to_string(), 1000)]);
        let unfinished = |step: &str| {
            let refused = SafeTensors::open(&path).unwrap_err();
            assert!(matches!(refused, Error::Weights { .. }), "{step}: {refused}");
        };
        let (a, b) = (writer.place("a\"\n").unwrap(), writer.place("b").unwrap());
        unfinished("empty");
        writer.write(&b, 0, &[1, 2, 3]).unwrap();
        writer.write(&a, 4, &2.5f32.to_le_bytes()).unwrap();
        writer.write(&a, 0, &1.5f32.to_le_bytes()).unwrap();
        unfinished("numbers");
        writer.string("s", "{}").unwrap();
        unfinished("all");
        let beyond = writer.write(&b, 1, &[0; 3]).unwrap_err();
        assert!(matches!(beyond, Error::Internal(_)), "{beyond}");
        assert!(matches!(writer.place("c"), Err(Error::Internal(_))));
        assert_eq!(writer.finish().unwrap(), 13);

        let read = SafeTensors::open(&path).unwrap();
        assert_eq!(read.iter().count(), 3);
        assert_eq!(read.get("a\"\n").unwrap().read_f32().unwrap(), [1.5, 2.5]);
        for (name, shape, want) in [("b", &[3, 1][..], &[1, 2, 3][..]), ("s", &[2], b"{}")] {
            let tensor = read.get(name).unwrap();
            let mut bytes = vec![0; tensor.bytes as usize];
            tensor.read_at(0, &mut bytes).unwrap();
            assert_eq!((&tensor.shape[..], &bytes[..]), (shape, want), "{name}");
        }
    }
}
