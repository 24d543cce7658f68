//! The packed cache: a model's weights as the device holds them, in one file, so that the next load reads, looks at checksums and
//! copies, and does nothing else.
//!
//! The file is a safetensors file of bytes, a tensor for each unit of weights in the order in which networks ask for them; its
//! metadata says what it is of ([`Packed::of`]) and has a CRC-32 of every piece of [`Staging::slot_bytes`]. A file that is of
//! something else, or damaged, is made again; nobody sees one that is not whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::upload::{Destination, Staging};
use super::{SafeTensors, Source, TensorInfo, ahead};
use crate::device::{Device, StreamId};
use crate::files;
use crate::models::layers::Weight;
use crate::program::{Home, HomePlace};
use crate::{Error, Result};

/// Of how weights lie in their places: goes up when a kernel wants another order, so that no older file is taken for a new one.
pub const LAYOUT_VERSION: u32 = 1;

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
    /// It is of something else, or damaged.
    Useless(String),
    /// Nothing that another file would help against.
    Failed(Error),
}

/// Bytes of a file that are copied in one piece.
struct Piece<'a> {
    unit: &'a TensorInfo,
    bytes: Range<usize>,
    crc: u32,
    to: Place<'a>,
}

enum Place<'a> {
    Arena(usize),
    /// Read where it stays.
    Pinned(&'a mut [u8]),
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
    fn open(&self, homes: &[Home]) -> Result<SafeTensors, Unread> {
        if !files::exists(&self.path).map_err(Unread::Failed)? {
            return Err(Unread::Absent);
        }
        let file = SafeTensors::open(&self.path).map_err(|error| Unread::Useless(error.to_string()))?;
        for (name, expected) in &self.identity {
            match file.metadata().get(*name) {
                Some(found) if found == expected => {}
                _ if *name == "files" => {
                    return Err(Unread::Useless("the model's files have changed since".to_string()));
                }
                found => {
                    let found = found.map_or("none", String::as_str);
                    return Err(Unread::Useless(format!("its {name} is {found}, not {expected}")));
                }
            }
        }
        for (i, Home { unit, .. }) in homes.iter().enumerate() {
            let found = file.get(&stored_name(i, &unit.name));
            if found.is_none_or(|tensor| tensor.bytes != unit.image.len() as u64) {
                return Err(Unread::Useless(format!("{} is not there as it should be", unit.name)));
            }
        }
        Ok(file)
    }

    /// Reads all weights. `progress(done, total)` counts bytes.
    ///
    /// # Errors
    /// Those of [`Unread`]; then what has been read is no weights.
    pub fn read(
        &self,
        device: &Device,
        destination: &mut Destination<'_>,
        staging: &Staging,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(), Unread> {
        let Destination { arena, homes, .. } = *destination;
        let file = self.open(homes)?;
        let mut pinned: &mut [u8] = match &mut destination.pinned {
            Some(pinned) => pinned.as_mut_slice(),
            None => &mut [],
        };
        let mut pieces = Vec::new();
        for (i, Home { unit, place }) in homes.iter().enumerate() {
            let name = stored_name(i, &unit.name);
            let missing = || Unread::Useless(format!("{} has no checksums", unit.name));
            let tensor = file.get(&name).ok_or_else(missing)?;
            let crcs = file.metadata().get(&name).and_then(|text| checksums(text)).ok_or_else(missing)?;
            if crcs.len() != unit.image.len().div_ceil(self.piece) {
                return Err(missing());
            }
            for (crc, start) in crcs.into_iter().zip((0..unit.image.len()).step_by(self.piece)) {
                let bytes = start..(start + self.piece).min(unit.image.len());
                let to = match *place {
                    HomePlace::Arena(at) => Place::Arena(at + start),
                    HomePlace::Pinned(_) => {
                        // In the order of the units: see `residency::homes`.
                        let (first, rest) = std::mem::take(&mut pinned).split_at_mut(bytes.len());
                        pinned = rest;
                        Place::Pinned(first)
                    }
                };
                pieces.push(Piece { unit: tensor, bytes, crc, to });
            }
        }
        let total = pieces.iter().map(|piece| piece.bytes.len() as u64).sum();
        let mut done = 0;
        if progress(0, total).is_break() {
            return Err(Unread::Failed(Error::Stopped));
        }
        let buffers = staging.host_buffers(device).map_err(Unread::Failed)?;
        let result = ahead::in_order(buffers, pieces.into_iter(), Piece::read, |piece, (), host| {
            if let Place::Arena(at) = piece.to {
                let to = arena.bytes(at, piece.bytes.len())?;
                device.copy_to_device(StreamId::Copy, &to, host, 0)?;
            }
            done += piece.bytes.len() as u64;
            match progress(done, total) {
                ControlFlow::Break(()) => Err(Error::Stopped),
                ControlFlow::Continue(()) => Ok(()),
            }
        });
        match result.and_then(|_| device.synchronize(StreamId::Copy)) {
            Ok(()) => Ok(()),
            Err(error @ (Error::Weights { .. } | Error::Io { .. })) => {
                Err(Unread::Useless(error.to_string()))
            }
            Err(error) => Err(Unread::Failed(error)),
        }
    }

    /// Writes the weights that have been loaded, in place of what was there. `progress(done, total)` counts bytes.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Device`] from the machine; then what was there still is.
    pub fn write(
        &self,
        device: &Device,
        destination: &Destination<'_>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let Destination { arena, homes, pinned, .. } = destination;
        let mut file = files::Growing::new(&self.path)?;
        let failed = || Error::io("write", &self.path);
        // Checksums are known when everything has been written; they take as much as these.
        let mut crcs: Vec<Vec<u32>> =
            homes.iter().map(|home| vec![0; home.unit.image.len().div_ceil(self.piece)]).collect();
        let room = self.header(homes, &crcs)?;
        file.write_all(&room).map_err(failed())?;
        let total = homes.iter().map(|home| home.unit.image.len() as u64).sum();
        let (mut done, mut host) = (0, device.allocate_host(self.piece)?);
        for (Home { unit, place }, crcs) in homes.iter().zip(&mut crcs) {
            for (crc, start) in crcs.iter_mut().zip((0..unit.image.len()).step_by(self.piece)) {
                let bytes = self.piece.min(unit.image.len() - start);
                let written = match (place, pinned) {
                    (HomePlace::Arena(at), _) => {
                        let from = arena.bytes(at + start, bytes)?;
                        device.copy_to_host(StreamId::Copy, &mut host, 0, &from)?;
                        device.synchronize(StreamId::Copy)?;
                        &host.as_slice()[..bytes]
                    }
                    (HomePlace::Pinned(at), Some(pinned)) => &pinned.as_slice()[at + start..][..bytes],
                    (HomePlace::Pinned(_), None) => {
                        return Err(Error::Internal("no streamed weights".to_string()));
                    }
                };
                *crc = crc32fast::hash(written);
                file.write_all(written).map_err(failed())?;
                done += bytes as u64;
                if progress(done, total).is_break() {
                    return Err(Error::Stopped);
                }
            }
        }
        file.seek(SeekFrom::Start(0)).map_err(failed())?;
        file.write_all(&self.header(homes, &crcs)?).map_err(failed())?;
        file.finish()
    }

    /// Length, JSON and padding, so that weights begin at a page.
    fn header(&self, homes: &[Home], crcs: &[Vec<u32>]) -> Result<Vec<u8>> {
        let mut metadata = serde_json::Map::new();
        for (name, value) in &self.identity {
            metadata.insert((*name).to_string(), value.clone().into());
        }
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (i, (Home { unit, .. }, crcs)) in homes.iter().zip(crcs).enumerate() {
            let (name, start) = (stored_name(i, &unit.name), end);
            end += unit.image.len();
            let mut text = String::with_capacity(crcs.len() * CRC_DIGITS);
            crcs.iter().for_each(|crc| _ = write!(text, "{crc:08x}"));
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

impl Piece<'_> {
    /// Into its place where it is one of the host's, else to the beginning of `host`.
    fn read(&mut self, host: &mut [u8]) -> Result<()> {
        let to = match &mut self.to {
            Place::Pinned(to) => &mut **to,
            Place::Arena(_) => &mut host[..self.bytes.len()],
        };
        // So little at a time that what has been read is still near when it is summed up.
        const NEAR: usize = 256 << 10;
        let mut crc = crc32fast::Hasher::new();
        for (i, part) in to.chunks_mut(NEAR).enumerate() {
            self.unit.read_at((self.bytes.start + i * NEAR) as u64, part)?;
            crc.update(part);
        }
        if crc.finalize() == self.crc {
            return Ok(());
        }
        let what = format!("{}: bytes {:?} are damaged", self.unit.name, self.bytes);
        Err(Error::weights(self.unit.file.path(), what))
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
