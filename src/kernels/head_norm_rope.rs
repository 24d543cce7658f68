//! Per-head RMSNorm and RoPE, for head widths that the GEMM epilogue cannot fuse.

use half::bf16;

use super::{all_aligned, check_len, check_pitch, kernel, matrix_len, refuse, to_i32, volume};
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// One warp per row and head.
    HEAD_NORM_ROPE, "head_norm_rope", head_norm_rope_bf16,
    abi::HEAD_NORM_ROPE_THREADS, abi::HEAD_NORM_ROPE_SMEM_BYTES
);

/// In place, for every head: `x = rope(x / sqrt(mean(x^2) + eps) * weight)`, with RoPE on neighboring pairs:
/// `y[2p] = x[2p] cos - x[2p + 1] sin`, `y[2p + 1] = x[2p] sin + x[2p + 1] cos`.
///
/// - `x`: bf16 `[rows, heads, head_dim]` with row pitch `pitch`
/// - `weight`: f32 `[head_dim]`; `cos`, `sin`: f32 `[rope_row + rows, head_dim / 2]`
/// - numerics: f32 inside, one rounding at the store
/// - source: FLUX's QK norm and RoPE
#[derive(Debug)]
pub struct HeadNormRope<'a> {
    /// Updated in place; the view starts at the first head.
    pub x: &'a View<bf16>,
    /// Elements from one row to the next; even.
    pub pitch: usize,
    /// Tokens.
    pub rows: usize,
    /// Heads per token, side by side.
    pub heads: usize,
    /// Even, at most [`abi::HEAD_NORM_ROPE_MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// One factor per channel, the same for all heads.
    pub weight: &'a View<f32>,
    /// 1e-6 in FLUX.
    pub eps: f32,
    /// Cosines of all positions.
    pub cos: &'a View<f32>,
    /// Sines of all positions.
    pub sin: &'a View<f32>,
    /// The position of row 0.
    pub rope_row: usize,
}

const NAME: &str = "head_norm_rope";

impl HeadNormRope<'_> {
    fn check<'d>(&self, device: &'d Device) -> Result<(abi::head_norm_rope_params, Footprint<'d>)> {
        let width = volume(&[self.heads, self.head_dim]);
        let (widest, num_pairs) = (abi::HEAD_NORM_ROPE_MAX_HEAD_DIM as usize, self.head_dim / 2);
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || self.head_dim > widest {
            return Err(refuse(
                NAME,
                format!("head_dim = {} is not even and in 2..={widest}", self.head_dim),
            ));
        }
        check_pitch(NAME, "pitch", self.pitch, width)?;
        if !self.pitch.is_multiple_of(2) || !all_aligned(&[self.x.address()], 4) {
            return Err(Error::Internal(format!("{NAME}: a row of `x` does not start at a whole pair")));
        }
        let table_len = volume(&[self.rope_row.saturating_add(self.rows), num_pairs]);
        check_len(NAME, "x", self.x, matrix_len(self.rows, self.pitch, width))?;
        check_len(NAME, "weight", self.weight, self.head_dim)?;
        check_len(NAME, "cos", self.cos, table_len)?;
        check_len(NAME, "sin", self.sin, table_len)?;
        let mut footprint = Footprint::new(device);
        let params = abi::head_norm_rope_params {
            x: footprint.updates_rows(self.x, self.rows, self.pitch, self.heads * self.head_dim)?,
            weight: footprint.reads(self.weight)?,
            cos: footprint.reads(self.cos)?,
            sin: footprint.reads(self.sin)?,
            pitch: self.pitch as i64,
            rope_row: self.rope_row as i64,
            rows: to_i32(NAME, "rows", self.rows)?,
            heads: to_i32(NAME, "heads", self.heads)?,
            head_dim: self.head_dim as i32,
            eps: self.eps,
        };
        Ok((params, footprint))
    }

    /// Enqueues norm and rotation.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape, `pitch` is odd or less than a row, or `x` is not 4-byte
    /// aligned; [`Error::Unsupported`] for a `head_dim` that is odd or too wide.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let (params, footprint) = self.check(device)?;
        let ctas = volume(&[self.rows, self.heads]).div_ceil(abi::HEAD_NORM_ROPE_HEADS as usize);
        let grid = [to_i32(NAME, "the grid", ctas)? as u32, 1, 1];
        // SAFETY: params is this entry's generated type; `x` covers `rows` rows of whole heads at their pitch, the
        // tables cover rows `rope_row..rope_row + rows` (checked above), beyond which no lane reaches.
        unsafe { device.launch(stream, Config { kernel: &HEAD_NORM_ROPE, grid }, &params, &footprint) }
    }
}
