//! Formats of few bits that the host turns into f32 as it reads them: fp8, and the block formats of GGUF files.
//!
//! A tensor in one of these is a run of blocks, each of [`Format::bytes`] bytes that mean [`Format::values`] numbers. What they
//! mean is in [`super::gguf::blocks`] for those of GGUF, and here for fp8, whose blocks are single numbers.
//!
//! Source: fp8 as in "FP8 formats for deep learning" (arXiv:2209.05433), E4M3 without infinities.

use half::f16;

use super::gguf::blocks;
use crate::Result;

pub use crate::kernels::kept::Format;

/// Numbers of the largest block; smaller ones are decoded so many at a time.
pub(super) const MOST_VALUES: usize = 256;

impl Format {
    /// What whole blocks mean: `out` has room for exactly that.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let mut each = |decode: fn(&[u8], &mut [f32])| {
            let blocks = bytes.chunks_exact(self.bytes());
            for (block, out) in blocks.zip(out.chunks_exact_mut(self.values())) {
                decode(block, out);
            }
        };
        match self {
            Format::F8E4M3 => look_up(&E4M3, bytes, out),
            Format::F8E5M2 => look_up(&E5M2, bytes, out),
            Format::Q4_0 => each(blocks::q4_0),
            Format::Q4_1 => each(blocks::q4_1),
            Format::Q5_0 => each(blocks::q5_0),
            Format::Q5_1 => each(blocks::q5_1),
            Format::Q8_0 => each(blocks::q8_0),
            Format::Q2K => each(blocks::q2_k),
            Format::Q3K => each(blocks::q3_k),
            Format::Q4K => each(blocks::q4_k),
            Format::Q5K => each(blocks::q5_k),
            Format::Q6K => each(blocks::q6_k),
        }
    }

    /// Numbers from `first` on, times `scale`, as little-endian f32, as many as `out` holds; `read` reads the tensor's bytes.
    pub(super) fn read(
        self,
        first: usize,
        scale: f32,
        out: &mut [u8],
        read: impl Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let (values, bytes) = (self.values(), self.bytes());
        let count = out.len() / 4;
        if count == 0 {
            return Ok(());
        }
        let (from, to) = (first / values, (first + count).div_ceil(values));
        let mut stored = vec![0; (to - from) * bytes];
        read((from * bytes) as u64, &mut stored)?;
        let mut decoded = [0.0; MOST_VALUES];
        // Blocks at a time, the first and the last of which may be asked for in part.
        let at_once = MOST_VALUES / values;
        let mut out = out.as_chunks_mut::<4>().0.iter_mut();
        let mut skip = first - from * values;
        for stored in stored.chunks(at_once * bytes) {
            let decoded = &mut decoded[..stored.len() / bytes * values];
            self.decode(stored, decoded);
            for (value, out) in decoded[skip..].iter().zip(&mut out) {
                *out = (value * scale).to_le_bytes();
            }
            skip = 0;
        }
        Ok(())
    }
}

fn look_up(table: &[f32; 256], bytes: &[u8], out: &mut [f32]) {
    for (byte, out) in bytes.iter().zip(out) {
        *out = table[*byte as usize];
    }
}

/// What each byte means, by a function that the compiler calls.
macro_rules! table {
    ($decode:ident) => {{
        let (mut table, mut byte) = ([0.0; 256], 0);
        while byte < 256 {
            table[byte] = $decode(byte as u8);
            byte += 1;
        }
        table
    }};
}

static E4M3: [f32; 256] = table!(e4m3);
static E5M2: [f32; 256] = table!(e5m2);

const fn e4m3(byte: u8) -> f32 {
    let sign = ((byte >> 7) as u32) << 31;
    let (exponent, mantissa) = ((byte >> 3 & 15) as u32, (byte & 7) as u32);
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    if exponent == 0 {
        // Subnormal: in steps of 2^-9.
        let value = mantissa as f32 / 512.0;
        return f32::from_bits(value.to_bits() | sign);
    }
    f32::from_bits(sign | (exponent + 120) << 23 | mantissa << 20)
}

const fn e5m2(byte: u8) -> f32 {
    f16::from_bits((byte as u16) << 8).to_f32_const()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_is_what_the_paper_says() {
        for (byte, value) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x39, 1.125),
            (0xb8, -1.0),
            (0x7e, 448.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(e4m3(byte), value, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert!(e4m3(0x80).to_bits() == 0x8000_0000);
        for (byte, value) in [(0x01, 1.525_878_9e-5), (0x3c, 1.0), (0x7b, 57344.0), (0xfb, -57344.0)] {
            assert_eq!(e5m2(byte), value, "{byte:#x}");
        }
        assert!(e5m2(0x7c).is_infinite() && e5m2(0x7d).is_nan());
        // Every finite number is the sum that its bits say, apart from the code above.
        for byte in (0..=255u8).filter(|byte| byte & 0x7f != 0x7f) {
            let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
            let size = match exponent {
                0 => mantissa / 8.0 * 2f64.powi(-6),
                _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            let value = if byte & 0x80 == 0 { size } else { -size };
            assert_eq!(f64::from(E4M3[byte as usize]), value, "{byte:#x}");
        }
    }

    #[test]
    fn any_run_of_values_reads_as_those_of_the_whole() {
        // 3 blocks of Q8_0 of scales 1, 2 and 3, and values that count up.
        let mut stored = Vec::new();
        for block in 0..3u8 {
            stored.extend(f16::from_f32(f32::from(block + 1)).to_le_bytes());
            stored.extend((0..32).map(|i| block * 32 + i));
        }
        let read = |first: usize, count: usize| {
            let mut out = vec![0; 4 * count];
            let from_file = |at: u64, bytes: &mut [u8]| {
                bytes.copy_from_slice(&stored[at as usize..at as usize + bytes.len()]);
                Ok(())
            };
            Format::Q8_0.read(first, 0.5, &mut out, from_file).unwrap();
            out.as_chunks::<4>().0.iter().map(|&quad| f32::from_le_bytes(quad)).collect::<Vec<_>>()
        };
        let all = read(0, 96);
        assert_eq!((all[1], all[33], all[95]), (0.5, 33.0, 142.5));
        for (first, count) in [(0, 0), (0, 1), (31, 2), (5, 60), (40, 56), (95, 1)] {
            assert_eq!(read(first, count), all[first..first + count], "{first}, {count}");
        }
    }
}
