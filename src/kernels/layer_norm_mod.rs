//! LayerNorm with modulation or with affine weights.

use super::{FloatOut, all_aligned, check_len, check_pitch, kernel, matrix_len, to_i32};
use crate::abi;
use crate::device::{Capability, Config, Device, Footprint, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// Rows of up to [`abi::LAYER_NORM_MOD_SMALL_WIDTH`] floats in registers.
    LAYER_NORM_MOD_SMALL, "layer_norm_mod", layer_norm_mod_small,
    abi::LAYER_NORM_MOD_THREADS, abi::LAYER_NORM_MOD_SMEM_BYTES
);
kernel!(
    /// Rows of up to [`abi::LAYER_NORM_MOD_WIDE_WIDTH`] floats in registers.
    LAYER_NORM_MOD_WIDE, "layer_norm_mod", layer_norm_mod_wide,
    abi::LAYER_NORM_MOD_THREADS, abi::LAYER_NORM_MOD_SMEM_BYTES
);
kernel!(
    /// Any width, any alignment.
    LAYER_NORM_MOD_ANY, "layer_norm_mod", layer_norm_mod_any,
    abi::LAYER_NORM_MOD_THREADS, abi::LAYER_NORM_MOD_SMEM_BYTES
);

/// `out[r, :] = (x[r, :] - mean) / sqrt(var + eps) * (scale_offset + scale) + shift`, the variance biased (divided by
/// `width`).
///
/// - `x`: f32 `[rows, width]` with row pitch `pitch`; `scale`, `shift`: f32 `[width]`
/// - `out`: `[rows, width]` with row pitch `out_pitch`
/// - `rest`: rows from one on with a scale and shift of their own
/// - numerics: two-pass statistics in f32, one rounding at the store
/// - source: LayerNorm (arXiv:1607.06450); FLUX's blocks modulate by `1 + scale`
#[derive(Debug)]
pub struct LayerNormMod<'a> {
    /// The residual stream.
    pub x: &'a View<f32>,
    /// Elements from one row of `x` to the next.
    pub pitch: usize,
    /// How many rows.
    pub rows: usize,
    /// Elements per row.
    pub width: usize,
    /// Modulation, or the affine weight.
    pub scale: &'a View<f32>,
    /// Modulation, or the affine bias.
    pub shift: &'a View<f32>,
    /// What rows from one on take instead.
    pub rest: Option<Rest<'a>>,
    /// 1 when `scale` is a modulation, 0 when it is an affine weight.
    pub scale_offset: f32,
    /// 1e-6 in FLUX, 1e-5 in CLIP.
    pub eps: f32,
    /// May not overlap `x`, `scale` or `shift`.
    pub out: FloatOut<'a>,
    /// Elements from one row of `out` to the next.
    pub out_pitch: usize,
}

/// See [`LayerNormMod::rest`].
#[derive(Clone, Copy, Debug)]
pub struct Rest<'a> {
    /// The first of these rows; at most `rows`.
    pub first_row: usize,
    /// f32 `[width]`.
    pub scale: &'a View<f32>,
    /// f32 `[width]`.
    pub shift: &'a View<f32>,
}

const NAME: &str = "layer_norm_mod";

impl LayerNormMod<'_> {
    fn check<'d>(&self, device: &'d Device) -> Result<(abi::layer_norm_mod_params, Footprint<'d>)> {
        if self.width == 0 {
            return Err(Error::Internal(format!("{NAME}: rows of no elements have no mean")));
        }
        check_pitch(NAME, "pitch", self.pitch, self.width)?;
        check_pitch(NAME, "out_pitch", self.out_pitch, self.width)?;
        check_len(NAME, "x", self.x, matrix_len(self.rows, self.pitch, self.width))?;
        check_len(NAME, "scale", self.scale, self.width)?;
        check_len(NAME, "shift", self.shift, self.width)?;
        self.out.check_len(NAME, matrix_len(self.rows, self.out_pitch, self.width))?;
        let mut footprint = Footprint::new(device);
        let scale = footprint.reads(self.scale)?;
        let shift = footprint.reads(self.shift)?;
        let (rest_row, rest_scale, rest_shift) = match self.rest {
            Some(rest) => {
                check_len(NAME, "rest.scale", rest.scale, self.width)?;
                check_len(NAME, "rest.shift", rest.shift, self.width)?;
                if rest.first_row > self.rows {
                    let what = format!("{NAME}: the rest of {} rows begins at {}", self.rows, rest.first_row);
                    return Err(Error::Internal(what));
                }
                (rest.first_row, footprint.reads(rest.scale)?, footprint.reads(rest.shift)?)
            }
            None => (self.rows, scale, shift),
        };
        let (out_bf16, out_f32) =
            self.out.addresses(&mut footprint, self.rows, self.out_pitch, self.width)?;
        let params = abi::layer_norm_mod_params {
            x: footprint.reads_rows(self.x, self.rows, self.pitch, self.width)?,
            scale,
            shift,
            rest_scale,
            rest_shift,
            out_bf16,
            out_f32,
            pitch: self.pitch as i64,
            out_pitch: self.out_pitch as i64,
            rows: to_i32(NAME, "rows", self.rows)?,
            width: to_i32(NAME, "width", self.width)?,
            rest_row: to_i32(NAME, "rest.first_row", rest_row)?,
            scale_offset: self.scale_offset,
            eps: self.eps,
        };
        Ok((params, footprint))
    }

    /// The entry for this width and alignment.
    pub fn select(&self, _: &Capability) -> Config {
        let Rest { scale, shift, .. } =
            self.rest.unwrap_or(Rest { first_row: 0, scale: self.scale, shift: self.shift });
        let vectors = [self.x, self.scale, self.shift, scale, shift];
        let addresses = vectors.map(|view| view.address());
        let vectors = self.width.is_multiple_of(4)
            && self.pitch.is_multiple_of(4)
            && all_aligned(&addresses, 16)
            && self.out.takes_vectors(self.out_pitch);
        let kernel = match self.width {
            w if vectors && w <= abi::LAYER_NORM_MOD_SMALL_WIDTH as usize => &LAYER_NORM_MOD_SMALL,
            w if vectors && w <= abi::LAYER_NORM_MOD_WIDE_WIDTH as usize => &LAYER_NORM_MOD_WIDE,
            _ => &LAYER_NORM_MOD_ANY,
        };
        let grid = [self.rows.div_ceil(abi::LAYER_NORM_MOD_ROWS as usize) as u32, 1, 1];
        Config { kernel, grid }
    }

    /// Enqueues the norm.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape, a pitch is less than `width`, or `width` is 0.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let (params, footprint) = self.check(device)?;
        let config = self.select(device.capability());
        // SAFETY: params is this entry's generated type; the views cover `rows` rows at their pitches and `width`
        // columns (checked above), beyond which no lane reaches; `select` picks a vector entry only for rows that are
        // aligned for it.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }
}
