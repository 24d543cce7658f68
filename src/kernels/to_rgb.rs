//! From the VAE's floats to bytes.

use super::{check_len, check_pitch, kernel, matrix_len, to_i32, volume};
use crate::Result;
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};

kernel!(
    /// One thread per byte.
    TO_RGB, "to_rgb", to_rgb_u8, abi::TO_RGB_THREADS, abi::TO_RGB_SMEM_BYTES
);

/// `out[pixel, c] = round(255 * clamp(x[pixel, c] / 2 + 1 / 2, 0, 1))` for the first three channels, ties to even, NaN to
/// 0.
///
/// - `x`: f32 `[pixels, pitch]`; `out`: u8 `[pixels, 3]`
/// - numerics: every operation rounded to f32, as the reference does
/// - source: diffusers, `VaeImageProcessor.postprocess`
#[derive(Debug)]
pub struct ToRgb<'a> {
    /// The decoder's output, nominally in [-1, 1].
    pub x: &'a View<f32>,
    /// Elements from one pixel of `x` to the next; at least 3.
    pub pitch: usize,
    /// Height times width.
    pub pixels: usize,
    /// Red, green, blue.
    pub out: &'a View<u8>,
}

const NAME: &str = "to_rgb";

impl ToRgb<'_> {
    /// Enqueues the conversion.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when a view is shorter than its shape or `pitch` is less than 3.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        check_pitch(NAME, "pitch", self.pitch, 3)?;
        check_len(NAME, "x", self.x, matrix_len(self.pixels, self.pitch, 3))?;
        check_len(NAME, "out", self.out, volume(&[self.pixels, 3]))?;
        let mut footprint = Footprint::new(device);
        let params = abi::to_rgb_params {
            x: footprint.reads_rows(self.x, self.pixels, self.pitch, 3)?,
            out: footprint.writes_rows(self.out, 1, 3 * self.pixels, 3 * self.pixels)?,
            pixels: self.pixels as i64,
            pitch: self.pitch as i64,
        };
        let ctas = volume(&[self.pixels, 3]).div_ceil(abi::TO_RGB_THREADS as usize);
        let grid = [to_i32(NAME, "the grid", ctas)? as u32, 1, 1];
        // SAFETY: params is this entry's generated type; `x` and `out` cover `pixels` pixels (checked above), beyond
        // which no thread reaches.
        unsafe { device.launch(stream, Config { kernel: &TO_RGB, grid }, &params, &footprint) }
    }
}
