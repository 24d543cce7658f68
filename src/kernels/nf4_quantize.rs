//! NF4 quantization on the device, into plain rows or into the GEMM's fragments; codes of files are put in that order, too.

use half::bf16;

use super::{check_len, check_pitch, kernel, matrix_len, refuse, round_up, to_i32, volume};
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// One warp per quant block.
    NF4_QUANTIZE, "nf4_quantize", nf4_quantize, abi::NF4_QUANTIZE_THREADS, abi::NF4_QUANTIZE_SMEM_BYTES
);

/// Weights that share an absmax, consecutive in a row.
pub const NF4_BLOCK: usize = 64;

/// Features per tile of [`Nf4Layout::Fragments`].
pub const NF4_TILE: usize = 64;

/// How codes and absmax of an `[n, k]` weight lie in memory. Two codes share a byte, the even `k` in the high nibble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nf4Layout {
    /// Codes `[n, k / 2]`, absmax `[n, k / 64]`: what [`super::gemv`] reads, and what bitsandbytes stores.
    Rows,
    /// Codes where [`fragment_offset`] says, absmax `[k / 64, n]` with `n` rounded up to whole tiles: what the
    /// tensor-core GEMM reads.
    Fragments,
}

impl Nf4Layout {
    /// `n` as this layout counts it: fragments come in whole tiles.
    pub fn padded_rows(self, n: usize) -> usize {
        match self {
            Nf4Layout::Rows => n,
            Nf4Layout::Fragments => round_up(n, NF4_TILE),
        }
    }

    /// Bytes of the codes of an `[n, k]` weight.
    pub fn codes_len(self, n: usize, k: usize) -> usize {
        volume(&[self.padded_rows(n), k / 2])
    }

    /// Elements of the absmax of an `[n, k]` weight.
    pub fn absmax_len(self, n: usize, k: usize) -> usize {
        volume(&[self.padded_rows(n), k / NF4_BLOCK])
    }
}

/// The byte that holds the codes of weights `(n, k)` and `(n, k + 1)`, `k` even, of a weight with rows of `row_len` in
/// [`Nf4Layout::Fragments`].
///
/// Features come in tiles of 64, `k` in blocks of 64; each pair of those has 4 x 512 bytes, of which a lane reads 16 at
/// a time: for each of four k16 steps the A-fragment rows g and g + 8 of an m16n8k16 product. `kernels/nf4_quantize.cu`
/// has the picture.
pub fn fragment_offset(n: usize, k: usize, row_len: usize) -> usize {
    let (f, kk) = (n % 64, k % 64);
    let (g, i, h) = (f / 8, f % 8 / 2, f % 2);
    let (k16, q, t) = (kk / 16, kk % 16 / 8, kk % 8 / 2);
    ((n / 64 * (row_len / 64) + k / 64) * 4 + i) * 512 + (4 * g + t) * 16 + k16 * 4 + q * 2 + h
}

/// The weights to quantize.
#[derive(Clone, Copy, Debug)]
pub enum Nf4Source<'a> {
    /// f32.
    F32(&'a View<f32>),
    /// bf16.
    Bf16(&'a View<bf16>),
    /// Codes that are there already, `[rows, k / 2]` with rows of `pitch / 2` bytes, even `k` in the high nibble, and absmax
    /// `[rows, k / 64]`: they stay what they are.
    Nf4(&'a View<u8>, &'a View<f32>),
}

/// Rows `first_row .. first_row + rows` of an `[n, k]` NF4 weight from f32, bf16 or NF4 rows.
///
/// - `src`: `[rows, k]` with row pitch `pitch`, even for NF4; `codes`, `absmax`: the whole destination in `layout`
/// - numerics: bit-equal to bitsandbytes' CPU quantizer: `absmax = max |w|`; the code counts the thresholds strictly
///   below `w * (1 / absmax)`; a block of zeros has absmax 0 and code 7
/// - rows that pad the last tile of fragments are not written: clear the destination first
/// - source: bitsandbytes 0.50, QLoRA (arXiv:2305.14314)
#[derive(Debug)]
pub struct Nf4Quantize<'a> {
    /// `[rows, k]`.
    pub src: Nf4Source<'a>,
    /// Elements from one row of `src` to the next.
    pub pitch: usize,
    /// Rows of `src`.
    pub rows: usize,
    /// A multiple of 64.
    pub k: usize,
    /// Where row 0 of `src` goes, in a weight that several sources make up.
    pub first_row: usize,
    /// Rows of the destination.
    pub n: usize,
    /// Of the destination.
    pub layout: Nf4Layout,
    /// [`Nf4Layout::codes_len`] bytes.
    pub codes: &'a View<u8>,
    /// [`Nf4Layout::absmax_len`] elements.
    pub absmax: &'a View<f32>,
    /// One element, increased by the number of weights that are not finite: their codes mean nothing.
    pub nonfinite: &'a View<u32>,
}

const NAME: &str = "nf4_quantize";

impl Nf4Quantize<'_> {
    fn check<'d>(&self, device: &'d Device) -> Result<(abi::nf4_quantize_params, Footprint<'d>)> {
        if self.k == 0 || !self.k.is_multiple_of(NF4_BLOCK) {
            return Err(refuse(NAME, format!("k = {} is no positive multiple of 64", self.k)));
        }
        if self.first_row.checked_add(self.rows).is_none_or(|end| end > self.n) {
            return Err(Error::Internal(format!(
                "{NAME}: rows {}..+{} leave a weight of {} rows",
                self.first_row, self.rows, self.n
            )));
        }
        check_pitch(NAME, "pitch", self.pitch, self.k)?;
        let needed = matrix_len(self.rows, self.pitch, self.k);
        let mut footprint = Footprint::new(device);
        let (mut src_f32, mut src_bf16, mut src_codes, mut src_absmax) = (0, 0, 0, 0);
        match self.src {
            Nf4Source::F32(src) => {
                check_len(NAME, "src", src, needed)?;
                src_f32 = footprint.reads_rows(src, self.rows, self.pitch, self.k)?;
            }
            Nf4Source::Bf16(src) => {
                check_len(NAME, "src", src, needed)?;
                src_bf16 = footprint.reads_rows(src, self.rows, self.pitch, self.k)?;
            }
            Nf4Source::Nf4(codes, absmax) => {
                if !self.pitch.is_multiple_of(2) {
                    return Err(refuse(NAME, format!("rows of NF4 that are {} apart", self.pitch)));
                }
                check_len(NAME, "src codes", codes, needed.div_ceil(2))?;
                check_len(NAME, "src absmax", absmax, volume(&[self.rows, self.k / NF4_BLOCK]))?;
                src_codes = footprint.reads_rows(codes, self.rows, self.pitch / 2, self.k / 2)?;
                src_absmax = footprint.reads(absmax)?;
            }
        }
        check_len(NAME, "codes", self.codes, self.layout.codes_len(self.n, self.k))?;
        check_len(NAME, "nonfinite", self.nonfinite, 1)?;
        check_len(NAME, "absmax", self.absmax, self.layout.absmax_len(self.n, self.k))?;
        let params = abi::nf4_quantize_params {
            src_f32,
            src_bf16,
            src_codes,
            src_absmax,
            codes: footprint.updates(self.codes)?,
            absmax: footprint.updates(self.absmax)?,
            nonfinite: footprint.updates(self.nonfinite)?,
            rows: self.rows as i64,
            pitch: self.pitch as i64,
            k: self.k as i64,
            first_row: self.first_row as i64,
            padded_rows: self.layout.padded_rows(self.n) as i64,
            fragments: i32::from(self.layout == Nf4Layout::Fragments),
            reserved: 0,
        };
        Ok((params, footprint))
    }

    /// Enqueues the quantization.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape, `pitch` is less than `k`, or the rows leave the
    /// destination; [`Error::Unsupported`] when `k` is not a multiple of 64.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let (params, footprint) = self.check(device)?;
        let ctas = volume(&[self.rows, self.k / NF4_BLOCK]).div_ceil(abi::NF4_QUANTIZE_BLOCKS as usize);
        let grid = [to_i32(NAME, "the grid", ctas)? as u32, 1, 1];
        // SAFETY: params is this entry's generated type; `src` covers `rows` rows at its pitch, the destinations all
        // rows of the layout, of which first_row .. first_row + rows are written (checked above).
        unsafe { device.launch(stream, Config { kernel: &NF4_QUANTIZE, grid }, &params, &footprint) }
    }
}
