//! From the VAE's floats to bytes, or to floats in [0, 1].

use super::{check_len, check_pitch, kernel, matrix_len, to_i32, volume};
use crate::Result;
use crate::abi;
use crate::device::{Config, Device, Footprint, Kernel, StreamId, View};

kernel!(
    /// One thread per byte.
    TO_RGB, "to_rgb", to_rgb_u8, abi::TO_RGB_THREADS, abi::TO_RGB_SMEM_BYTES
);
kernel!(
    /// The same, color by color.
    TO_RGB_PLANAR, "to_rgb", to_rgb_u8_planar, abi::TO_RGB_THREADS, abi::TO_RGB_SMEM_BYTES
);
kernel!(
    /// One thread per number.
    TO_RGB_F32, "to_rgb", to_rgb_f32, abi::TO_RGB_THREADS, abi::TO_RGB_SMEM_BYTES
);
kernel!(
    /// The same, color by color.
    TO_RGB_F32_PLANAR, "to_rgb", to_rgb_f32_planar, abi::TO_RGB_THREADS, abi::TO_RGB_SMEM_BYTES
);

/// What pixels become, and where they go.
#[derive(Clone, Copy, Debug)]
pub enum RgbOut<'a> {
    /// `round(255 * unit)`, ties to even: `[pixels, 3]`.
    U8(&'a View<u8>),
    /// The same, `[3, pixels]`.
    U8Planar(&'a View<u8>),
    /// `unit` itself: `[pixels, 3]`.
    F32(&'a View<f32>),
    /// The same, `[3, pixels]`.
    F32Planar(&'a View<f32>),
}

/// `unit = clamp(x[pixel, c] / 2 + 1 / 2, 0, 1)` for the first three channels, NaN to 0, as [`RgbOut`] says.
///
/// - `x`: f32 `[pixels, pitch]`; `out`: u8 or f32, `[pixels, 3]` or `[3, pixels]`
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
    pub out: RgbOut<'a>,
}

const NAME: &str = "to_rgb";

impl ToRgb<'_> {
    /// The entry point that makes these of pixels.
    pub fn kernel(out: &RgbOut<'_>) -> &'static Kernel {
        match out {
            RgbOut::U8(_) => &TO_RGB,
            RgbOut::U8Planar(_) => &TO_RGB_PLANAR,
            RgbOut::F32(_) => &TO_RGB_F32,
            RgbOut::F32Planar(_) => &TO_RGB_F32_PLANAR,
        }
    }

    /// Enqueues the conversion.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when a view is shorter than its shape or `pitch` is less than 3.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        check_pitch(NAME, "pitch", self.pitch, 3)?;
        check_len(NAME, "x", self.x, matrix_len(self.pixels, self.pitch, 3))?;
        let len = volume(&[self.pixels, 3]);
        let mut footprint = Footprint::new(device);
        let x = footprint.reads_rows(self.x, self.pixels, self.pitch, 3)?;
        let out = match self.out {
            RgbOut::U8(out) | RgbOut::U8Planar(out) => {
                check_len(NAME, "out", out, len)?;
                footprint.writes_rows(out, 1, len, len)?
            }
            RgbOut::F32(out) | RgbOut::F32Planar(out) => {
                check_len(NAME, "out", out, len)?;
                footprint.writes_rows(out, 1, len, len)?
            }
        };
        let params = abi::to_rgb_params { x, out, pixels: self.pixels as i64, pitch: self.pitch as i64 };
        let ctas = len.div_ceil(abi::TO_RGB_THREADS as usize);
        let grid = [to_i32(NAME, "the grid", ctas)? as u32, 1, 1];
        let kernel = ToRgb::kernel(&self.out);
        // SAFETY: params is this entry's generated type; `x` covers `pixels` pixels and `out` as many in the entry's type (checked
        // above), beyond which no thread reaches.
        unsafe { device.launch(stream, Config { kernel, grid }, &params, &footprint) }
    }
}
