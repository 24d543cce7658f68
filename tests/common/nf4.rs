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

/// Codes and absmax in fragment order, from its definition in kernels/nf4_quantize.cu.
pub fn pack(raw: &[f32], n: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let n_padded = n.next_multiple_of(64);
    let mut codes = vec![0u8; n_padded * k / 2];
    let mut scales = vec![0f32; n_padded * k / 64];
    for row in 0..n {
        for kb in 0..k / 64 {
            let (block, absmax) = quantize(&raw[row * k + kb * 64..row * k + kb * 64 + 64]);
            scales[kb * n_padded + row] = absmax[0];
            for kk in (0..64).step_by(2) {
                let (tile, f) = (row / 64, row % 64);
                let (g, i, h) = (f / 8, f % 8 / 2, f % 2);
                let (k16, r) = (kk / 16, kk % 16);
                let (t, q) = (r % 8 / 2, r / 8);
                let at = ((tile * (k / 64) + kb) * 4 + i) * 512 + (4 * g + t) * 16 + k16 * 4 + q * 2 + h;
                codes[at] = block[kk] << 4 | block[kk + 1];
            }
        }
    }
    (codes, scales)
}
