//! What is in the blocks of GGUF's quantized types, for kernels that multiply with it: codes as bytes, and scales in words, as
//! `kernels/kept.cuh` lists them. What they mean is in [`super::blocks`], and the two are held to each other by tests.

use super::blocks::{fifths, nibbles, scale_bits, two_bits};
use crate::kernels::kept::Format;

/// One block, taken apart.
pub(crate) struct Codes<'a> {
    /// One a byte.
    pub codes: &'a mut [u8],
    /// Four bytes for 64 numbers: those of a block of 32 are half of a word.
    pub words: &'a mut [u8],
    /// As many as [`Format::extra`] says; of a block of 32 half a word, too.
    pub extras: &'a mut [u8],
}

/// Takes `block` apart. Scales that are no finite numbers stay what they are; returns whether there are any.
pub(crate) fn take_apart(format: Format, block: &[u8], to: &mut Codes<'_>) -> bool {
    let f16s: &[usize] = match format {
        Format::F8E4M3 | Format::F8E5M2 => &[],
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
    };
    match format {
        Format::F8E4M3 | Format::F8E5M2 => to.codes.copy_from_slice(block),
        Format::Q8_0 => to.codes.iter_mut().zip(&block[2..34]).for_each(|(code, q)| *code = q ^ 0x80),
        Format::Q4_0 => nibbles(&block[2..18], |i, q| to.codes[i] = q),
        Format::Q4_1 => nibbles(&block[4..20], |i, q| to.codes[i] = q),
        Format::Q5_0 => {
            let fifth = fifths(&block[2..6]);
            nibbles(&block[6..22], |i, q| to.codes[i] = q | fifth(i));
        }
        Format::Q5_1 => {
            let fifth = fifths(&block[4..8]);
            nibbles(&block[8..24], |i, q| to.codes[i] = q | fifth(i));
        }
        Format::Q4K => runs_of_nibbles(block, &block[16..144], |_, _| 0, to),
        Format::Q5K => runs_of_nibbles(block, &block[48..176], |j, l| (block[16 + l] >> j & 1) << 4, to),
        Format::Q2K => {
            for (t, codes) in to.codes.chunks_exact_mut(16).enumerate() {
                codes.iter_mut().zip(two_bits(&block[16..80], t)).for_each(|(code, q)| *code = q);
            }
            to.words.copy_from_slice(&block[..16]);
        }
        Format::Q3K => q3_k(block, to),
        Format::Q6K => q6_k(block, to),
    }
    // Those of words first, then the extras'.
    let halves =
        if to.words.len() == 2 { [&mut *to.words, &mut *to.extras] } else { [&mut *to.extras, &mut []] };
    let places = halves.into_iter().flat_map(|half| half.chunks_exact_mut(2));
    for (place, &at) in places.zip(f16s) {
        place.copy_from_slice(&block[at..at + 2]);
    }
    const EXPONENT: u8 = 0x7c;
    f16s.iter().any(|&at| block[at + 1] & EXPONENT == EXPONENT)
}

/// Of `Q4_K` and `Q5_K`: `upper(j, l)` is the fifth bit of number `l` of run `j`, in its place.
fn runs_of_nibbles(block: &[u8], qs: &[u8], upper: impl Fn(usize, usize) -> u8, to: &mut Codes<'_>) {
    for (j, codes) in to.codes.chunks_exact_mut(32).enumerate() {
        for (l, (code, byte)) in codes.iter_mut().zip(&qs[j / 2 * 32..]).enumerate() {
            *code = byte >> (j % 2 * 4) & 15 | upper(j, l);
        }
        let (scale, min) = scale_bits(&block[4..16], j);
        (to.words[j / 2 * 4 + j % 2], to.words[j / 2 * 4 + 2 + j % 2]) = (scale, min);
    }
}

fn q3_k(block: &[u8], to: &mut Codes<'_>) {
    let (mask, scales) = (&block[..32], &block[96..108]);
    for (t, codes) in to.codes.chunks_exact_mut(16).enumerate() {
        let thirds = mask[t % 2 * 16..][..16].iter().map(|byte| byte >> (t / 2) & 1);
        for ((code, q), third) in codes.iter_mut().zip(two_bits(&block[32..96], t)).zip(thirds) {
            *code = q | third << 2;
        }
        let low = if t < 8 { scales[t] & 15 } else { scales[t - 8] >> 4 };
        let high = scales[8 + t % 4] >> (2 * (t / 4)) & 3;
        // Of the scales -32 to 31 the kernels know those that they subtract 128 from.
        to.words[t] = (low | high << 4) + 96;
    }
}

fn q6_k(block: &[u8], to: &mut Codes<'_>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (t, codes) in to.codes.chunks_exact_mut(16).enumerate() {
        let (half, run, at) = (t / 8, t / 2 % 4, t % 2 * 16);
        let low = low[64 * half + run % 2 * 32 + at..][..16].iter().map(|byte| byte >> (run / 2 * 4) & 15);
        let high = high[32 * half + at..][..16].iter().map(|byte| byte >> (2 * run) & 3);
        for ((code, nibble), two) in codes.iter_mut().zip(low).zip(high) {
            *code = nibble | two << 4;
        }
        to.words[t] = scales[t] ^ 0x80;
    }
}
