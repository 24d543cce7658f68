//! One tensor from its file into another: quantized, or as it is. Chunks at a time, on several threads, so that memory does not
//! grow with the tensor.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::file::{Place, TensorWriter};
use crate::weights::nf4::{self, BLOCK, CODE_BOOK};
use crate::weights::{Dtype, TensorInfo, convert};
use crate::{Error, Result};

/// Numbers that a thread has at a time, a multiple of [`BLOCK`]: 9 MB of memory with what becomes of them.
const CHUNK: usize = 1 << 20;

/// More would wait for the disk.
const MOST_THREADS: usize = 8;

/// Whoever is told of bytes read, and says whether to go on.
pub(super) type OnBytes<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// What a Linear's numbers lose, over all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    pub square_errors: f64,
    pub squares: f64,
    pub max_abs_error: f32,
}

impl Loss {
    fn add(&mut self, other: Loss) {
        self.square_errors += other.square_errors;
        self.squares += other.squares;
        self.max_abs_error = self.max_abs_error.max(other.max_abs_error);
    }
}

/// A thread's room.
#[derive(Default)]
struct Room {
    stored: Vec<u8>,
    values: Vec<f32>,
    codes: Vec<u8>,
}

impl Room {
    /// Chunk `chunk` of `tensor` as f32.
    fn read(&mut self, tensor: &TensorInfo, chunk: usize) -> Result<()> {
        let first = chunk * CHUNK;
        let count = CHUNK.min(tensor.elements() - first);
        let size = tensor.dtype.bitsize() / 8;
        self.stored.resize(count * size, 0);
        tensor.read_at((first * size) as u64, &mut self.stored)?;
        self.values.resize(count, 0.0);
        convert::to_f32(tensor.dtype, &self.stored, &mut self.values)?;
        self.codes.resize(count.div_ceil(2), 0);
        Ok(())
    }
}

/// Writes the codes of `tensor` to `place`; returns absmax of its quant blocks, and tells of the bytes read.
///
/// # Errors
/// [`Error::Weights`] for numbers that are not finite, or all zero; [`Error::Stopped`]; [`Error::Io`].
pub(super) fn write_codes(
    tensor: &TensorInfo,
    to: &TensorWriter,
    place: &Place,
    told: &mut OnBytes<'_>,
) -> Result<Vec<f32>> {
    let quantize = |room: &mut Room, chunk: usize| {
        room.read(tensor, chunk)?;
        tensor.check_finite(&room.values)?;
        let blocks = room.values.chunks(BLOCK).zip(room.codes.chunks_mut(BLOCK / 2));
        let absmax: Vec<f32> = blocks.map(|(block, codes)| nf4::quantize_block(block, codes)).collect();
        to.write(place, (chunk * CHUNK / 2) as u64, &room.codes)?;
        Ok((room.stored.len() as u64, absmax))
    };
    let chunks = in_chunks(tensor, &quantize, &mut |(bytes, _)| told(*bytes))?;
    let absmax: Vec<f32> = chunks.into_iter().flat_map(|(_, absmax)| absmax).collect();
    match absmax.iter().all(|a| *a == 0.0) {
        true => Err(tensor.all_zero()),
        false => Ok(absmax),
    }
}

/// What was lost: codes are read back, `absmax` is what loaders make of it.
///
/// # Errors
/// [`Error::Stopped`], [`Error::Io`].
pub(super) fn measure(
    tensor: &TensorInfo,
    from: &TensorWriter,
    place: &Place,
    absmax: &[f32],
    told: &mut OnBytes<'_>,
) -> Result<Loss> {
    let measure = |room: &mut Room, chunk: usize| {
        room.read(tensor, chunk)?;
        from.read(place, (chunk * CHUNK / 2) as u64, &mut room.codes)?;
        let absmax = &absmax[chunk * CHUNK / BLOCK..];
        let blocks = room.values.chunks(BLOCK).zip(room.codes.chunks(BLOCK / 2)).zip(absmax);
        let mut loss = Loss::default();
        for ((values, codes), absmax) in blocks {
            loss.add(loss_of_block(values, codes, *absmax));
        }
        Ok((room.stored.len() as u64, loss))
    };
    let mut loss = Loss::default();
    for (_, of_chunk) in in_chunks(tensor, &measure, &mut |(bytes, _)| told(*bytes))? {
        loss.add(of_chunk);
    }
    Ok(loss)
}

fn loss_of_block(values: &[f32], codes: &[u8], absmax: f32) -> Loss {
    let mut loss = Loss::default();
    for (i, &value) in values.iter().enumerate() {
        let code = codes[i / 2] >> (4 * (1 - i % 2)) & 15;
        let error = value - CODE_BOOK[code as usize] * absmax;
        loss.add(Loss {
            square_errors: f64::from(error).powi(2),
            squares: f64::from(value).powi(2),
            max_abs_error: error.abs(),
        });
    }
    loss
}

/// Copies `tensor` to `place`, as `dtype`: its own, or F32.
///
/// # Errors
/// As [`write_codes`]; biases may be all zero.
pub(super) fn copy(
    tensor: &TensorInfo,
    dtype: Dtype,
    to: &TensorWriter,
    place: &Place,
    told: &mut OnBytes<'_>,
) -> Result<()> {
    let copy = |room: &mut Room, chunk: usize| {
        room.read(tensor, chunk)?;
        tensor.check_finite(&room.values)?;
        let bytes = if dtype == tensor.dtype { &room.stored } else { bytemuck::cast_slice(&room.values) };
        to.write(place, (chunk * CHUNK * dtype.bitsize() / 8) as u64, bytes)?;
        Ok((room.stored.len() as u64, room.values.iter().all(|value| *value == 0.0)))
    };
    let chunks = in_chunks(tensor, &copy, &mut |(bytes, _)| told(*bytes))?;
    match tensor.name.ends_with("weight") && chunks.iter().all(|(_, is_zero)| *is_zero) {
        true => Err(tensor.all_zero()),
        false => Ok(()),
    }
}

/// What `work` makes of every chunk of `tensor`, in their order; `told` hears of each on this thread as soon as it is done.
fn in_chunks<T: Send>(
    tensor: &TensorInfo,
    work: &(dyn Fn(&mut Room, usize) -> Result<T> + Sync),
    told: &mut dyn FnMut(&T) -> ControlFlow<()>,
) -> Result<Vec<T>> {
    let count = tensor.elements().div_ceil(CHUNK);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS).min(count);
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut made: Vec<Option<T>> = std::iter::repeat_with(|| None).take(count).collect();
    let mut result = Ok(());
    std::thread::scope(|scope| {
        // A chunk of each thread waits for its being told, and no more.
        let (done, chunks) = mpsc::sync_channel(threads);
        for i in 0..threads {
            let (done, next, stopped) = (done.clone(), &next, &stopped);
            let spawned = std::thread::Builder::new().spawn_scoped(scope, move || {
                let mut room = Room::default();
                while !stopped.load(Ordering::Relaxed) {
                    let chunk = next.fetch_add(1, Ordering::Relaxed);
                    if chunk >= count || done.send((chunk, work(&mut room, chunk))).is_err() {
                        break;
                    }
                }
            });
            match spawned {
                Ok(_) => {}
                Err(e) if i == 0 => result = Err(Error::no_thread(&e)),
                // Fewer do, too.
                Err(_) => break,
            }
        }
        drop(done);
        for (chunk, worked) in chunks {
            let outcome = worked.and_then(|worked| match told(&worked) {
                ControlFlow::Continue(()) => Ok(worked),
                ControlFlow::Break(()) => Err(Error::Stopped),
            });
            match outcome {
                Ok(worked) => made[chunk] = Some(worked),
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    // The first error is kept: what comes after it may follow from it.
                    result = std::mem::replace(&mut result, Ok(())).and(Err(error));
                }
            }
        }
    });
    result?;
    Ok(made.into_iter().flatten().collect())
}
