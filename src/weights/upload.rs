//! From files into the arena: tensor by tensor, as the networks asked for them.
//!
//! Bytes go file -> pinned staging -> arena, a chunk of rows at a time, so that reading, copying and quantizing overlap: threads
//! read files into the pinned buffers themselves (`ahead.rs`), and bring what the device shall have in another form into it
//! there: blocks of few bits that stay what they are in the kernels' order. What becomes NF4 passes through a device-side staging region, from which `nf4_quantize` writes codes and absmax: those
//! of the file where it has some, or new ones, and then it counts what is not finite, since no code says so later.

mod replace;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytemuck::cast_slice_mut;
use half::bf16;

use super::ahead::{self, BUFFERS};
use super::convert::{self, RowsOf};
use super::kept::KeptRows;
use super::nf4::BLOCK;
use super::packed::{Packed, PackedFile, Unread, Writer};
use super::target::Target;
use super::{Dtype, Source, TensorInfo};
use crate::device::{Device, Event, HostBuffer, StreamId, View};
use crate::error::shown;
use crate::kernels::kept::{KeptLayout, PANEL, Section};
use crate::kernels::nf4_quantize::{Nf4Quantize, Nf4Source};
use crate::memory::arena::{Arena, Slot};
use crate::models::layers::Weight;
use crate::program::place::ALIGNMENT;
use crate::program::{Home, HomePlace};
use crate::{Error, Result};

pub(crate) use replace::{check_replaceable, replace_loras};

/// Bytes of one pinned buffer and of one device-side staging slot: large enough for full PCIe speed, small beside any
/// model. A tensor with longer rows than this does not exist.
pub const STAGING_BYTES: usize = 4 << 20;
/// On the device: one is copied into while the other is quantized from.
const SLOTS: usize = 2;

/// The device side of staging, in the arena where operations work later: two slots, and a counter for each tensor that is
/// quantized.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Staging {
    slots: Slot<u8>,
    counters: Slot<u32>,
    /// Of one slot, and of one pinned buffer.
    slot_bytes: usize,
}

impl Staging {
    /// For these weights, at byte `offset` of the arena.
    pub fn new(weights: &[Weight], offset: usize) -> Staging {
        let slot_bytes = Staging::largest(weights);
        let num_counters =
            weights.iter().filter(|weight| matches!(weight.target, Target::Nf4 { .. })).count();
        Staging {
            slots: Slot::new(offset, SLOTS * slot_bytes),
            counters: Slot::new(offset + SLOTS * slot_bytes, num_counters),
            slot_bytes,
        }
    }

    /// Of a slot that takes the largest of `weights`, whatever the file holds it as, or many rows of it, and the counters.
    fn largest(weights: &[Weight]) -> usize {
        let largest = weights.iter().map(|weight| {
            let rows = weight.needed.shape[0].max(1);
            let at_once = Rows::at_once(&weight.target);
            rows.next_multiple_of(at_once)
                * Rows::of(&weight.target, weight.needed.elements() as usize / rows, Stored::As(Dtype::F32))
                    .room
        });
        let counters = weights.len() * size_of::<u32>();
        largest.max().unwrap_or(0).max(counters).min(STAGING_BYTES).next_multiple_of(ALIGNMENT)
    }

    /// Of one slot, and of one pinned buffer.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// On the device.
    pub fn num_bytes(&self) -> usize {
        SLOTS * self.slot_bytes + self.counters.len() * size_of::<u32>()
    }

    /// Pinned.
    pub fn host_bytes(&self) -> usize {
        // One more, through which packed weights are written.
        (BUFFERS + 1) * self.slot_bytes
    }

    /// The pinned buffers.
    pub fn host_buffers(&self, device: &Device) -> Result<Vec<HostBuffer>> {
        (0..BUFFERS).map(|_| device.allocate_host(self.slot_bytes)).collect()
    }
}

/// What a file holds a tensor as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    /// Numbers, one by one.
    As(Dtype),
    /// Codes and absmax of NF4, which are kept.
    Nf4,
    /// Blocks of few bits, which are kept.
    Blocks,
}

impl Stored {
    fn of(tensor: &TensorInfo, target: &Target) -> Stored {
        match target {
            Target::Nf4 { .. } if tensor.is_nf4() => Stored::Nf4,
            Target::Kept { .. } => Stored::Blocks,
            _ => Stored::As(tensor.dtype),
        }
    }
}

/// Bytes of one row of a tensor.
#[derive(Clone, Copy, Debug)]
struct Rows {
    /// In the file (of a tensor that is in NF4 and shall not be: as f32, which it reads as).
    stored: usize,
    /// As it leaves the pinned buffer.
    staged: usize,
    /// In the pinned buffer.
    room: usize,
}

impl Rows {
    /// Rows of it that must go together, or a multiple of these.
    fn at_once(target: &Target) -> usize {
        if matches!(target, Target::Kept { layout: KeptLayout::Panels, .. }) { PANEL } else { 1 }
    }

    fn of(target: &Target, row_len: usize, stored: Stored) -> Rows {
        if let Target::Kept { format, .. } = *target {
            // Both at once: they are put in another order.
            let (stored, staged) = (row_len / format.values() * format.bytes(), format.row_bytes(row_len));
            return Rows { stored, staged, room: stored + staged };
        }
        let dtype = match stored {
            Stored::As(dtype) => dtype,
            Stored::Blocks => Dtype::F32,
            Stored::Nf4 => {
                let bytes = row_len / 2 + row_len / BLOCK * 4;
                return Rows { stored: bytes, staged: bytes, room: bytes };
            }
        };
        let stored = row_len * dtype.bitsize() / 8;
        let staged = match *target {
            Target::Host | Target::Kept { .. } => 0,
            Target::F32 { .. } => row_len * 4,
            Target::Bf16 { pitch, .. } => pitch * 2,
            // Both at once: it is put in another order.
            Target::Conv { channels, filter, .. } => {
                let staged = filter.weight_pitch(channels) * 2;
                return Rows { stored, staged, room: stored + staged };
            }
            // It leaves as the file holds it, but for f16.
            Target::Nf4 { .. } if dtype == Dtype::BF16 => row_len * 2,
            Target::Nf4 { .. } => row_len * 4,
        };
        Rows { stored, staged, room: if staged == 0 { 0 } else { staged.max(stored) } }
    }
}

/// Where weights go: those that stay into the arena, those that are streamed into pinned memory, put together in a part of the
/// arena that nothing else needs before operations run.
pub(crate) struct Destination<'a> {
    pub arena: &'a Arena,
    /// By place among all weights.
    pub homes: &'a [Home],
    /// Of the arena, for the largest streamed unit.
    pub unit_in_the_making: usize,
    /// As large as all streamed units.
    pub pinned: Option<&'a mut HostBuffer>,
}

impl<'a> Destination<'a> {
    /// Of what becomes a weight.
    fn home(&self, target: &Target) -> Result<&'a Home> {
        let offset = target.offset().unwrap_or(0);
        let at = self.homes.partition_point(|home| home.unit.image.end <= offset);
        self.homes.get(at).ok_or_else(|| Error::Internal(format!("weights have no byte {offset}")))
    }

    /// The byte of the arena where a unit is put together that goes there.
    fn begins(&self, place: HomePlace) -> usize {
        match place {
            HomePlace::Arena(at) => at,
            HomePlace::Pinned(_) | HomePlace::Disk => self.unit_in_the_making,
        }
    }
}

/// Loads all `weights`, from the `cache` where it has them; else from their files, and into it. What is wrong with the cache is
/// warned of. Returns the cache's file if there is one, for weights that stay there. `progress(done, total)` counts bytes of the
/// files that are read.
///
/// # Errors
/// [`Error::Io`] and [`Error::Weights`] from the files, also when numbers are not finite as they are kept;
/// [`Error::Device`] from the machine; [`Error::Stopped`].
pub(crate) fn load(
    device: &Device,
    destination: &mut Destination<'_>,
    staging: &Staging,
    source: &Source,
    weights: &[Weight],
    cache: Option<&Packed>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Option<PackedFile>> {
    let needs_file = destination.homes.iter().any(|home| home.place == HomePlace::Disk);
    let Some(packed) = cache else {
        if needs_file {
            return Err(Error::Internal("weights shall stay in a cache that there is not".to_string()));
        }
        return upload(device, destination, staging, source, weights, None, progress).map(|()| None);
    };
    match packed.read(device, destination, staging, progress) {
        Ok(file) => return Ok(Some(file)),
        Err(Unread::Failed(error)) => return Err(error),
        Err(Unread::Absent) => {}
        Err(Unread::Useless(why)) => {
            let path = packed.path().to_string_lossy();
            let why = match why {
                Error::Weights { what, .. } => what,
                other => other.to_string(),
            };
            tracing::warn!("{} is made again: {}", shown(&path), shown(&why));
            // There may be no room for two; what is no file stays.
            let _ = std::fs::remove_file(packed.path());
        }
    }
    // What is between weights goes into the file, too.
    device.fill(StreamId::Compute, &destination.arena.bytes(0, destination.arena.num_bytes())?, 0)?;
    device.synchronize(StreamId::Compute)?;
    let mut writer = match packed.writer(device, destination.homes) {
        Ok(writer) => Some(writer),
        Err(error @ Error::Io { .. }) if !needs_file => {
            tracing::warn!("the weights are not in the cache: {error}");
            None
        }
        Err(error) => return Err(error),
    };
    upload(device, destination, staging, source, weights, writer.as_mut(), progress)?;
    match writer.map(|writer| writer.finish(destination.homes)) {
        None => Ok(None),
        Some(Ok(())) => match packed.open(destination.homes) {
            Ok(file) => Ok(Some(file)),
            Err(Unread::Failed(error) | Unread::Useless(error @ Error::Io { .. })) if needs_file => {
                Err(error)
            }
            Err(Unread::Failed(error)) => Err(error),
            // Somebody has replaced it meanwhile.
            Err(_) if needs_file => Err(Error::weights(packed.path(), "has just been replaced; start again")),
            Err(_) => Ok(None),
        },
        // Weights are there all the same.
        Some(Err(error @ Error::Io { .. })) if !needs_file => {
            tracing::warn!("the weights are not in the cache: {error}");
            Ok(None)
        }
        Some(Err(error)) => Err(error),
    }
}

/// Reads all `weights` from their files; a `writer` gets each unit when it is whole. `progress(done, total)` counts file bytes.
fn upload(
    device: &Device,
    destination: &mut Destination<'_>,
    staging: &Staging,
    source: &Source,
    weights: &[Weight],
    writer: Option<&mut Writer>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let on_device = weights.iter().filter(|weight| !matches!(weight.target, Target::Host));
    let tensors: Vec<(&Weight, &TensorInfo)> = on_device
        .map(|weight| Ok((weight, source.tensor(weight.part, &weight.needed.name)?)))
        .collect::<Result<_>>()?;
    let total = tensors.iter().map(|(_, tensor)| tensor.stored_bytes()).sum();
    let mut chunks = Vec::new();
    for (weight, tensor) in tensors {
        let home = destination.home(&weight.target)?;
        let target = weight.target.moved(home.unit.image.start, destination.begins(home.place));
        chunks.extend(Chunk::all(target, tensor, home, staging.slot_bytes)?);
    }
    let arena = destination.arena;
    let counters = arena.view(&staging.counters)?;
    if !counters.is_empty() {
        device.fill(StreamId::Compute, &counters, 0)?;
    }
    let slot = |i: usize| -> Result<StagingSlot> {
        Ok(StagingSlot {
            device: staging.slots.part(i * staging.slot_bytes, staging.slot_bytes),
            copied: device.create_event()?,
            consumed: device.create_event()?,
        })
    };
    let stages = [slot(0)?, slot(1)?];
    let mut uploader = Uploader { device, arena, stages, next: 0, counters, quantized: Vec::new() };
    let mut units = Units {
        device,
        destination,
        writer,
        between: [device.create_event()?, device.create_event()?],
        making: None,
    };
    if progress(0, total).is_break() {
        return Err(Error::Stopped);
    }
    let (mut done, mut is_zero) = (0, true);
    let read = |chunk: &mut Chunk, host: &mut [u8]| chunk.read(host);
    let buffers = staging.host_buffers(device)?;
    let mut buffers = ahead::in_order(buffers, chunks.into_iter(), read, |chunk, zeros, host| {
        units.begin(chunk.home)?;
        is_zero = zeros && (is_zero || chunk.first_row == 0);
        uploader.send(&chunk, host)?;
        done += chunk.stored_bytes();
        if chunk.is_last() && is_zero {
            chunk.refuse_zeros()?;
        }
        match progress(done, total) {
            ControlFlow::Break(()) => Err(Error::Stopped),
            ControlFlow::Continue(()) => Ok(()),
        }
    })?;
    units.finish()?;
    device.synchronize(StreamId::Copy)?;
    uploader.check_finite(&mut buffers[0])
}

/// The units of weights, put together one after the other.
struct Units<'a, 'd, 'w> {
    device: &'a Device,
    destination: &'a mut Destination<'d>,
    writer: Option<&'a mut Writer<'w>>,
    between: [Event; 2],
    /// The one that has been begun, its place among all weights, and where it goes.
    making: Option<(Range<usize>, HomePlace)>,
}

impl Units<'_, '_, '_> {
    /// What comes next belongs to `home`.
    fn begin(&mut self, home: &Home) -> Result<()> {
        if self.making.as_ref().is_some_and(|(image, _)| *image == home.unit.image) {
            return Ok(());
        }
        self.finish()?;
        self.making = Some((home.unit.image.clone(), home.place));
        Ok(())
    }

    /// The unit that has been begun is whole, and goes home.
    fn finish(&mut self) -> Result<()> {
        let Some((image, place)) = self.making.take() else { return Ok(()) };
        let (device, arena) = (self.device, self.destination.arena);
        let is_away = !matches!(place, HomePlace::Arena(_));
        if !is_away && self.writer.is_none() {
            return Ok(());
        }
        let whole = arena.bytes(self.destination.begins(place), image.len())?;
        device.record(StreamId::Copy, &self.between[0])?;
        device.wait(StreamId::Compute, &self.between[0])?;
        if let (HomePlace::Pinned(to), Some(pinned)) = (place, &mut self.destination.pinned) {
            device.copy_to_host(StreamId::Compute, pinned, to, &whole)?;
        }
        if let Some(writer) = &mut self.writer {
            writer.write(device, &whole)?;
            if is_away {
                // Between the weights of the next one there shall be nothing, too.
                device.fill(StreamId::Compute, &whole, 0)?;
            }
        }
        device.record(StreamId::Compute, &self.between[1])?;
        device.wait(StreamId::Copy, &self.between[1])
    }
}

/// Rows of a tensor that are read, and travel, together.
struct Chunk<'a> {
    tensor: &'a TensorInfo,
    target: Target,
    home: &'a Home,
    stored: Stored,
    row: Rows,
    first_row: usize,
    shape: RowsOf,
    /// Of the whole tensor.
    num_rows: usize,
}

impl<'a> Chunk<'a> {
    /// Of all of `tensor`, each of at most `room` bytes in a pinned buffer.
    fn all(
        target: Target,
        tensor: &'a TensorInfo,
        home: &'a Home,
        room: usize,
    ) -> Result<impl Iterator<Item = Chunk<'a>>> {
        let stored = Stored::of(tensor, &target);
        let num_rows = tensor.shape.first().copied().unwrap_or(1).max(1);
        let row_len = tensor.elements() / num_rows;
        let row = Rows::of(&target, row_len, stored);
        let together = Rows::at_once(&target);
        let at_once = room / row.room.max(1) / together * together;
        if at_once == 0 {
            let bytes = row.room * together;
            return Err(Error::Unsupported(format!(
                "{}: rows of {bytes} bytes exceed the staging buffer of {room}",
                tensor.name
            )));
        }
        Ok((0..num_rows).step_by(at_once).map(move |first_row| {
            let rows = at_once.min(num_rows - first_row);
            let shape = RowsOf { rows, row_len, pitch: row_len };
            Chunk { tensor, target, home, stored, row, first_row, shape, num_rows }
        }))
    }

    /// Reads them to the beginning of `host`, in the form in which they leave it; whether the file holds nothing but zeros.
    fn read(&self, host: &mut [u8]) -> Result<bool> {
        let count = self.shape.rows;
        if let Target::Kept { format, layout, .. } = self.target {
            return self.read_kept(KeptRows { format, layout, k: self.shape.row_len, rows: count }, host);
        }
        let host = &mut host[..count * self.row.room];
        match self.stored {
            Stored::Blocks => Err(Error::Internal(format!("{} shall be kept as it is", self.tensor.name))),
            Stored::Nf4 => {
                read_nf4(self.tensor, host, self.first_row, self.shape)?;
                Ok(host[..count * self.shape.row_len / BLOCK * 4].iter().all(|byte| *byte == 0))
            }
            Stored::As(_) => {
                let first = host.len() - count * self.row.stored;
                self.tensor.read_at(self.first_row as u64 * self.row.stored as u64, &mut host[first..])?;
                let is_zero = host[first..].iter().all(|byte| *byte == 0);
                convert(&self.target, self.tensor, host, self.shape)?;
                Ok(is_zero)
            }
        }
    }

    /// The same of rows that stay in their bits; behind them they lie as the file has them.
    fn read_kept(&self, rows: KeptRows, host: &mut [u8]) -> Result<bool> {
        let (kept, stored) = host.split_at_mut(rows.kept_len());
        let stored = &mut stored[..rows.stored_len()];
        let scale = self.tensor.read_kept(rows.format, self.first_row, stored)?;
        match rows.put(stored, scale, kept) {
            0 => Ok(stored.iter().all(|byte| *byte == 0)),
            count => Err(self.tensor.not_finite(count)),
        }
    }

    fn is_last(&self) -> bool {
        self.first_row + self.shape.rows == self.num_rows
    }

    /// Of the file; of all chunks together, all of the tensor.
    fn stored_bytes(&self) -> u64 {
        let until = |row: usize| self.tensor.stored_bytes() * row as u64 / self.num_rows as u64;
        until(self.first_row + self.shape.rows) - until(self.first_row)
    }

    /// Biases may be; what is multiplied with never is in a trained model.
    fn refuse_zeros(&self) -> Result<()> {
        if self.tensor.name.ends_with("weight") { Err(self.tensor.all_zero()) } else { Ok(()) }
    }
}

/// A place on the device for what is quantized from it.
struct StagingSlot {
    device: Slot<u8>,
    /// The bytes have arrived.
    copied: Event,
    /// It may be written again.
    consumed: Event,
}

struct Uploader<'a> {
    device: &'a Device,
    arena: &'a Arena,
    stages: [StagingSlot; SLOTS],
    next: usize,
    /// Of numbers that are not finite, one for each of `quantized`.
    counters: View<u32>,
    quantized: Vec<&'a TensorInfo>,
}

impl<'a> Uploader<'a> {
    /// Waits for all, and refuses tensors that no code could be found for.
    fn check_finite(&self, host: &mut HostBuffer) -> Result<()> {
        if self.quantized.is_empty() {
            return self.device.synchronize(StreamId::Compute);
        }
        let counters = self.counters.slice(0, self.quantized.len())?;
        self.device.copy_to_host(StreamId::Compute, host, 0, &counters)?;
        self.device.synchronize(StreamId::Compute)?;
        let counts: &[u32] = bytemuck::cast_slice(&host.as_slice()[..counters.num_bytes()]);
        match self.quantized.iter().zip(counts).find(|(_, count)| **count > 0) {
            None => Ok(()),
            Some((tensor, count)) => Err(tensor.not_finite(u64::from(*count))),
        }
    }

    /// Rows that `host` holds as they shall be, to their place.
    fn send(&mut self, chunk: &Chunk<'a>, host: &HostBuffer) -> Result<()> {
        let (copy, row) = (StreamId::Copy, chunk.first_row);
        let RowsOf { rows: count, row_len, .. } = chunk.shape;
        let bytes = count * chunk.row.staged;
        match chunk.target {
            Target::Host => Ok(()),
            Target::F32 { slot } => {
                let dst = self.arena.view(&slot.part(row * row_len, count * row_len))?;
                self.device.copy_to_device(copy, &dst, host, 0)
            }
            Target::Bf16 { slot, .. } | Target::Conv { slot, .. } => {
                let dst = self.arena.view(&slot.part(row * (bytes / count) / 2, bytes / 2))?;
                self.device.copy_to_device(copy, &dst, host, 0)
            }
            Target::Nf4 { .. } => self.send_nf4(chunk, host, bytes),
            Target::Kept { format, layout: KeptLayout::Panels, slot, first_row, .. } => {
                let row_bytes = format.row_bytes(row_len);
                let bytes = count.next_multiple_of(PANEL) * row_bytes;
                let dst = self.arena.view(&slot.part((first_row + row) * row_bytes, bytes))?;
                self.device.copy_to_device(copy, &dst, host, 0)
            }
            Target::Kept { format, layout: KeptLayout::Rows, slot, first_row, num_rows } => {
                let (mut from, mut section_at) = (0, 0);
                for section in Section::ALL {
                    let of_row = format.section_row(section, row_len);
                    let dst = slot.part(section_at + (first_row + row) * of_row, count * of_row);
                    if dst.len() > 0 {
                        self.device.copy_to_device(copy, &self.arena.view(&dst)?, host, from)?;
                    }
                    from += count * of_row;
                    section_at += num_rows * of_row;
                }
                Ok(())
            }
        }
    }

    fn send_nf4(&mut self, chunk: &Chunk<'a>, host: &HostBuffer, bytes: usize) -> Result<()> {
        let Target::Nf4 { layout, codes, absmax, first_row, num_rows } = chunk.target else {
            return Err(Error::Internal(format!("{} does not become NF4", chunk.tensor.name)));
        };
        let RowsOf { rows: count, row_len, .. } = chunk.shape;
        if chunk.first_row == 0 && chunk.stored != Stored::Nf4 {
            self.quantized.push(chunk.tensor);
        }
        let copy = StreamId::Copy;
        self.next = (self.next + 1) % SLOTS;
        let stage = &self.stages[self.next];
        let on_device = self.arena.view(&stage.device.part(0, bytes))?;
        self.device.wait(copy, &stage.consumed)?;
        self.device.copy_to_device(copy, &on_device, host, 0)?;
        self.device.record(copy, &stage.copied)?;
        self.device.wait(StreamId::Compute, &stage.copied)?;
        let (codes, absmax) = (self.arena.view(&codes)?, self.arena.view(&absmax)?);
        let (bf16s, f32s, bytes);
        let src = match chunk.stored {
            Stored::Nf4 => {
                let absmax_bytes = count * row_len / BLOCK * 4;
                f32s = on_device.slice(0, absmax_bytes)?.cast::<f32>()?;
                bytes = on_device.slice(absmax_bytes, count * row_len / 2)?;
                Nf4Source::Nf4(&bytes, &f32s)
            }
            Stored::As(Dtype::BF16) => {
                bf16s = on_device.cast::<bf16>()?;
                Nf4Source::Bf16(&bf16s)
            }
            Stored::As(_) | Stored::Blocks => {
                f32s = on_device.cast::<f32>()?;
                Nf4Source::F32(&f32s)
            }
        };
        // Codes of a file have been looked at by the host, by their absmax.
        let counter = self.quantized.len().saturating_sub(1);
        Nf4Quantize {
            src,
            pitch: row_len,
            rows: count,
            k: row_len,
            first_row: first_row + chunk.first_row,
            n: num_rows,
            layout,
            codes: &codes,
            absmax: &absmax,
            nonfinite: &self.counters.slice(counter, 1)?,
        }
        .launch(self.device, StreamId::Compute)?;
        self.device.record(StreamId::Compute, &stage.consumed)
    }
}

/// absmax of rows from `row` on, and behind it their codes.
fn read_nf4(tensor: &TensorInfo, host: &mut [u8], row: usize, shape: RowsOf) -> Result<()> {
    let (absmax, codes) = host.split_at_mut(shape.rows * shape.row_len / BLOCK * 4);
    tensor.read_nf4(row, shape.row_len, absmax, codes)
}

/// Rows that lie at the end of `host` as the file holds them, into the form in which they leave it, at its beginning.
fn convert(target: &Target, tensor: &TensorInfo, host: &mut [u8], shape: RowsOf) -> Result<()> {
    match *target {
        Target::Host | Target::Kept { .. } => Ok(()),
        Target::F32 { .. } => tensor.check_finite(convert::within::<f32>(tensor.dtype, host, shape)?),
        Target::Bf16 { pitch, .. } => {
            let shape = RowsOf { pitch, ..shape };
            tensor.check_finite(convert::within::<bf16>(tensor.dtype, host, shape)?)
        }
        Target::Conv { channels, filter, .. } => {
            let stored = shape.row_len * tensor.dtype.bitsize() / 8;
            let (packed, from) = host.split_at_mut(host.len() - shape.rows * stored);
            let mut values = vec![bf16::ZERO; shape.row_len];
            let packed = cast_slice_mut::<u8, bf16>(packed);
            for (from, to) in from.chunks(stored).zip(packed.chunks_mut(filter.weight_pitch(channels))) {
                convert::to_bf16(tensor.dtype, from, &mut values)?;
                tensor.check_finite(&values)?;
                filter.pack(&values, to);
            }
            Ok(())
        }
        Target::Nf4 { .. } if tensor.dtype == Dtype::BF16 => Ok(()),
        Target::Nf4 { .. } => convert::within::<f32>(tensor.dtype, host, shape).map(|_| ()),
    }
}

/// Rows of an embedding table that stays on disk, as f32 `[ids, width]`: read by `pread` as prompts need them, so that
/// neither device nor pinned memory holds a vocabulary of which a prompt uses some hundred rows.
#[derive(Clone, Debug)]
pub struct EmbeddingTable {
    tensor: Arc<TensorInfo>,
}

impl EmbeddingTable {
    /// `tensor` is `[vocabulary, width]`.
    pub fn new(tensor: &TensorInfo) -> Self {
        EmbeddingTable { tensor: Arc::new(tensor.clone()) }
    }

    /// Writes the rows of `ids` to `out`.
    ///
    /// # Errors
    /// [`Error::Weights`] when an id is beyond the table or a row is not finite, [`Error::Io`] when the file cannot be read.
    pub fn gather(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let (rows, row_bytes) = (self.tensor.shape[0], self.tensor.row_bytes());
        let mut bytes = vec![0; row_bytes];
        let width = out.len() / ids.len().max(1);
        for (&id, out) in ids.iter().zip(out.chunks_mut(width)) {
            if id as usize >= rows {
                let what = format!("{}: token id {id} is beyond its {rows} rows", self.tensor.name);
                return Err(Error::weights(self.tensor.file.path(), what));
            }
            self.tensor.read_at(id as u64 * row_bytes as u64, &mut bytes)?;
            convert::to_f32(self.tensor.dtype, &bytes, out)?;
            self.tensor.check_finite(out)?;
        }
        Ok(())
    }
}
