//! NF4 as the tests understand it, written from bitsandbytes' documentation and not from `kernels/nf4.cuh`. Include it
//! with `#[path = "common/nf4.rs"] mod nf4;`.
#![allow(dead_code)] // every test file uses a part of it
#![allow(clippy::excessive_precision)] // the decimals that the sources print

use half::bf16;

/// The code book: QLoRA (arXiv:2305.14314), appendix E.
pub const CODES: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// Midpoints of neighboring codes as f32: exact sums, halved and rounded once.
pub fn thresholds() -> [f32; 15] {
    std::array::from_fn(|i| ((f64::from(CODES[i]) + f64::from(CODES[i + 1])) / 2.0) as f32)
}

/// Codes (one per weight) and absmax (one per 64 weights).
pub fn quantize(weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let thresholds = thresholds();
    let (mut codes, mut absmaxes) = (Vec::new(), Vec::new());
    for block in weights.chunks(64) {
        let absmax = block.iter().fold(0f32, |m, w| m.max(w.abs()));
        let inverse = if absmax > 0.0 { 1.0 / absmax } else { 0.0 };
        codes.extend(block.iter().map(|w| thresholds.iter().filter(|t| w * inverse > **t).count() as u8));
        absmaxes.push(absmax);
    }
    (codes, absmaxes)
}

/// What a code means: rounded to bf16 once.
pub fn dequantize(code: u8, absmax: f32) -> bf16 {
    bf16::from_f32(CODES[code as usize] * absmax)
}
