//! Weights in few bits on their way from a file to the device: taken apart, and put in the order of the kernels.
//!
//! A file's blocks have codes and scales one behind the other; the kernels want codes in the order of the tensor core's fragments, or
//! row by row, in planes of so many bits, and scales in words beside them (`kernels/kept.cuh`). Not a bit is lost or made up: what
//! kernels multiply by is what [`Format::decode`] says, rounded to bf16.

use super::gguf::codes::{Codes, take_apart};
use crate::kernels::kept::{Format, KeptLayout, PANEL, Section, WORD_K};

/// fp8 scales from here on cannot be kept: the kernels' numbers need room for the difference of exponents.
pub const MOST_SCALE: f32 = 128.0;

/// Rows of a weight, as they lie in its file.
#[derive(Clone, Copy, Debug)]
pub struct KeptRows {
    /// Of their blocks.
    pub format: Format,
    /// Of the weight on the device.
    pub layout: KeptLayout,
    /// Numbers in a row, as [`Format::takes`] has it.
    pub k: usize,
    /// How many.
    pub rows: usize,
}

impl KeptRows {
    /// Bytes of them in a file.
    pub fn stored_len(&self) -> usize {
        self.rows * (self.k / self.format.values() * self.format.bytes())
    }

    /// Bytes of them on the device: whole panels, or the four sections of these rows.
    pub fn kept_len(&self) -> usize {
        self.format.kept_len(self.layout, self.rows, self.k)
    }

    /// Puts rows `stored` of a file to `to`, [`KeptRows::kept_len`] bytes. `scale` is that of a tensor in fp8, below [`MOST_SCALE`]. What pads
    /// the last panel is 0. Returns how many numbers are not finite.
    pub fn put(&self, stored: &[u8], scale: f32, to: &mut [u8]) -> u64 {
        let KeptRows { format, k, .. } = *self;
        to.fill(0);
        let (mut codes, mut words) = (vec![0; k], vec![0; format.section_row(Section::Words, k)]);
        let mut extras = vec![0; format.section_row(Section::Extras, k)];
        let in_panels = self.layout == KeptLayout::Panels;
        let (group, table) = if in_panels {
            (PANEL, Table::fragments(format))
        } else {
            (self.rows.max(1), Table::rows(format))
        };
        let (stored_row, group_len) = (self.stored_len() / self.rows.max(1), group * format.row_bytes(k));
        let mut nonfinite = 0;
        for (row, stored) in stored.chunks_exact(stored_row.max(1)).enumerate() {
            nonfinite += take_row_apart(format, stored, scale, &mut codes, &mut words, &mut extras);
            let to = &mut to[row / group * group_len..][..group_len];
            let row = row % group;
            // A k-step of 64 of codes, or a row's share of it, from the next.
            let (low, high) = format.planes();
            let (codes_to, rest) = to.split_at_mut(group * k / 8 * (low + high));
            if in_panels {
                let step = PANEL * WORD_K / 8 * (low + high);
                for (codes, to) in codes.chunks_exact(WORD_K).zip(codes_to.chunks_exact_mut(step)) {
                    let (low_to, high_to) = to.split_at_mut(PANEL * WORD_K / 8 * low);
                    table.put(codes, row, low_to, high_to);
                }
            } else {
                let (low_to, high_to) = codes_to.split_at_mut(group * k / 8 * low);
                let low_to = low_to[row * k / 8 * low..].chunks_mut(WORD_K / 8 * low);
                let mut high_to = high_to[row * k / 8 * high..].chunks_mut((WORD_K / 8 * high).max(1));
                for (codes, low_to) in codes.chunks_exact(WORD_K).zip(low_to) {
                    table.put(codes, 0, low_to, high_to.next().unwrap_or_default());
                }
            }
            let (words_to, extras_to) = rest.split_at_mut(group * words.len());
            place(&words, 4, row, self.layout, words_to);
            place(&extras, format.extra().0, row, self.layout, extras_to);
        }
        nonfinite
    }
}

/// Where bits of the codes of a k-step go, in bytes from where it begins.
struct Table {
    format: Format,
    /// Of `k` from 0 to 63, for the first row: byte and first bit, of both planes.
    places: [[(u16, u8); 2]; WORD_K],
    /// What each row of a panel adds to the bytes.
    rows: Vec<[u16; 2]>,
}

impl Table {
    /// `kernels/operands/kept_tile.cuh` has the order. Of a plane with `bits` of a code, its word `word` (of `bits` that there are) and byte
    /// `part` of a lane.
    fn fragments(format: Format) -> Table {
        let (low, high) = format.planes();
        // Words of 8 bits come in pairs of a lane.
        let pair = |bits: usize| if bits == 8 { 2 } else { 1 };
        let at = |bits: usize, tile: usize, word: usize, lane: usize, part: usize| {
            let pair = pair(bits);
            (((tile * bits + word / pair * pair) * 32 + lane * pair + word % pair) * 4 + part) as u16
        };
        let places = std::array::from_fn(|k| {
            let (u, lane, half) = (2 * (k / 16) + k % 2, k % 8 / 2, k % 16 / 8);
            [low, high].map(|bits| (at(bits, 0, u * bits / 8, lane, 2 * half), (u * bits % 8) as u8))
        });
        let rows = (0..PANEL).map(|f| [low, high].map(|bits| at(bits, f % 8 / 2, 0, 4 * (f / 8), f % 2)));
        Table { format, places, rows: rows.collect() }
    }

    /// `kernels/operands/kept_rows.cuh` has the order: two runs of 32 codes, 4 u + part.
    fn rows(format: Format) -> Table {
        let (low, high) = format.planes();
        let places = std::array::from_fn(|k| {
            let (run, u, part) = (k / 32, k % 32 / 4, k % 4);
            let byte = |bits: usize| (run * 4 * bits + u * bits / 8 * 4 + part) as u16;
            [low, high].map(|bits| (byte(bits), (u * bits % 8) as u8))
        });
        Table { format, places, rows: vec![[0; 2]] }
    }

    /// Adds the bits of 64 codes of a row to planes that have zeros there.
    fn put(&self, codes: &[u8], row: usize, low_to: &mut [u8], high_to: &mut [u8]) {
        let (low, high) = self.format.planes();
        let [low_row, high_row] = self.rows[row];
        for (code, [(byte, bit), _]) in codes.iter().zip(self.places) {
            // In 16 bits, where 8 may be all that there are.
            let bits = u16::from(*code) & ((1 << low) - 1);
            low_to[usize::from(byte + low_row)] |= (bits << bit) as u8;
        }
        if high > 0 {
            for (code, [_, (byte, bit)]) in codes.iter().zip(self.places) {
                high_to[usize::from(byte + high_row)] |= (code >> low) << bit;
            }
        }
    }
}

/// Scales of one row to theirs, `bytes` of them at a time.
fn place(scales: &[u8], bytes: usize, row: usize, layout: KeptLayout, to: &mut [u8]) {
    for (i, scale) in scales.chunks_exact(bytes.max(1)).enumerate() {
        let at = match layout {
            KeptLayout::Panels => (i * PANEL + row) * bytes,
            KeptLayout::Rows => row * scales.len() + i * bytes,
        };
        to[at..at + bytes].copy_from_slice(scale);
    }
}

/// Codes and scales of one row; returns how many of its numbers are not finite.
fn take_row_apart(
    format: Format,
    stored: &[u8],
    scale: f32,
    codes: &mut [u8],
    words: &mut [u8],
    extras: &mut [u8],
) -> u64 {
    if format.is_fp8() {
        codes.copy_from_slice(stored);
        // The kernels take exponents of fp8 for f32's.
        let (power, least) = if format == Format::F8E4M3 { (120, 0x7f) } else { (112, 0x7c) };
        words.copy_from_slice(&(scale * (power as f32).exp2()).to_le_bytes());
        return codes.iter().filter(|code| **code & 0x7f >= least).count() as u64;
    }
    let (values, blocks) = (format.values(), codes.len() / format.values());
    let (word, extra) = (words.len() / blocks, extras.len() / blocks);
    let mut nonfinite = 0;
    for (i, block) in stored.chunks_exact(format.bytes()).enumerate() {
        // Of two blocks of 32 a word has a half of each: d0 d1, and m0 m1.
        let mut apart = Codes {
            codes: &mut codes[i * values..(i + 1) * values],
            words: &mut words[i * word..(i + 1) * word],
            extras: &mut extras[i * extra..(i + 1) * extra],
        };
        nonfinite += if take_apart(format, block, &mut apart) { values as u64 } else { 0 };
    }
    nonfinite
}
