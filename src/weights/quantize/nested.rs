//! "Double quantization": absmax in 8 bits, as bitsandbytes 0.50 computes it on a CPU, bit for bit.
//!
//! The mean of a tensor's absmax is taken off, what is left is cut into groups of [`GROUP`], a group keeps its largest magnitude
//! in f32, and each of its values the index of an entry of [`map`]. bitsandbytes looks that index up by the value's first 16
//! bits (`code` here), so that close to zero it is not always the nearest entry.
//!
//! The mean is torch's, whose bits depend on the order of its sum. This is the order of one thread and vectors of eight, that of
//! torch's x86-64 build for up to 32,768 absmax (2,097,152 weights). Of larger tensors torch gives each of its threads a part: then
//! its mean was off by one unit in the last place in 14 of 24 cases (67 million weights; 2, 4, 8 and 16 threads), and with it at
//! most 16 of 1,048,576 codes. Loaders use the mean that is stored.

use std::sync::LazyLock;

/// absmax that share one scale.
pub const GROUP: usize = 256;

/// absmax in 8 bits: of block `i` it is `map[codes[i]] * scales[i / 256] + offset`.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    /// One for each quant block.
    pub codes: Vec<u8>,
    /// One for each [`GROUP`] of them.
    pub scales: Vec<f32>,
    /// The mean of all absmax.
    pub offset: f32,
}

/// Quantizes a tensor's absmax, which are finite.
pub fn quantize(absmax: &[f32]) -> Nested {
    let offset = mean(absmax);
    let (mut codes, mut scales) = (Vec::with_capacity(absmax.len()), Vec::new());
    for group in absmax.chunks(GROUP) {
        let largest = group.iter().fold(0.0f32, |largest, a| largest.max((a - offset).abs()));
        scales.push(largest);
        if largest == 0.0 {
            codes.resize(codes.len() + group.len(), 0);
            continue;
        }
        let reciprocal = 1.0 / largest;
        codes.extend(group.iter().map(|a| code((a - offset) * reciprocal)));
    }
    Nested { codes, scales, offset }
}

impl Nested {
    /// What absmax become of it: as loaders compute it, the product rounded before the offset is added.
    pub fn dequantize(&self) -> Vec<f32> {
        let scaled = |(i, code): (usize, &u8)| map()[*code as usize] * self.scales[i / GROUP] + self.offset;
        self.codes.iter().enumerate().map(scaled).collect()
    }
}

/// The 256 values, ascending: seven decades, 2^i values of either sign in the i-th, zero and one.
///
/// Source: "8-bit Approximations for Parallelism in Deep Learning" (arXiv:1511.04561) for the form; the rounding is that of
/// torch's `linspace`, which counts from both ends.
pub fn map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let mut values = vec![0.0, 1.0];
        for decade in 0..7 {
            let parts = 1 << decade;
            let step = (1.0f32 - 0.1) / parts as f32;
            let point = |k: i32| match k < (parts + 1) / 2 {
                true => step.mul_add(k as f32, 0.1),
                false => (-step).mul_add((parts - k) as f32, 1.0),
            };
            let scale = 10f64.powi(decade - 6) as f32;
            for k in 0..parts {
                let middle = (point(k) + point(k + 1)) / 2.0 * scale;
                values.extend([middle, -middle]);
            }
        }
        values.sort_by(f32::total_cmp);
        std::array::from_fn(|i| values[i])
    });
    &MAP
}

/// The code of `x`, which is in [-1, 1]: the entry of [`map`] that is nearest to `x` in steps of 2 / 65535.
fn code(x: f32) -> u8 {
    const STEPS: f32 = 65535.0;
    static NEAREST: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let map = map();
        let mut code = 0;
        let nearest = |step: u32| {
            let value = step as f32 / STEPS * 2.0 - 1.0;
            while code + 1 < map.len() && (map[code + 1] - value).abs() < (map[code] - value).abs() {
                code += 1;
            }
            code as u8
        };
        (0..=STEPS as u32).map(nearest).collect()
    });
    // A reciprocal that was rounded up brings the largest above one.
    NEAREST[(((x.clamp(-1.0, 1.0) + 1.0) * 0.5) * STEPS + 0.5) as usize]
}

/// Sums in flight of a vector of numbers: see [`sum`].
const IN_FLIGHT: usize = 4;
/// Numbers in torch's vectors of 256 bits.
const LANES: usize = 8;

/// The mean as torch's CPU build computes it on one thread.
fn mean(values: &[f32]) -> f32 {
    let sum = if values.len() < LANES { sum::<1>(values) } else { sum::<LANES>(values) };
    sum / values.len() as f32
}

/// Vectors of numbers, of which [`IN_FLIGHT`] are summed side by side; what is left over is added to the first of them, and what
/// is no whole vector before the lanes are.
fn sum<const N: usize>(values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<N>();
    let (rows, vectors) = vectors.as_chunks::<IN_FLIGHT>();
    let [mut total, others @ ..] = cascade(rows);
    for vector in vectors.iter().chain(&others) {
        add(&mut total, vector);
    }
    rest.iter().chain(&total).fold(0.0, |sum, value| sum + value)
}

/// The sum of rows by columns. Partial sums of as many rows as there are in partial sums of the next level, and so on: the error
/// grows with the logarithm of their number.
fn cascade<const N: usize>(rows: &[[[f32; N]; IN_FLIGHT]]) -> [[f32; N]; IN_FLIGHT] {
    const LEVELS: usize = 4;
    let log2 = rows.len().max(1).next_power_of_two().trailing_zeros() as usize;
    let bits = (log2 / LEVELS).max(4);
    let mut levels = [[[0.0; N]; IN_FLIGHT]; LEVELS];
    let step = 1 << bits;
    for (i, row) in rows.iter().enumerate() {
        add_row(&mut levels[0], row);
        let count = i + 1;
        if count % step != 0 {
            continue;
        }
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; N]; IN_FLIGHT]);
            add_row(&mut levels[level], &below);
            if count & ((step - 1) << (level * bits)) != 0 {
                break;
            }
        }
    }
    let [mut total, above @ ..] = levels;
    above.iter().for_each(|level| add_row(&mut total, level));
    total
}

fn add_row<const N: usize>(to: &mut [[f32; N]; IN_FLIGHT], row: &[[f32; N]; IN_FLIGHT]) {
    to.iter_mut().zip(row).for_each(|(to, row)| add(to, row));
}

fn add<const N: usize>(to: &mut [f32; N], vector: &[f32; N]) {
    to.iter_mut().zip(vector).for_each(|(to, value)| *to += value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_bitsandbytes() {
        let bytes: Vec<u8> = map().iter().flat_map(|value| value.to_le_bytes()).collect();
        let crc = bytes.iter().fold(!0u32, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        });
        assert_eq!(!crc, 0x1b13_7aeb);
    }
}
