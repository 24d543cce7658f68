//! From files into the arena: tensor by tensor, as the networks asked for them.
//!
//! Bytes go file -> pinned staging -> arena, a chunk of rows at a time through two staging buffers, so that reading,
//! copying and quantizing overlap. What becomes NF4 passes through a device-side staging region, from which
//! `nf4_quantize` writes codes and absmax, and counts what is not finite: no code says so later. Everything else is brought
//! into its final form by the host on the way through the pinned buffer.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytemuck::cast_slice_mut;
use half::bf16;

use super::{Dtype, Source, TensorInfo, convert};
use crate::device::{Device, Event, HostBuffer, StreamId, View};
use crate::kernels::conv2d::weight_pitch;
use crate::kernels::nf4_quantize::{Nf4Layout, Nf4Quantize, Nf4Source};
use crate::memory::arena::{Arena, Slot};
use crate::models::layers::Weight;
use crate::program::place::ALIGNMENT;
use crate::{Error, Result};

/// What becomes of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The host reads it when it needs to; the device never sees it.
    Host,
    /// Kept as f32.
    F32 {
        /// As many elements as the tensor has.
        slot: Slot<f32>,
    },
    /// bf16 rows, `pitch` elements apart.
    Bf16 {
        /// `[rows, pitch]`.
        slot: Slot<bf16>,
        /// At least the row length.
        pitch: usize,
    },
    /// `[out, in, kernel, kernel]` to rows of taps x channels (see [`weight_pitch`]).
    Conv {
        /// `[out, weight_pitch]`.
        slot: Slot<bf16>,
        /// Input channels.
        channels: usize,
        /// 3 or 1.
        kernel: usize,
    },
    /// Quantized on the device.
    Nf4 {
        /// Order of the codes.
        layout: Nf4Layout,
        /// Of the whole Linear.
        codes: Slot<u8>,
        /// Of the whole Linear.
        absmax: Slot<f32>,
        /// Row of the Linear where this tensor begins.
        first_row: usize,
        /// Rows of the Linear.
        num_rows: usize,
    },
}

/// Bytes of one pinned buffer and of one device-side staging slot: large enough for full PCIe speed, small beside any
/// model. A tensor with longer rows than this does not exist.
pub const STAGING_BYTES: usize = 16 << 20;
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
        let slot_bytes = Staging::slot_bytes(weights);
        let num_counters =
            weights.iter().filter(|weight| matches!(weight.target, Target::Nf4 { .. })).count();
        Staging {
            slots: Slot::new(offset, SLOTS * slot_bytes),
            counters: Slot::new(offset + SLOTS * slot_bytes, num_counters),
            slot_bytes,
        }
    }

    /// Of a slot that takes the largest of `weights` or many rows of it, and the counters.
    fn slot_bytes(weights: &[Weight]) -> usize {
        let on_device = weights.iter().filter(|weight| !matches!(weight.target, Target::Host));
        let largest = on_device.map(|weight| {
            let (shape, elements) = (&weight.needed.shape, weight.needed.elements() as usize);
            elements / shape[0].max(1) * shape[0].next_multiple_of(8) * 4
        });
        let counters = weights.len() * size_of::<u32>();
        largest.max().unwrap_or(0).max(counters).min(STAGING_BYTES).next_multiple_of(ALIGNMENT)
    }

    /// On the device.
    pub fn num_bytes(&self) -> usize {
        SLOTS * self.slot_bytes + self.counters.len() * size_of::<u32>()
    }

    /// Pinned.
    pub fn host_bytes(&self) -> usize {
        SLOTS * self.slot_bytes
    }
}

/// Reads all `weights`. `progress(done, total)` counts file bytes.
///
/// # Errors
/// [`Error::Io`] and [`Error::Weights`] from the files, also when numbers are not finite as they are kept;
/// [`Error::Device`] from the machine.
pub(crate) fn upload(
    device: &Device,
    arena: &Arena,
    staging: &Staging,
    source: &Source,
    weights: &[Weight],
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let slot = |i: usize| -> Result<Stage> {
        Ok(Stage {
            host: device.allocate_host(staging.slot_bytes)?,
            device: staging.slots.part(i * staging.slot_bytes, staging.slot_bytes),
            copied: device.create_event()?,
            consumed: device.create_event()?,
        })
    };
    let counters = arena.view(&staging.counters)?;
    if !counters.is_empty() {
        device.fill(StreamId::Compute, &counters, 0)?;
    }
    let mut uploader = Uploader {
        device,
        arena,
        stages: [slot(0)?, slot(1)?],
        next: 0,
        scratch: Vec::new(),
        counters,
        quantized: Vec::new(),
    };
    let on_device = weights.iter().filter(|weight| !matches!(weight.target, Target::Host));
    let tensors: Vec<(&Weight, &TensorInfo)> = on_device
        .map(|weight| Ok((weight, source.tensor(weight.part, &weight.needed.name)?)))
        .collect::<Result<_>>()?;
    let total = tensors.iter().map(|(_, tensor)| tensor.bytes).sum();
    let mut done = 0;
    let mut going = progress(0, total);
    for (weight, tensor) in tensors {
        if going.is_break() {
            return Err(Error::Stopped);
        }
        uploader.tensor(&weight.target, tensor)?;
        done += tensor.bytes;
        going = progress(done, total);
    }
    device.synchronize(StreamId::Copy)?;
    uploader.check_finite()
}

struct Stage {
    host: HostBuffer,
    device: Slot<u8>,
    /// The bytes have arrived in the device-side slot.
    copied: Event,
    /// The device-side slot may be written again.
    consumed: Event,
}

struct Uploader<'a> {
    device: &'a Device,
    arena: &'a Arena,
    stages: [Stage; SLOTS],
    next: usize,
    scratch: Vec<u8>,
    /// Of numbers that are not finite, one for each of `quantized`.
    counters: View<u32>,
    quantized: Vec<&'a TensorInfo>,
}

impl<'a> Uploader<'a> {
    /// Waits for all, and refuses tensors that no code could be found for.
    fn check_finite(&mut self) -> Result<()> {
        if self.quantized.is_empty() {
            return self.device.synchronize(StreamId::Compute);
        }
        let (host, counters) = (&mut self.stages[0].host, self.counters.slice(0, self.quantized.len())?);
        self.device.copy_to_host(StreamId::Compute, host, 0, &counters)?;
        self.device.synchronize(StreamId::Compute)?;
        let counts: &[u32] = bytemuck::cast_slice(&host.as_slice()[..counters.num_bytes()]);
        match self.quantized.iter().zip(counts).find(|(_, count)| **count > 0) {
            None => Ok(()),
            Some((tensor, count)) => Err(tensor.not_finite(u64::from(*count))),
        }
    }

    fn tensor(&mut self, target: &Target, tensor: &'a TensorInfo) -> Result<()> {
        if matches!(target, Target::Nf4 { .. }) {
            self.quantized.push(tensor);
        }
        let rows = tensor.shape.first().copied().unwrap_or(1).max(1);
        let row_len = tensor.elements() / rows;
        // Bytes of a row in staging: its final form, except NF4, which leaves staging as the file holds it.
        let staged = match *target {
            Target::Host => return Ok(()),
            Target::F32 { .. } => row_len * 4,
            Target::Bf16 { pitch, .. } => pitch * 2,
            Target::Conv { channels, kernel, .. } => weight_pitch(channels, kernel) * 2,
            Target::Nf4 { .. } if tensor.dtype == Dtype::BF16 => row_len * 2,
            Target::Nf4 { .. } => row_len * 4,
        };
        let per_chunk = self.stages[0].host.num_bytes() / staged.max(1);
        if per_chunk == 0 {
            return Err(Error::Unsupported(format!(
                "{}: rows of {staged} bytes exceed the staging buffer of {}",
                tensor.name,
                self.stages[0].host.num_bytes()
            )));
        }
        let mut row = 0;
        while row < rows {
            let count = per_chunk.min(rows - row);
            self.chunk(target, tensor, row, count, row_len, staged)?;
            row += count;
        }
        Ok(())
    }

    /// Rows `row..row + count` of a tensor.
    fn chunk(
        &mut self,
        target: &Target,
        tensor: &TensorInfo,
        row: usize,
        count: usize,
        row_len: usize,
        staged: usize,
    ) -> Result<()> {
        let stage = &mut self.stages[self.next];
        self.next = (self.next + 1) % SLOTS;
        let file_row_bytes = tensor.bytes / (tensor.elements() / row_len.max(1)).max(1) as u64;
        self.scratch.resize(count * file_row_bytes as usize, 0);
        tensor.read_at(row as u64 * file_row_bytes, &mut self.scratch)?;
        let bytes = count * staged;
        // Waits until the buffer's last copy has left it.
        let host = &mut stage.host.as_mut_slice()[..bytes];
        match *target {
            Target::Host => {}
            Target::F32 { .. } => {
                let values = cast_slice_mut::<u8, f32>(host);
                convert::to_f32(tensor.dtype, &self.scratch, values)?;
                tensor.check_finite(values)?;
            }
            Target::Bf16 { pitch, .. } => {
                let file_rows = self.scratch.chunks(file_row_bytes as usize);
                for (out, from) in cast_slice_mut::<u8, bf16>(host).chunks_mut(pitch).zip(file_rows) {
                    convert::to_bf16(tensor.dtype, from, &mut out[..row_len])?;
                    tensor.check_finite(&out[..row_len])?;
                    out[row_len..].fill(bf16::ZERO);
                }
            }
            Target::Conv { channels, kernel, .. } => {
                let mut values = vec![bf16::ZERO; count * row_len];
                convert::to_bf16(tensor.dtype, &self.scratch, &mut values)?;
                tensor.check_finite(&values)?;
                pack_conv(&values, channels, kernel, cast_slice_mut(host));
            }
            Target::Nf4 { .. } if tensor.dtype == Dtype::BF16 => host.copy_from_slice(&self.scratch),
            Target::Nf4 { .. } => convert::to_f32(tensor.dtype, &self.scratch, cast_slice_mut(host))?,
        }
        let copy = StreamId::Copy;
        match *target {
            Target::Host => {}
            Target::F32 { slot } => {
                let dst = self.arena.view(&slot.part(row * row_len, count * row_len))?;
                self.device.copy_to_device(copy, &dst, &stage.host, 0)?;
            }
            Target::Bf16 { slot, .. } | Target::Conv { slot, .. } => {
                let dst = self.arena.view(&slot.part(row * staged / 2, bytes / 2))?;
                self.device.copy_to_device(copy, &dst, &stage.host, 0)?;
            }
            Target::Nf4 { layout, codes, absmax, first_row, num_rows } => {
                let on_device = self.arena.view(&stage.device.part(0, bytes))?;
                self.device.wait(copy, &stage.consumed)?;
                self.device.copy_to_device(copy, &on_device, &stage.host, 0)?;
                self.device.record(copy, &stage.copied)?;
                self.device.wait(StreamId::Compute, &stage.copied)?;
                let (codes, absmax) = (self.arena.view(&codes)?, self.arena.view(&absmax)?);
                let (bf16s, f32s);
                let src = if tensor.dtype == Dtype::BF16 {
                    bf16s = on_device.cast::<bf16>()?;
                    Nf4Source::Bf16(&bf16s)
                } else {
                    f32s = on_device.cast::<f32>()?;
                    Nf4Source::F32(&f32s)
                };
                Nf4Quantize {
                    src,
                    pitch: row_len,
                    rows: count,
                    k: row_len,
                    first_row: first_row + row,
                    n: num_rows,
                    layout,
                    codes: &codes,
                    absmax: &absmax,
                    nonfinite: &self.counters.slice(self.quantized.len() - 1, 1)?,
                }
                .launch(self.device, StreamId::Compute)?;
                self.device.record(StreamId::Compute, &stage.consumed)?;
            }
        }
        Ok(())
    }
}

/// `[out, in, kernel, kernel]` to `[out, kernel, kernel, in padded to 8]`.
fn pack_conv(values: &[bf16], channels: usize, kernel: usize, packed: &mut [bf16]) {
    let (taps, padded) = (kernel * kernel, channels.next_multiple_of(8));
    packed.fill(bf16::ZERO);
    for (from, to) in values.chunks(channels * taps).zip(packed.chunks_mut(taps * padded)) {
        for channel in 0..channels {
            for tap in 0..taps {
                to[tap * padded + channel] = from[channel * taps + tap];
            }
        }
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
