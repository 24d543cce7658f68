//! Stored numbers as f32 or bf16. Bytes are little-endian and need no alignment.
//!
//! [`within`] does it inside one buffer, so that loading needs no second one.

use half::{bf16, f16};

use super::Dtype;
use crate::{Error, Result};

/// Converts the elements in `bytes` to f32; exact for all dtypes accepted.
///
/// # Errors
/// [`Error::Unsupported`] for dtypes other than F32, BF16 and F16; [`Error::Input`] when `bytes` and `out` do
/// not hold equally many elements.
pub fn to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    each(dtype, bytes, out, |value| value)
}

/// Converts the elements in `bytes` to bf16, rounding to nearest, ties to even. NaN stays NaN; magnitudes above
/// the largest bf16 become infinite.
///
/// # Errors
/// As [`to_f32`].
pub fn to_bf16(dtype: Dtype, bytes: &[u8], out: &mut [bf16]) -> Result<()> {
    // Not through f32: a signalling NaN would not survive it, and this is a plain copy.
    if dtype == Dtype::BF16 {
        check_length(dtype, 2, bytes, out.len())?;
        for (out, &pair) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = bf16::from_le_bytes(pair);
        }
        return Ok(());
    }
    each(dtype, bytes, out, bf16::from_f32)
}

/// What [`within`] makes of stored numbers.
pub trait Converted: bytemuck::Pod {
    /// From stored bytes.
    ///
    /// # Errors
    /// As [`to_f32`].
    fn convert(dtype: Dtype, bytes: &[u8], out: &mut [Self]) -> Result<()>;
}

impl Converted for f32 {
    fn convert(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        to_f32(dtype, bytes, out)
    }
}

impl Converted for bf16 {
    fn convert(dtype: Dtype, bytes: &[u8], out: &mut [bf16]) -> Result<()> {
        to_bf16(dtype, bytes, out)
    }
}

/// Rows of `row_len` numbers, `pitch` of them apart in the result.
#[derive(Clone, Copy, Debug)]
pub struct RowsOf {
    /// How many.
    pub rows: usize,
    /// Numbers in each.
    pub row_len: usize,
    /// At least `row_len`; what is between is zero.
    pub pitch: usize,
}

impl RowsOf {
    /// Bytes of a buffer in which rows of `dtype` can become rows of `T`: those of the longer of the two.
    pub fn room<T>(self, dtype: Dtype) -> usize {
        self.rows * (self.pitch * size_of::<T>()).max(self.row_len * dtype.bitsize() / 8)
    }
}

/// The last bytes of `buffer`, rows as a file stores them, become rows of `T` at its beginning, which are returned. The buffer
/// is as long as [`RowsOf::room`] says: then no row is written over one that has not been read yet.
///
/// # Errors
/// As [`to_f32`]; [`Error::Internal`] when `buffer` is too short.
pub fn within<T: Converted>(dtype: Dtype, buffer: &mut [u8], shape: RowsOf) -> Result<&mut [T]> {
    let RowsOf { rows, row_len, pitch } = shape;
    let (size, stored) = (size_of::<T>(), dtype.bitsize() / 8);
    let made = rows * pitch * size;
    let Some(first) = buffer.len().checked_sub(rows * row_len * stored).filter(|_| made <= buffer.len())
    else {
        return Err(Error::Internal(format!("{} bytes for {shape:?} of {dtype}", buffer.len())));
    };
    // Numbers at a time: read before any of the bytes that they become is written.
    const PIECE: usize = 1024;
    let mut piece = [0; 4 * PIECE];
    let is_there = first == 0 && stored == size && pitch == row_len && dtype != Dtype::F16;
    for row in (0..rows).filter(|_| !is_there) {
        for at in (0..row_len).step_by(PIECE) {
            let count = PIECE.min(row_len - at);
            let from = first + (row * row_len + at) * stored;
            let piece = &mut piece[..count * stored];
            piece.copy_from_slice(&buffer[from..from + count * stored]);
            let to = (row * pitch + at) * size;
            let out = bytemuck::try_cast_slice_mut(&mut buffer[to..to + count * size]);
            T::convert(dtype, piece, out.map_err(unaligned)?)?;
        }
        buffer[(row * pitch + row_len) * size..(row + 1) * pitch * size].fill(0);
    }
    bytemuck::try_cast_slice_mut(&mut buffer[..made]).map_err(unaligned)
}

fn unaligned(why: bytemuck::PodCastError) -> Error {
    Error::Internal(format!("a buffer to convert in: {why}"))
}

fn each<T>(dtype: Dtype, bytes: &[u8], out: &mut [T], store: impl Fn(f32) -> T) -> Result<()> {
    match dtype {
        Dtype::F32 => {
            check_length(dtype, 4, bytes, out.len())?;
            for (out, &quad) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = store(f32::from_le_bytes(quad));
            }
        }
        Dtype::BF16 => {
            check_length(dtype, 2, bytes, out.len())?;
            for (out, &pair) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = store(bf16::from_le_bytes(pair).to_f32());
            }
        }
        Dtype::F16 => {
            check_length(dtype, 2, bytes, out.len())?;
            for (out, &pair) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = store(f16::from_le_bytes(pair).to_f32());
            }
        }
        other => {
            return Err(Error::Unsupported(format!(
                "weights of dtype {other}: only F32, BF16 and F16 are read"
            )));
        }
    }
    Ok(())
}

fn check_length(dtype: Dtype, element_bytes: usize, bytes: &[u8], elements: usize) -> Result<()> {
    if elements.checked_mul(element_bytes) != Some(bytes.len()) {
        return Err(Error::Input(format!(
            "{} bytes of {dtype} for {elements} elements: expected {element_bytes} bytes each",
            bytes.len()
        )));
    }
    Ok(())
}
