//! Stored numbers as f32 or bf16. Bytes are little-endian and need no alignment.

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
