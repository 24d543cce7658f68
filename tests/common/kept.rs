//! Weights in few bits as files have them, for tests of the kernels that take them so. Include it with `#[path = "common/kept.rs"] mod kept;`.
#![allow(dead_code)] // every test file uses a part of it

use std::cmp::Ordering;
use std::sync::LazyLock;

use half::{bf16, f16};
use schnell::kernels::kept::{Format, KeptLayout};
use schnell::weights::kept::KeptRows;

use crate::common::Rng;

/// Where a block has f16 numbers, and what its largest code and scale multiply them by.
pub fn scales(format: Format) -> (&'static [usize], f32) {
    match format {
        Format::F8E4M3 | Format::F8E5M2 => (&[], 1.0),
        Format::Q8_0 => (&[0], 128.0),
        Format::Q4_0 => (&[0], 8.0),
        Format::Q5_0 => (&[0], 16.0),
        Format::Q4_1 => (&[0, 2], 15.0),
        Format::Q5_1 => (&[0, 2], 31.0),
        Format::Q4K => (&[0, 2], 63.0 * 15.0),
        Format::Q5K => (&[0, 2], 63.0 * 31.0),
        Format::Q2K => (&[80, 82], 45.0),
        Format::Q3K => (&[108], 128.0),
        Format::Q6K => (&[208], 4096.0),
    }
}

/// A weight `[n, k]` as a file has it: any codes, scales far from those of their neighbors.
pub struct Stored {
    pub format: Format,
    pub bytes: Vec<u8>,
    /// Of fp8.
    pub scale: f32,
}

impl Stored {
    pub fn random(rng: &mut Rng, format: Format, n: usize, k: usize) -> Stored {
        let blocks = n * k / format.values();
        let mut bytes: Vec<u8> = (0..blocks * format.bytes()).map(|_| rng.bits() as u8).collect();
        if format.is_fp8() {
            // All that are finite, but none so large that nothing else counts.
            bytes.iter_mut().for_each(|byte| *byte = *byte & 0x80 | ((*byte & 0x7f) % 0x50));
            return Stored { format, bytes, scale: 0.37 };
        }
        let (places, most) = scales(format);
        for block in bytes.chunks_exact_mut(format.bytes()) {
            for &at in places {
                let d = f16::from_f32(rng.uniform() * (rng.uniform() * 2.0).exp2() / most);
                block[at..at + 2].copy_from_slice(&d.to_le_bytes());
            }
        }
        Stored { format, bytes, scale: 1.0 }
    }

    /// Blocks with zero, subnormal, largest and negative scales, and all codes that there are. Of fp8 every finite number.
    pub fn extreme(format: Format, n: usize, k: usize, scale: f32) -> Stored {
        let mut rng = Rng(format as u64 + 77);
        let mut stored = Stored::random(&mut rng, format, n, k);
        if format.is_fp8() {
            let most = if format == Format::F8E4M3 { 0x7f } else { 0x7c };
            let finite: Vec<u8> = (0..=255).filter(|byte| byte & 0x7f < most).collect();
            stored.bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = finite[i % finite.len()]);
            return Stored { scale, ..stored };
        }
        // Signs of their own, so that the places of one block differ.
        let extremes = [0x0000u16, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x3c00, 0x7bff, 0xfbff, 0xa5a5];
        for (i, block) in stored.bytes.chunks_exact_mut(format.bytes()).enumerate() {
            for (j, &at) in scales(format).0.iter().enumerate() {
                let bits = extremes[(i + i / extremes.len() * j + j * 3) % extremes.len()];
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        }
        stored
    }

    /// What it means, by the host's reference.
    pub fn means(&self) -> Vec<bf16> {
        let blocks = self.bytes.len() / self.format.bytes();
        let mut values = vec![0.0; blocks * self.format.values()];
        self.format.decode(&self.bytes, &mut values);
        values.iter().map(|value| bf16::from_f32(value * self.scale)).collect()
    }

    /// As the kernels have it.
    pub fn kept(&self, layout: KeptLayout, n: usize, k: usize) -> Vec<u8> {
        let rows = KeptRows { format: self.format, layout, k, rows: n };
        assert_eq!(rows.stored_len(), self.bytes.len());
        let mut kept = vec![0xff; rows.kept_len()];
        assert_eq!(rows.put(&self.bytes, self.scale, &mut kept), 0);
        kept
    }
}

/// The least multiple of `k` that the format has rows of.
pub fn width(format: Format, k: usize) -> usize {
    k.next_multiple_of(format.values().max(64))
}

/// `values` in a format, by plain rounding: one scale (and minimum) a block, whatever the format has more of.
pub fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    values.chunks(format.values()).flat_map(|block| encode_block(format, block)).collect()
}

fn encode_block(format: Format, values: &[f32]) -> Vec<u8> {
    let largest = values.iter().fold(1e-6f32, |most, value| most.max(value.abs()));
    let (least, most) = values.iter().fold((0f32, 1e-6f32), |(a, b), v| (a.min(*v), b.max(*v)));
    let half = |value: f32| f16::from_f32(value);
    // Codes 0 to `top`, of numbers from `least` up, or around `zero`.
    let (d, min, zero, top) = match format {
        Format::Q4_1 | Format::Q4K => (half((most - least) / 15.0), half(least), 0.0, 15.0),
        Format::Q5_1 | Format::Q5K => (half((most - least) / 31.0), half(least), 0.0, 31.0),
        Format::Q2K => (half((most - least) / 3.0), half(least), 0.0, 3.0),
        Format::Q4_0 => (half(largest / 7.0), f16::ZERO, 8.0, 15.0),
        Format::Q5_0 => (half(largest / 15.0), f16::ZERO, 16.0, 31.0),
        Format::Q8_0 => (half(largest / 127.0), f16::ZERO, 128.0, 255.0),
        Format::Q6K => (half(largest / 31.0), f16::ZERO, 32.0, 63.0),
        Format::Q3K => (half(largest / 3.0), f16::ZERO, 4.0, 7.0),
        Format::F8E4M3 | Format::F8E5M2 => return vec![to_fp8(format, values[0])],
    };
    let code = |i: usize| {
        let steps = (values[i] - min.to_f32()) / d.to_f32().max(1e-8);
        (steps.round() + zero).clamp(0.0, top) as u8
    };
    let (d, plus, minus) = (d.to_le_bytes(), min.to_le_bytes(), (-min).to_le_bytes());
    let nibbles = |first: usize| (first..first + 16).map(|i| code(i) & 15 | code(i + 16) << 4);
    let fifths = || (0..32).fold(0u32, |bits, i| bits | u32::from(code(i) >> 4) << i).to_le_bytes();
    let runs = || (0..4).flat_map(|c| (0..32).map(move |l| (64 * c + l, 64 * c + 32 + l)));
    let runs = || runs().map(|(a, b)| code(a) & 15 | code(b) << 4);
    // All eight scales and minima are 1.
    let ones = [1u8, 1, 1, 1, 1, 1, 1, 1, 0x11, 0x11, 0x11, 0x11];
    // Four codes that are 32 apart.
    let quads = || (0..64).map(|at| (0..4).map(move |k| at / 32 * 128 + 32 * k + at % 32));
    let twos =
        || quads().map(|quad| quad.enumerate().fold(0, |byte, (k, i)| byte | (code(i) & 3) << (2 * k)));
    match format {
        Format::Q4_0 => d.into_iter().chain(nibbles(0)).collect(),
        Format::Q4_1 => d.into_iter().chain(plus).chain(nibbles(0)).collect(),
        Format::Q5_0 => d.into_iter().chain(fifths()).chain(nibbles(0)).collect(),
        Format::Q5_1 => d.into_iter().chain(plus).chain(fifths()).chain(nibbles(0)).collect(),
        Format::Q8_0 => d.into_iter().chain((0..32).map(|i| code(i) ^ 0x80)).collect(),
        Format::Q4K => d.into_iter().chain(minus).chain(ones).chain(runs()).collect(),
        Format::Q5K => {
            let fifths = (0..32).map(|l| (0..8).fold(0, |byte, j| byte | (code(32 * j + l) >> 4) << j));
            d.into_iter().chain(minus).chain(ones).chain(fifths).chain(runs()).collect()
        }
        Format::Q2K => [0x11; 16].into_iter().chain(twos()).chain(d).chain(minus).collect(),
        Format::Q3K => {
            let thirds = (0..32).map(|l| (0..8).fold(0, |byte, j| byte | (code(32 * j + l) >> 2) << j));
            // 33 - 32: the low nibble 1, the upper bits 2.
            let scales = [0x11; 8].into_iter().chain([0xaa; 4]);
            thirds.chain(twos()).chain(scales).chain(d).collect()
        }
        Format::Q6K => {
            // Of 128 values run k has the nibbles of 64 bytes' lower or upper half.
            let at = |n: usize, k: usize, l: usize| code(128 * n + 32 * k + l);
            let pair = |n: usize, l: usize| at(n, l / 32, l % 32) & 15 | at(n, l / 32 + 2, l % 32) << 4;
            let low = (0..2).flat_map(|n| (0..64).map(move |l| (n, l))).map(|(n, l)| pair(n, l));
            let quad = |n: usize, l: usize| (0..4).fold(0, |byte, k| byte | (at(n, k, l) >> 4) << (2 * k));
            let high = (0..2).flat_map(|n| (0..32).map(move |l| (n, l))).map(|(n, l)| quad(n, l));
            low.chain(high).chain([1; 16]).chain(d).collect()
        }
        Format::F8E4M3 | Format::F8E5M2 => vec![],
    }
}

/// The nearest number that is finite, of two as near the even one, as PyTorch rounds.
fn to_fp8(format: Format, value: f32) -> u8 {
    // What the bytes without a sign mean, up to the first that is no number; they rise.
    static MEANS: LazyLock<[Vec<f32>; 2]> = LazyLock::new(|| {
        [Format::F8E4M3, Format::F8E5M2].map(|format| {
            let mut means = vec![0.0; 128];
            format.decode(&(0..128).collect::<Vec<u8>>(), &mut means);
            means.truncate(means.iter().position(|mean| !mean.is_finite()).unwrap());
            means
        })
    });
    let means = &MEANS[usize::from(format == Format::F8E5M2)];
    let size = value.abs();
    let above = means.partition_point(|mean| *mean < size).min(means.len() - 1);
    let below = above.saturating_sub(1);
    let code = match (size - means[below]).total_cmp(&(means[above] - size)) {
        Ordering::Less => below,
        Ordering::Greater => above,
        Ordering::Equal => below + below % 2,
    };
    code as u8 | (value.is_sign_negative() as u8) << 7
}

/// ggml's number of a type.
pub fn ggml_type(format: Format) -> u32 {
    match format {
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 12,
        Format::Q5K => 13,
        Format::Q6K => 14,
        Format::F8E4M3 | Format::F8E5M2 => panic!("no type of ggml"),
    }
}
