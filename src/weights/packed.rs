//! The packed cache: a model's weights as the device holds them, in one file, so that the next load reads, looks at checksums and
//! copies, and does nothing else.
//!
//! The file is a safetensors file of bytes, a tensor for each unit of weights in the order in which networks ask for them; its
//! metadata says what it is of ([`Packed::of`]) and has a CRC-32 of every piece of [`Staging::slot_bytes`]. A file that is of
//! something else, or damaged, is made again; nobody sees one that is not whole.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::upload::{Destination, Staging};
use super::{SafeTensors, Source, TensorInfo, ahead};
use crate::device::{Device, HostBuffer, StreamId, View};
use crate::files::{self, Temporary};
use crate::models::layers::Weight;
use crate::program::{Home, HomePlace};
use crate::{Error, Result};

/// Of how weights lie in their places: goes up when a kernel wants another order, so that no older file is taken for a new one.
pub const LAYOUT_VERSION: u32 = 3;

/// What counts as one line of a CRC.
const CRC_DIGITS: usize = 8;

/// A file of the cache, there or not.
#[derive(Debug)]
pub(crate) struct Packed {
    path: PathBuf,
    /// Whatever its metadata must say, but for checksums.
    identity: BTreeMap<&'static str, String>,
    /// Of a piece with a checksum of its own.
    piece: usize,
}

/// Why there are no weights in it.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It has not been made.
    Absent,
    /// It is of something else, or damaged, or cannot be read.
    Useless(Error),
    /// Nothing that another file would help against.
    Failed(Error),
}

/// One that has been opened; nothing of it is believed before its checksum.
#[derive(Debug)]
pub(crate) struct PackedFile {
    /// In the order of the homes.
    units: Vec<PackedUnit>,
    /// Bytes of a piece; the last of a unit may be shorter.
    piece: usize,
}

#[derive(Debug)]
struct PackedUnit {
    bytes: TensorInfo,
    /// Of its pieces.
    crcs: Vec<u32>,
}

/// One of a file's pieces, and where it goes.
struct Piece<'a> {
    unit: usize,
    index: usize,
    to: Place<'a>,
}

enum Place<'a> {
    Arena(usize),
    /// Read where it stays.
    Pinned(&'a mut [u8]),
}

impl PackedFile {
    /// Pieces of a unit.
    pub fn num_pieces(&self, unit: usize) -> usize {
        self.units[unit].crcs.len()
    }

    /// Where a piece of a unit is in it.
    pub fn piece(&self, unit: usize, index: usize) -> Range<usize> {
        let bytes = self.units[unit].bytes.bytes as usize;
        index * self.piece..((index + 1) * self.piece).min(bytes)
    }

    /// Removes it, unless there is another one in its place: what is damaged is made again by the next load.
    pub fn remove(&self) {
        if let Some(unit) = self.units.first() {
            unit.bytes.file.remove();
        }
    }

    /// Reads a piece to the beginning of `to`.
    ///
    /// # Errors
    /// [`Error::Weights`] when it is not what was written, [`Error::Io`].
    pub fn read(&self, unit: usize, index: usize, to: &mut [u8]) -> Result<()> {
        // So little at a time that what has been read is still near when it is summed up.
        const NEAR: usize = 256 << 10;
        let (range, PackedUnit { bytes, crcs }) = (self.piece(unit, index), &self.units[unit]);
        let mut crc = crc32fast::Hasher::new();
        for (i, part) in to[..range.len()].chunks_mut(NEAR).enumerate() {
            bytes.read_at((range.start + i * NEAR) as u64, part)?;
            crc.update(part);
        }
        if crc.finalize() == crcs[index] {
            return Ok(());
        }
        let what = format!("{}: bytes {range:?} are damaged; the next load makes it again", bytes.name);
        Err(Error::weights(bytes.file.path(), what))
    }
}

impl Packed {
    /// The file in `dir` of these weights of `source`. `dir` is created where it is not there.
    ///
    /// # Errors
    /// [`Error::Io`] when `dir` cannot be created, or a file of the source not be read.
    pub fn of(
        dir: &Path,
        source: &Source,
        weights: &[Weight],
        homes: &[Home],
        staging: &Staging,
    ) -> Result<Packed> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        Temporary::clear_abandoned(dir);
        let model = source.digest()?;
        let mut layout = Sha256::new();
        for weight in weights {
            layout.update(format!("{} {} {:?}\n", weight.part, weight.needed.name, weight.target));
        }
        for Home { unit, .. } in homes {
            layout.update(format!("{} {:?}\n", unit.name, unit.image));
        }
        let layout: String = layout.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = dir.join(format!("{model}-{layout}.safetensors"));
        let identity = BTreeMap::from([
            ("format", format!("schnell {LAYOUT_VERSION}")),
            ("model", model),
            ("layout", layout),
            ("files", source.stamps()?),
            ("piece", staging.slot_bytes().to_string()),
        ]);
        Ok(Packed { path, identity, piece: staging.slot_bytes() })
    }

    /// Where it is, or would be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether it is there, and of the right thing; its bytes are looked at as they are read.
    ///
    /// # Errors
    /// Those of [`Unread`].
    pub fn open(&self, homes: &[Home]) -> Result<PackedFile, Unread> {
        if !files::exists(&self.path).map_err(Unread::Failed)? {
            return Err(Unread::Absent);
        }
        let useless = |why: String| Unread::Useless(Error::weights(&self.path, why));
        let file = SafeTensors::open(&self.path).map_err(Unread::Useless)?;
        for (name, expected) in &self.identity {
            match file.metadata().get(*name) {
                Some(found) if found == expected => {}
                _ if *name == "files" => {
                    return Err(useless("the model's files have changed since".to_string()));
                }
                found => {
                    let found = found.map_or("none", String::as_str);
                    return Err(useless(format!("its {name} is {found}, not {expected}")));
                }
            }
        }
        let unit = |(i, Home { unit, .. }): (usize, &Home)| {
            let name = stored_name(i, &unit.name);
            let bytes = file.get(&name).filter(|tensor| tensor.bytes == unit.image.len() as u64)?;
            let crcs = file.metadata().get(&name).and_then(|text| checksums(text))?;
            (crcs.len() == unit.image.len().div_ceil(self.piece))
                .then(|| PackedUnit { bytes: bytes.clone(), crcs })
        };
        let units: Option<Vec<PackedUnit>> = homes.iter().enumerate().map(unit).collect();
        let units = units.ok_or_else(|| useless("its units are not those of the model".to_string()))?;
        Ok(PackedFile { units, piece: self.piece })
    }

    /// Reads all weights but those that stay there. `progress(done, total)` counts bytes.
    ///
    /// # Errors
    /// Those of [`Unread`]; then what has been read is no weights.
    pub fn read(
        &self,
        device: &Device,
        destination: &mut Destination<'_>,
        staging: &Staging,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<PackedFile, Unread> {
        let Destination { arena, homes, .. } = *destination;
        let file = self.open(homes)?;
        let mut pinned: &mut [u8] = match &mut destination.pinned {
            Some(pinned) => pinned.as_mut_slice(),
            None => &mut [],
        };
        let mut pieces = Vec::new();
        for (unit, home) in homes.iter().enumerate().filter(|(_, home)| home.place != HomePlace::Disk) {
            for index in 0..file.num_pieces(unit) {
                let range = file.piece(unit, index);
                let to = match home.place {
                    HomePlace::Arena(at) => Place::Arena(at + range.start),
                    _ => {
                        // In the order of the units: see `residency::homes`.
                        let (first, rest) = std::mem::take(&mut pinned).split_at_mut(range.len());
                        pinned = rest;
                        Place::Pinned(first)
                    }
                };
                pieces.push(Piece { unit, index, to });
            }
        }
        let total = pieces.iter().map(|piece| file.piece(piece.unit, piece.index).len() as u64).sum();
        let mut done = 0;
        if progress(0, total).is_break() {
            return Err(Unread::Failed(Error::Stopped));
        }
        let buffers = staging.host_buffers(device).map_err(Unread::Failed)?;
        let read = |piece: &mut Piece, host: &mut [u8]| match &mut piece.to {
            Place::Arena(_) => file.read(piece.unit, piece.index, host),
            Place::Pinned(to) => file.read(piece.unit, piece.index, to),
        };
        let result = ahead::in_order(buffers, pieces.into_iter(), read, |piece, (), host| {
            let bytes = file.piece(piece.unit, piece.index).len();
            if let Place::Arena(at) = piece.to {
                device.copy_to_device(StreamId::Copy, &arena.bytes(at, bytes)?, host, 0)?;
            }
            done += bytes as u64;
            match progress(done, total) {
                ControlFlow::Break(()) => Err(Error::Stopped),
                ControlFlow::Continue(()) => Ok(()),
            }
        });
        match result.and_then(|_| device.synchronize(StreamId::Copy)) {
            Ok(()) => Ok(file),
            Err(error @ (Error::Weights { .. } | Error::Io { .. })) => Err(Unread::Useless(error)),
            Err(error) => Err(Unread::Failed(error)),
        }
    }

    /// What makes it, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Io`], and those of pinned memory.
    pub fn writer(&self, device: &Device, homes: &[Home]) -> Result<Writer<'_>> {
        let mut file = files::Growing::new(&self.path)?;
        let bytes: u64 = homes.iter().map(|home| home.unit.image.len() as u64).sum();
        let free = files::free_bytes(self.path.parent().unwrap_or(&self.path))?;
        if bytes > free {
            let text = format!("its {bytes} bytes are more than the {free} that are free");
            let full = std::io::Error::new(std::io::ErrorKind::StorageFull, text);
            return Err(Error::io("write", &self.path)(full));
        }
        // Checksums are known when everything has been written; they take as much as these.
        let none: Vec<u32> =
            vec![0; homes.iter().map(|home| home.unit.image.len().div_ceil(self.piece)).sum()];
        file.write_all(&self.header(homes, &none)?).map_err(Error::io("write", &self.path))?;
        Ok(Writer {
            packed: self,
            file,
            crcs: Vec::new(),
            host: device.allocate_host(self.piece)?,
            failed: None,
        })
    }

    /// Length, JSON and padding, so that weights begin at a page.
    fn header(&self, homes: &[Home], mut crcs: &[u32]) -> Result<Vec<u8>> {
        let mut metadata = serde_json::Map::new();
        for (name, value) in &self.identity {
            metadata.insert((*name).to_string(), value.clone().into());
        }
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (i, Home { unit, .. }) in homes.iter().enumerate() {
            let (name, start) = (stored_name(i, &unit.name), end);
            end += unit.image.len();
            let of_unit = crcs.split_off(..unit.image.len().div_ceil(self.piece));
            let of_unit = of_unit.ok_or_else(|| Error::Internal("checksums are missing".to_string()))?;
            let text: String = of_unit.iter().map(|crc| format!("{crc:08x}")).collect();
            metadata.insert(name.clone(), text.into());
            let tensor = serde_json::json!({
                "dtype": "U8", "shape": [unit.image.len()], "data_offsets": [start, end],
            });
            header.insert(name, tensor);
        }
        header.insert("__metadata__".to_string(), metadata.into());
        let malformed = |e| Error::Internal(format!("a header: {e}"));
        let mut json = serde_json::to_vec(&header).map_err(malformed)?;
        json.resize((8 + json.len()).next_multiple_of(4096) - 8, b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        Ok(bytes)
    }
}

/// Makes a file of the cache. What cannot be written is reported at the end: weights are loaded all the same.
pub(crate) struct Writer<'a> {
    packed: &'a Packed,
    file: files::Growing,
    /// Of all pieces so far.
    crcs: Vec<u32>,
    host: HostBuffer,
    failed: Option<Error>,
}

impl Writer<'_> {
    /// The next unit, which the compute stream has put together.
    ///
    /// # Errors
    /// [`Error::Device`] from the machine.
    pub fn write(&mut self, device: &Device, unit: &View<u8>) -> Result<()> {
        let piece = self.packed.piece;
        for start in (0..unit.len()).step_by(piece) {
            if self.failed.is_some() {
                break;
            }
            let from = unit.slice(start, piece.min(unit.len() - start))?;
            device.copy_to_host(StreamId::Compute, &mut self.host, 0, &from)?;
            device.synchronize(StreamId::Compute)?;
            let bytes = &self.host.as_slice()[..from.len()];
            self.crcs.push(crc32fast::hash(bytes));
            let written = self.file.write_all(bytes).map_err(Error::io("write", &self.packed.path));
            self.failed = written.err();
        }
        Ok(())
    }

    /// Makes it the cache's.
    ///
    /// # Errors
    /// [`Error::Io`]; then what was there still is.
    pub fn finish(mut self, homes: &[Home]) -> Result<()> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let header = self.packed.header(homes, &self.crcs)?;
        let written = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(&header));
        written.map_err(Error::io("write", &self.packed.path))?;
        self.file.finish()
    }
}

/// What the file calls a unit: several may have one name.
fn stored_name(i: usize, unit: &str) -> String {
    format!("{i:04}.{unit}")
}

fn checksums(text: &str) -> Option<Vec<u32>> {
    let digits = text.as_bytes().chunks(CRC_DIGITS);
    digits.map(|crc| u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()).collect()
}
