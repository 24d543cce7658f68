//! NF4 as the host computes it: the code book, of which `kernels/nf4.cuh` has a copy, and the plain quantizer and dequantizer that the kernels are
//! measured against.
//!
//! The weight, flattened row-major, is cut into quant blocks of [`BLOCK`] values (the last may be shorter). A
//! block keeps `absmax`, its largest magnitude, in f32, and per value the 4-bit index of the nearest entry of
//! [`CODE_BOOK`] to `value / absmax`. Two codes per byte, **the even value in the high nibble**.
//!
//! Equal bit for bit to bitsandbytes 0.50 on the CPU. (`nf4_quantize` differs where a whole block is below 1e-38, which no
//! trained weights are.) Its CUDA build takes a faster reciprocal that may differ
//! in the last bit, which flips a code now and then where a value sits on a threshold.
//!
//! Source: QLoRA (arXiv:2305.14314) for the format; the numbers are bitsandbytes'.

use half::bf16;

use crate::{Error, Result};

/// Values that share one absmax.
pub const BLOCK: usize = 64;

/// The sixteen values, ascending: the owner of these numbers. Written as bits, since decimal digits invite
/// rounding.
pub const CODE_BOOK: [f32; 16] = {
    const BITS: [u32; 16] = [
        0xbf80_0000, // -1
        0xbf32_39b1, // -0.6961928
        0xbf06_6b30, // -0.52507305
        0xbeca_32a0, // -0.3949175
        0xbe91_a24d, // -0.28444138
        0xbe3d_353f, // -0.18477343
        0xbdba_7871, // -0.091050036
        0x0000_0000, // 0
        0x3da2_faff, // 0.0795803
        0x3e24_cae3, // 0.1609302
        0x3e7c_04dd, // 0.2461123
        0x3ead_033a, // 0.33791524
        0x3ee1_a4b8, // 0.44070983
        0x3f10_07ab, // 0.562617
        0x3f39_13b3, // 0.72295684
        0x3f80_0000, // 1
    ];
    let mut book = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        book[i] = f32::from_bits(BITS[i]);
        i += 1;
    }
    book
};

/// The code of zero, which all-zero blocks consist of.
pub const ZERO_CODE: u8 = 7;

/// `THRESHOLDS[i]` separates codes i and i + 1, being their midpoint in f32; a value exactly on it takes code i.
pub const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        thresholds[i] = (CODE_BOOK[i] + CODE_BOOK[i + 1]) / 2.0;
        i += 1;
    }
    thresholds
};

/// A quantized tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    /// Two codes per byte, the even value high; beside a last odd one stands [`ZERO_CODE`].
    pub packed: Vec<u8>,
    /// One per quant block.
    pub absmax: Vec<f32>,
    /// How many values.
    pub elements: usize,
}

/// The code for `x`, a value already divided by its absmax: the number of thresholds strictly below it.
pub fn code(x: f32) -> u8 {
    THRESHOLDS.iter().filter(|&&threshold| x > threshold).count() as u8
}

/// The parts of [-1, 1], all of one width, in each of which lies one threshold at most: how many lie in the parts below, and that
/// one.
const PARTS: [(u8, f32); 64] = {
    let mut parts = [(0, f32::INFINITY); 64];
    let mut i = 0;
    while i < THRESHOLDS.len() {
        let mut at = part(THRESHOLDS[i]);
        assert!(parts[at].1 == f32::INFINITY, "two thresholds in one part");
        parts[at].1 = THRESHOLDS[i];
        while at + 1 < parts.len() {
            at += 1;
            parts[at].0 += 1;
        }
        i += 1;
    }
    parts
};

/// The part that `x` is in: never a lower one for a greater `x`, so that its rounding does no harm.
const fn part(x: f32) -> usize {
    let part = ((x + 1.0) * 32.0) as usize;
    if part < 64 { part } else { 63 }
}

/// As [`code`], in one comparison.
fn code_by_part(x: f32) -> u8 {
    let (below, threshold) = PARTS[part(x)];
    below + u8::from(x > threshold)
}

/// Below it bitsandbytes does not divide: such blocks become codes of zero, or nearly so.
const LEAST_ABSMAX: f32 = 1e-38;

/// Quantizes `weights`.
///
/// A block of zeros gets absmax 0 and [`ZERO_CODE`]s; a short last one 1e-38, as bitsandbytes has it. Values must be finite: what a NaN or an infinity turns
/// into is not defined (but nothing panics).
pub fn quantize(weights: &[f32]) -> Nf4 {
    let mut absmax = Vec::with_capacity(weights.len().div_ceil(BLOCK));
    let mut packed = vec![0; weights.len().div_ceil(2)];
    for (block, packed) in weights.chunks(BLOCK).zip(packed.chunks_mut(BLOCK / 2)) {
        absmax.push(quantize_block(block, packed));
    }
    Nf4 { packed, absmax, elements: weights.len() }
}

/// Quantizes a block, at most [`BLOCK`] values, into half as many bytes (rounded up); returns its absmax.
pub(crate) fn quantize_block(block: &[f32], packed: &mut [u8]) -> f32 {
    // Magnitudes are in the order of their bits, of which the compiler makes vectors.
    let largest = block.iter().fold(0, |largest, w| largest.max(w.abs().to_bits().cast_signed()));
    let largest = f32::from_bits(largest.cast_unsigned());
    let divisor = largest.max(LEAST_ABSMAX);
    // bitsandbytes multiplies by the reciprocal, which rounds otherwise than a division; but of a short block it divides.
    let reciprocal = 1.0 / divisor;
    let is_whole = block.len() == BLOCK;
    let mut scaled = [0.0; BLOCK];
    if is_whole {
        scaled.iter_mut().zip(block).for_each(|(scaled, w)| *scaled = w * reciprocal);
    } else {
        scaled.iter_mut().zip(block).for_each(|(scaled, w)| *scaled = w / divisor);
    }
    for (byte, [even, odd]) in packed.iter_mut().zip(scaled.as_chunks::<2>().0) {
        *byte = code_by_part(*even) << 4 | code_by_part(*odd);
    }
    if is_whole { largest } else { divisor }
}

impl Nf4 {
    /// The values as f32: code times absmax, rounded once.
    ///
    /// # Errors
    /// [`Error::Input`] when the lengths of `packed` and `absmax` do not fit `elements`.
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        let (bytes, blocks) = (self.elements.div_ceil(2), self.elements.div_ceil(BLOCK));
        if self.packed.len() != bytes || self.absmax.len() != blocks {
            return Err(Error::Input(format!(
                "NF4 of {} values has {} bytes and {} absmax: expected {bytes} and {blocks}",
                self.elements,
                self.packed.len(),
                self.absmax.len()
            )));
        }
        Ok((0..self.elements)
            .map(|i| {
                let byte = self.packed[i / 2];
                let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
                CODE_BOOK[code as usize] * self.absmax[i / BLOCK]
            })
            .collect())
    }

    /// The values as bf16: the f32 product, rounded once more. This is the weight the kernels multiply by.
    ///
    /// # Errors
    /// As [`Nf4::dequantize`].
    pub fn dequantize_bf16(&self) -> Result<Vec<bf16>> {
        Ok(self.dequantize()?.into_iter().map(bf16::from_f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_have_the_same_code_book_and_thresholds() {
        let source = std::fs::read_to_string("kernels/nf4.cuh").unwrap();
        let numbers: Vec<u32> = source
            .split("X(0x")
            .skip(1)
            .map(|rest| u32::from_str_radix(rest.split('u').next().unwrap(), 16).unwrap())
            .collect();
        let want: Vec<u32> = CODE_BOOK.iter().chain(&THRESHOLDS).map(|number| number.to_bits()).collect();
        assert_eq!(numbers, want);
    }

    #[test]
    fn codes_by_part_are_codes() {
        let ends = (0..=64).map(|i| i as f32 / 32.0 - 1.0);
        for at in THRESHOLDS.into_iter().chain(CODE_BOOK).chain(ends) {
            let (mut below, mut above) = (at, at);
            for _ in 0..100 {
                assert_eq!((code_by_part(below), code_by_part(above)), (code(below), code(above)), "{at}");
                (below, above) = (below.next_down(), above.next_up());
            }
        }
        for i in -100_000..=100_000 {
            let x = i as f32 / 90_000.0;
            assert_eq!(code_by_part(x), code(x), "{x}");
        }
    }
}
