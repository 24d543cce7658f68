//! Tokens for the tensor cores' fp16 mode: bf16 rows become fp16 rows with a scale each, in place.

use half::bf16;

use super::gemm::check_aligned;
use super::{check_len, check_pitch, kernel, matrix_len, refuse, to_i32};
use crate::Result;
use crate::abi;
use crate::device::{Capability, Config, Device, Footprint, StreamId, View};

kernel!(
    /// Rows of up to [`abi::SCALE_ROWS_WIDE_WIDTH`] numbers in registers.
    SCALE_ROWS_WIDE, "scale_rows", scale_rows_wide, abi::SCALE_ROWS_THREADS, abi::SCALE_ROWS_SMEM_BYTES
);
kernel!(
    /// Any width, read twice.
    SCALE_ROWS_ANY, "scale_rows", scale_rows_any, abi::SCALE_ROWS_THREADS, abi::SCALE_ROWS_SMEM_BYTES
);

/// `x[r, :] = fp16(x[r, :] / scale[r])`, where `scale[r]` is the power of two that brings the row's largest number to 128 or above,
/// below 256.
///
/// - `x`: bf16 `[rows, width]` with row pitch `pitch`; afterwards the same places hold fp16, which is what
///   [`Nf4HalfWeight`](super::nf4_half_gemm::Nf4HalfWeight) multiplies with
/// - `scale`: f32 `[rows]`
/// - numerics: exact for what is not below 2^-22 of its row's largest; 2^-33 of that is lost at most below
/// - source: ours
#[derive(Clone, Copy, Debug)]
pub struct ScaleRows<'a> {
    /// Rows 16-byte aligned.
    pub x: &'a View<bf16>,
    /// Elements from row to row; a multiple of 8.
    pub pitch: usize,
    /// How many rows.
    pub rows: usize,
    /// Numbers of a row; a multiple of 8.
    pub width: usize,
    /// One for each row.
    pub scale: &'a View<f32>,
}

const NAME: &str = "scale_rows";

impl ScaleRows<'_> {
    /// The entry for this width.
    pub fn select(&self, _: &Capability) -> Config {
        let kernel = match self.width {
            w if w <= abi::SCALE_ROWS_WIDE_WIDTH as usize => &SCALE_ROWS_WIDE,
            _ => &SCALE_ROWS_ANY,
        };
        Config { kernel, grid: [self.rows as u32, 1, 1] }
    }

    /// Enqueues it.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when there are no rows, or width or pitch is not a multiple of 8, [`crate::Error::Internal`] for
    /// views that are too small or misaligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        if self.rows == 0 || self.width == 0 || self.width % 8 != 0 || self.pitch % 8 != 0 {
            let Self { rows, width, pitch, .. } = self;
            return Err(refuse(NAME, format!("{rows} rows of {width}, {pitch} apart: not multiples of 8")));
        }
        check_pitch(NAME, "pitch", self.pitch, self.width)?;
        check_len(NAME, "x", self.x, matrix_len(self.rows, self.pitch, self.width))?;
        check_len(NAME, "scale", self.scale, self.rows)?;
        check_aligned(NAME, "x", self.x.address())?;
        let mut footprint = Footprint::new(device);
        let params = abi::scale_rows_params {
            x: footprint.updates_rows(self.x, self.rows, self.pitch, self.width)?,
            scale: footprint.writes_rows(self.scale, 1, self.rows, self.rows)?,
            pitch: self.pitch as i64,
            rows: to_i32(NAME, "rows", self.rows)?,
            width: to_i32(NAME, "width", self.width)?,
        };
        let config = self.select(device.capability());
        // SAFETY: params is these entries' generated type; the view covers `rows` rows of `width` numbers at their pitch (checked
        // above), in whole chunks of 8 from aligned places on; `scale` has one for each CTA.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }
}
