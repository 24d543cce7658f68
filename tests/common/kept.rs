//! Weights in few bits as files have them, for tests of the kernels that take them so. Include it with `#[path = "common/kept.rs"] mod kept;`.
#![allow(dead_code)] // every test file uses a part of it

use half::{bf16, f16};
use schnell::kernels::kept::{Format, KeptLayout};
use schnell::weights::kept::KeptRows;

use crate::common::Rng;

/// Where a block has f16 numbers, and what its largest code and scale multiply them by.
fn scales(format: Format) -> (&'static [usize], f32) {
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
            bytes.iter_mut().for_each(|byte| *byte = *byte & 0x80 | (*byte & 0x7f) % 0x50);
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
