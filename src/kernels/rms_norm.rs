//! RMSNorm over whole rows (T5's norm).

use super::{FloatOut, all_aligned, check_len, check_pitch, kernel, matrix_len, to_i32};
use crate::abi;
use crate::device::{Capability, Config, Device, Footprint, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// Rows of up to [`abi::RMS_NORM_SMALL_WIDTH`] floats in registers.
    RMS_NORM_SMALL, "rms_norm", rms_norm_small, abi::RMS_NORM_THREADS, abi::RMS_NORM_SMEM_BYTES
);
kernel!(
    /// Rows of up to [`abi::RMS_NORM_WIDE_WIDTH`] floats in registers.
    RMS_NORM_WIDE, "rms_norm", rms_norm_wide, abi::RMS_NORM_THREADS, abi::RMS_NORM_SMEM_BYTES
);
kernel!(
    /// Any width, any alignment.
    RMS_NORM_ANY, "rms_norm", rms_norm_any, abi::RMS_NORM_THREADS, abi::RMS_NORM_SMEM_BYTES
);

/// `out[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight`.
///
/// - `x`: f32 `[rows, width]` with row pitch `pitch`; `weight`: f32 `[width]`
/// - `out`: `[rows, width]` with row pitch `out_pitch`
/// - numerics: statistics in f32, one rounding at the store
/// - source: RMSNorm (arXiv:1910.07467); T5's layer norm
#[derive(Debug)]
pub struct RmsNorm<'a> {
    /// The residual stream.
    pub x: &'a View<f32>,
    /// Elements from one row of `x` to the next.
    pub pitch: usize,
    /// How many rows.
    pub rows: usize,
    /// Elements per row.
    pub width: usize,
    /// One factor per column.
    pub weight: &'a View<f32>,
    /// 1e-6 in T5.
    pub eps: f32,
    /// May not overlap `x` or `weight`.
    pub out: FloatOut<'a>,
    /// Elements from one row of `out` to the next.
    pub out_pitch: usize,
}

const NAME: &str = "rms_norm";

impl RmsNorm<'_> {
    fn check<'d>(&self, device: &'d Device) -> Result<(abi::rms_norm_params, Footprint<'d>)> {
        if self.width == 0 {
            return Err(Error::Internal(format!("{NAME}: rows of no elements have no mean")));
        }
        check_pitch(NAME, "pitch", self.pitch, self.width)?;
        check_pitch(NAME, "out_pitch", self.out_pitch, self.width)?;
        check_len(NAME, "x", self.x, matrix_len(self.rows, self.pitch, self.width))?;
        check_len(NAME, "weight", self.weight, self.width)?;
        self.out.check_len(NAME, matrix_len(self.rows, self.out_pitch, self.width))?;
        let mut footprint = Footprint::new(device);
        let (out_bf16, out_f32) =
            self.out.addresses(&mut footprint, self.rows, self.out_pitch, self.width)?;
        let params = abi::rms_norm_params {
            x: footprint.reads_rows(self.x, self.rows, self.pitch, self.width)?,
            weight: footprint.reads(self.weight)?,
            out_bf16,
            out_f32,
            pitch: self.pitch as i64,
            out_pitch: self.out_pitch as i64,
            rows: to_i32(NAME, "rows", self.rows)?,
            width: to_i32(NAME, "width", self.width)?,
            eps: self.eps,
            reserved: 0,
        };
        Ok((params, footprint))
    }

    /// The entry for this width and alignment.
    pub fn select(&self, _: &Capability) -> Config {
        let vectors = self.width.is_multiple_of(4)
            && self.pitch.is_multiple_of(4)
            && all_aligned(&[self.x.address(), self.weight.address()], 16)
            && self.out.takes_vectors(self.out_pitch);
        let kernel = match self.width {
            w if vectors && w <= abi::RMS_NORM_SMALL_WIDTH as usize => &RMS_NORM_SMALL,
            w if vectors && w <= abi::RMS_NORM_WIDE_WIDTH as usize => &RMS_NORM_WIDE,
            _ => &RMS_NORM_ANY,
        };
        let grid = [self.rows.div_ceil(abi::RMS_NORM_ROWS as usize) as u32, 1, 1];
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
