//! What the blocks of GGUF's quantized types mean, one function a type: `block` is the bytes of one, `out` gets its numbers.
//!
//! `d`, `m` and `dmin` are f16, little-endian. All arithmetic is in f32: scales are multiplied first, then the product with the
//! code, then what is added or subtracted, each rounded on its own; so it is bit for bit what the package `gguf` computes.
//!
//! | type | values | bytes | in this order |
//! |---|---|---|---|
//! | `Q4_0` | 32 | 18 | d, 16 of nibbles |
//! | `Q4_1` | 32 | 20 | d, m, 16 of nibbles |
//! | `Q5_0` | 32 | 22 | d, 4 of fifth bits, 16 of nibbles |
//! | `Q5_1` | 32 | 24 | d, m, 4 of fifth bits, 16 of nibbles |
//! | `Q8_0` | 32 | 34 | d, 32 of i8 |
//! | `Q2_K` | 256 | 84 | 16 of scales and minima, 64 of 2-bit codes, d, dmin |
//! | `Q3_K` | 256 | 110 | 32 of third bits, 64 of 2-bit codes, 12 of 6-bit scales, d |
//! | `Q4_K` | 256 | 144 | d, dmin, 12 of 6-bit scales and minima, 128 of nibbles |
//! | `Q5_K` | 256 | 176 | d, dmin, 12 of 6-bit scales and minima, 32 of fifth bits, 128 of nibbles |
//! | `Q6_K` | 256 | 210 | 128 of nibbles, 64 of upper bits, 16 of i8 scales, d |
//!
//! Source: ggml, `ggml-common.h` and `ggml-quants.c`, MIT.

use half::f16;

/// The f16 at byte `at`.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Of 32 values in 16 bytes: the low nibbles are the first half.
pub(super) fn nibbles(bytes: &[u8], mut each: impl FnMut(usize, u8)) {
    for (j, byte) in bytes.iter().enumerate() {
        each(j, byte & 15);
        each(j + 16, byte >> 4);
    }
}

pub(crate) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    nibbles(&block[2..18], |i, q| out[i] = d * (f32::from(q) - 8.0));
}

pub(crate) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    nibbles(&block[4..20], |i, q| out[i] = d * f32::from(q) + m);
}

/// Fifth bits, one of each value, and a function that puts that of a value in its place.
pub(super) fn fifths(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |i| ((bits >> i & 1) as u8) << 4
}

pub(crate) fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, fifth) = (f16_at(block, 0), fifths(&block[2..6]));
    nibbles(&block[6..22], |i, q| out[i] = d * (f32::from(q | fifth(i)) - 16.0));
}

pub(crate) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, fifth) = (f16_at(block, 0), f16_at(block, 2), fifths(&block[4..8]));
    nibbles(&block[8..24], |i, q| out[i] = d * f32::from(q | fifth(i)) + m);
}

pub(crate) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (out, q) in out.iter_mut().zip(&block[2..34]) {
        *out = f32::from(q.cast_signed()) * d;
    }
}

/// 2-bit codes of the 16 values of run `t`: 32 bytes have 128 values, each byte four that are 32 apart.
pub(super) fn two_bits(qs: &[u8], t: usize) -> impl Iterator<Item = u8> {
    qs[t / 8 * 32 + t % 2 * 16..][..16].iter().map(move |byte| byte >> (t / 2 % 4 * 2) & 3)
}

pub(crate) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (t, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(scales[t] & 15), dmin * f32::from(scales[t] >> 4));
        for (out, q) in out.iter_mut().zip(two_bits(qs, t)) {
            *out = scale * f32::from(q) - min;
        }
    }
}

pub(crate) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, qs, scales, d) = (&block[..32], &block[32..96], &block[96..108], f16_at(block, 108));
    for (t, out) in out.chunks_exact_mut(16).enumerate() {
        let low = if t < 8 { scales[t] & 15 } else { scales[t - 8] >> 4 };
        let high = scales[8 + t % 4] >> (2 * (t / 4)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let thirds = mask[t % 2 * 16..][..16].iter().map(|byte| byte >> (t / 2) & 1);
        for ((out, q), third) in out.iter_mut().zip(two_bits(qs, t)).zip(thirds) {
            *out = scale * (f32::from(q | third << 2) - 4.0);
        }
    }
}

/// Scale and minimum of run `j` of eight, 6 bits each.
pub(super) fn scale_bits(packed: &[u8], j: usize) -> (u8, u8) {
    match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => {
            let low = packed[j + 4];
            (low & 15 | packed[j - 4] >> 6 << 4, low >> 4 | packed[j] >> 6 << 4)
        }
    }
}

/// Of `Q4_K` and `Q5_K`: 32 bytes have the nibbles of two runs of 32 values; `upper` gives the fifth bits of a run, in their
/// places.
fn runs_of_nibbles<U: Iterator<Item = u8>>(
    block: &[u8],
    qs: &[u8],
    upper: impl Fn(usize) -> U,
    out: &mut [f32],
) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_bits(&block[4..16], j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let run = qs[j / 2 * 32..][..32].iter().map(|byte| byte >> (j % 2 * 4) & 15);
        for ((out, q), upper) in out.iter_mut().zip(run).zip(upper(j)) {
            *out = scale * f32::from(q | upper) - min;
        }
    }
}

pub(crate) fn q4_k(block: &[u8], out: &mut [f32]) {
    runs_of_nibbles(block, &block[16..144], |_| std::iter::repeat(0), out);
}

pub(crate) fn q5_k(block: &[u8], out: &mut [f32]) {
    let fifths = |j: usize| block[16..48].iter().map(move |byte| (byte >> j & 1) << 4);
    runs_of_nibbles(block, &block[48..176], fifths, out);
}

pub(crate) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], f16_at(block, 208));
    for (t, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[t].cast_signed());
        // Of 128 values four runs of 32 share 64 bytes of nibbles, and 32 of upper bits.
        let (half, run, at) = (t / 8, t / 2 % 4, t % 2 * 16);
        let low = low[64 * half + run % 2 * 32 + at..][..16].iter().map(|byte| byte >> (run / 2 * 4) & 15);
        let high = high[32 * half + at..][..16].iter().map(|byte| byte >> (2 * run) & 3);
        for ((out, nibble), two) in out.iter_mut().zip(low).zip(high) {
            *out = scale * (f32::from(nibble | two << 4) - 32.0);
        }
    }
}
