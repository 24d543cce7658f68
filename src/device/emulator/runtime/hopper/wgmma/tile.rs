//! An operand in shared memory: where its descriptor says that it lies.

use std::ops::Range;

use super::K;

/// Bytes of a row of a swizzled tile, of which one product reads [`K`] values.
const ROW_BYTES: usize = 128;

/// A K-major operand with 128-byte swizzle.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    start: usize,
    /// From one eight rows to the next.
    stride: usize,
    num_rows: usize,
}

impl Tile {
    /// Decodes a matrix descriptor.
    pub fn decode(descriptor: u64, num_rows: usize, smem_bytes: usize) -> Result<Tile, String> {
        let field = |at: u32, bits: u32| (descriptor >> at & ((1 << bits) - 1)) as usize;
        let tile = Tile { start: field(0, 14) << 4, stride: field(32, 14) << 4, num_rows };
        if field(62, 2) != 1 {
            return Err(format!("descriptor {descriptor:#x}: the emulator knows 128-byte swizzle only"));
        }
        // Rows must begin where the pattern of the swizzle does; a `base offset` for others is not emulated.
        if field(49, 3) != 0 || tile.start & 0x380 != 0 || tile.stride % 1024 != 0 {
            return Err(format!(
                "descriptor {descriptor:#x}: tiles must lie at multiples of 1024 bytes, this one is at {} with stride {}",
                tile.start, tile.stride
            ));
        }
        if tile.start % ROW_BYTES > ROW_BYTES - 2 * K {
            return Err(format!("descriptor {descriptor:#x}: {K} values of k cross the end of the rows"));
        }
        if tile.rows().end > smem_bytes {
            return Err(format!("descriptor {descriptor:#x}: its {num_rows} rows leave shared memory"));
        }
        Ok(tile)
    }

    /// All bytes of its rows.
    pub fn rows(&self) -> Range<usize> {
        let begin = self.start - self.start % ROW_BYTES;
        begin..begin + (self.num_rows / 8 - 1) * self.stride + 8 * ROW_BYTES
    }

    /// Where the eight values of k from 8 `half` of a row are.
    fn chunk(&self, row: usize, half: usize) -> usize {
        let at = self.start + row / 8 * self.stride + row % 8 * ROW_BYTES + 16 * half;
        at ^ (at >> 7 & 7) << 4
    }

    /// Row, half and place of every eight values.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let tile = *self;
        (0..tile.num_rows).flat_map(move |row| [0, 1].map(|half| (row, half, tile.chunk(row, half))))
    }

    /// The engine must see what is there.
    pub fn check(&self, smem: &[u8], picture: &[u8]) -> Result<(), String> {
        match self.chunks().find(|&(_, _, at)| smem[at..at + 16] != picture[at..at + 16]) {
            None => Ok(()),
            Some((row, _, at)) => Err(format!(
                "wgmma reads shared memory + {at} (row {row}), which a thread has stored to and not made visible by \
                 fence_proxy_async"
            )),
        }
    }

    /// `put(row, k, value)` of all values.
    pub fn for_each(&self, smem: &[u8], mut put: impl FnMut(usize, usize, f32)) {
        for (row, half, at) in self.chunks() {
            for i in 0..8 {
                let bits = u16::from_le_bytes([smem[at + 2 * i], smem[at + 2 * i + 1]]);
                put(row, 8 * half + i, f32::from_bits((bits as u32) << 16));
            }
        }
    }
}
