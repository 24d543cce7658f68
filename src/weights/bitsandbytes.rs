//! Tensors that a checkpoint already holds in 4 bits, as bitsandbytes stores them.
//!
//! A Linear's `P.weight` is then `U8 [elements / 2, 1]`, two codes a byte, and beside it lie
//!
//! | name | what |
//! |---|---|
//! | `P.weight.absmax` | F32, one per quant block; U8 when absmax is itself quantized ("nested", "double quant") |
//! | `P.weight.quant_map` | F32 `[16]`, the code book |
//! | `P.weight.nested_absmax`, `P.weight.nested_quant_map` | F32, one per 256 absmax; F32 `[256]` |
//! | `P.weight.quant_state.bitsandbytes__nf4` | U8, JSON: shape, block size, nested offset |
//!
//! Whoever keeps it in NF4 takes the codes as they are, and absmax as f32 (`Quantized::read_codes`,
//! `Quantized::read_absmax`); for all others it reads as what its numbers mean, f32 `[out, in]`.
//!
//! Source: bitsandbytes 0.50, `QuantState.as_dict`.

use std::sync::Arc;

use serde::Deserialize;

use super::nf4::{BLOCK, CODE_BOOK};
use super::tensor::Encoding;
use super::{Component, Dtype, TensorInfo};
use crate::{Error, Result};

/// What the names of the other parts end in, behind the name of the codes.
pub(crate) const SUFFIXES: [&str; 5] =
    [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE];
/// Of the one that every tensor in NF4 has.
pub(crate) const STATE: &str = ".quant_state.bitsandbytes__nf4";

/// Of its JSON, which has five fields.
const LARGEST_STATE: u64 = 1 << 14;

/// The stored parts of such a tensor.
#[derive(Debug)]
pub struct Quantized {
    codes: TensorInfo,
    absmax: TensorInfo,
    nested: Option<Nested>,
}

/// absmax of a block is `book[code] * absmax[block / blocksize] + offset`.
#[derive(Debug)]
struct Nested {
    absmax: Vec<f32>,
    book: Vec<f32>,
    block: usize,
    offset: f32,
}

#[derive(Deserialize)]
struct QuantState {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// `info` as an f32 tensor when bitsandbytes has quantized it; `None` when it has not.
///
/// # Errors
/// [`Error::Unsupported`] for FP4, 8-bit, and other block sizes or code books; [`Error::Weights`] when parts are missing
/// or do not fit together.
pub fn open(component: &Component, info: &TensorInfo) -> Result<Option<TensorInfo>> {
    let part = |suffix: &str| component.get(&format!("{}.{suffix}", info.name));
    let unsupported = |what: String| {
        Error::Unsupported(format!("{}: tensor {}: {what}", info.file.path().display(), info.name))
    };
    let wrong = |what: String| Error::weights(info.file.path(), format!("tensor {}: {what}", info.name));
    if info.name.strip_suffix("weight").is_some_and(|stem| component.get(&format!("{stem}SCB")).is_some()) {
        return Err(unsupported(
            "8-bit bitsandbytes weights are not supported: use NF4 or 16-bit ones".to_string(),
        ));
    }
    if part("quant_state.bitsandbytes__fp4").is_some() {
        return Err(unsupported("FP4 weights are not supported: use NF4 or 16-bit ones".to_string()));
    }
    if part("quant_map").is_none() {
        return Ok(None);
    }
    let needed = |suffix: &str, dtypes: &[Dtype]| -> Result<TensorInfo> {
        let found = part(suffix).ok_or_else(|| wrong(format!("quantized, but without {suffix}")))?;
        if !dtypes.contains(&found.dtype) {
            return Err(wrong(format!("{suffix} has dtype {}: expected {dtypes:?}", found.dtype)));
        }
        Ok(found.clone())
    };
    let state = needed("quant_state.bitsandbytes__nf4", &[Dtype::U8])?;
    let state = quant_state(&state)
        .and_then(|json| json.map_err(|e| wrong(format!("malformed quant_state: {e}")).because(e)))?;
    if state.blocksize != BLOCK {
        return Err(unsupported(format!(
            "quantized in blocks of {}: only {BLOCK} is supported",
            state.blocksize
        )));
    }
    let book = needed("quant_map", &[Dtype::F32])?;
    if book.elements() != CODE_BOOK.len() || book.read_f32()? != CODE_BOOK {
        return Err(unsupported("quantized with another code book than NF4's".to_string()));
    }

    let elements = state.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let Some(elements) =
        elements.filter(|&n| n > 0 && n.div_ceil(2) as u64 == info.bytes && info.dtype == Dtype::U8)
    else {
        return Err(wrong(format!(
            "{} {:?} does not hold the 4-bit codes of {:?}",
            info.dtype, info.shape, state.shape
        )));
    };
    let blocks = elements.div_ceil(BLOCK);
    let absmax = needed("absmax", &[Dtype::F32, Dtype::U8])?;
    let count = |tensor: &TensorInfo, expected: usize, what: &str| match tensor.elements() {
        n if n == expected => Ok(()),
        n => Err(wrong(format!("{n} {what}: expected {expected}"))),
    };
    count(&absmax, blocks, "absmax")?;
    let nested = if absmax.dtype == Dtype::U8 {
        let (Some(block @ 1..), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
            return Err(wrong(
                "absmax is quantized, but quant_state has no positive nested_blocksize or no nested_offset"
                    .to_string(),
            ));
        };
        let of_absmax = needed("nested_absmax", &[Dtype::F32])?;
        count(&of_absmax, blocks.div_ceil(block), "nested_absmax")?;
        let book = needed("nested_quant_map", &[Dtype::F32])?;
        count(&book, 256, "values in nested_quant_map")?;
        Some(Nested { absmax: of_absmax.read_f32()?, book: book.read_f32()?, block, offset })
    } else {
        None
    };
    let quantized = Quantized { codes: info.clone(), absmax, nested };
    Ok(Some(TensorInfo {
        dtype: Dtype::F32,
        bytes: 4 * elements as u64,
        shape: state.shape,
        encoding: Encoding::Nf4(Arc::new(quantized)),
        ..info.clone()
    }))
}

/// The JSON in this tensor, or what is wrong with it.
fn quant_state(tensor: &TensorInfo) -> Result<Result<QuantState, String>> {
    if tensor.bytes > LARGEST_STATE {
        return Ok(Err(format!("{} bytes", tensor.bytes)));
    }
    let mut json = vec![0; tensor.bytes as usize];
    tensor.read_at(0, &mut json)?;
    let read = crate::json::check(&json, &crate::json::CONFIG).and_then(|()| serde_json::from_slice(&json));
    Ok(read.map_err(|e| e.to_string()))
}

impl Quantized {
    /// Bytes of the file that codes and absmax take.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.codes.bytes + self.absmax.bytes
    }

    /// Codes from byte `first` on, two a byte, the even element in the high nibble.
    pub(super) fn read_codes(&self, first: u64, out: &mut [u8]) -> Result<()> {
        self.codes.read_at(first, out)
    }

    /// absmax of the quant blocks from `first` on, as little-endian f32.
    ///
    /// # Errors
    /// [`Error::Weights`] for one that is negative or not finite, [`Error::Io`].
    pub(super) fn read_absmax(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let count = out.len() / 4;
        let Some(nested) = &self.nested else {
            self.absmax.read_at(4 * first as u64, out)?;
            return self.check(out, true);
        };
        // The bytes of the codes come last, and none is written over before it has been read.
        let codes = 3 * count;
        self.absmax.read_at(first as u64, &mut out[codes..4 * count])?;
        for i in 0..count {
            let code = out[codes + i];
            // bitsandbytes rounds the product before it adds the offset.
            let absmax =
                nested.book[code as usize] * nested.absmax[(first + i) / nested.block] + nested.offset;
            out[4 * i..4 * i + 4].copy_from_slice(&absmax.to_le_bytes());
        }
        // Rounding may leave one below zero.
        self.check(out, false)
    }

    fn check(&self, absmax: &[u8], refuse_negative: bool) -> Result<()> {
        let values = || absmax.as_chunks::<4>().0.iter().map(|&quad| f32::from_le_bytes(quad));
        // One pass, in vectors, over what is well, as all is that a quantizer writes: finite, and without a sign.
        let is_well = |bits: u32| u32::from(bits & 0x7f80_0000 != 0x7f80_0000) & (!bits >> 31);
        if values().fold(1, |all, value| all & is_well(value.to_bits())) == 1 {
            return Ok(());
        }
        let count = values().filter(|value| !value.is_finite()).count();
        if count > 0 {
            return Err(self.absmax.not_finite(count as u64));
        }
        if !refuse_negative {
            return Ok(());
        }
        match values().find(|value| *value < 0.0) {
            None => Ok(()),
            Some(negative) => {
                let what = format!("{} holds {negative}: no quantizer writes that", self.absmax.name);
                Err(Error::weights(self.absmax.file.path(), what))
            }
        }
    }

    /// Elements `first..` as little-endian f32, as many as `out` holds.
    pub(super) fn read(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let count = out.len() / 4;
        if count == 0 {
            return Ok(());
        }
        let last = first + count - 1;
        let mut codes = vec![0; last / 2 - first / 2 + 1];
        self.read_codes((first / 2) as u64, &mut codes)?;
        let mut absmax = vec![0; 4 * (last / BLOCK - first / BLOCK + 1)];
        self.read_absmax(first / BLOCK, &mut absmax)?;
        let absmax = absmax.as_chunks::<4>().0;
        for (i, out) in (first..).zip(out.as_chunks_mut::<4>().0) {
            let byte = codes[i / 2 - first / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            let absmax = f32::from_le_bytes(absmax[i / BLOCK - first / BLOCK]);
            *out = (CODE_BOOK[code as usize] * absmax).to_le_bytes();
        }
        Ok(())
    }
}
