//! From the sampler's tokens to the map that the VAE decodes.

use half::bf16;

use super::{all_aligned, check_len, check_pitch, kernel, refuse, to_i32, volume};
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// One thread per pair of channels of a pixel.
    UNPACK_LATENTS, "unpack_latents", unpack_latents_bf16,
    abi::UNPACK_LATENTS_THREADS, abi::UNPACK_LATENTS_SMEM_BYTES
);

/// `out[y, x, c] = token[y / 2, x / 2][4 c + 2 (y % 2) + x % 2] / scaling + shift`; channels from `channels` to `pitch`
/// become zero.
///
/// - `tokens`: f32 `[height / 2 * width / 2, 4 channels]`; `out`: bf16 `[height, width, pitch]`
/// - numerics: divided, then added in f32, one rounding at the store
/// - source: diffusers, `FluxPipeline._unpack_latents` and the decode that follows it
#[derive(Debug)]
pub struct UnpackLatents<'a> {
    /// Image tokens, row-major.
    pub tokens: &'a View<f32>,
    /// Latent pixels; even.
    pub height: usize,
    /// Latent pixels; even.
    pub width: usize,
    /// Latent channels: 16.
    pub channels: usize,
    /// 0.3611 for FLUX.
    pub scaling: f32,
    /// 0.1159 for FLUX.
    pub shift: f32,
    /// The VAE's input.
    pub out: &'a View<bf16>,
    /// Elements from one pixel to the next; even.
    pub pitch: usize,
}

const NAME: &str = "unpack_latents";

impl UnpackLatents<'_> {
    /// Enqueues the unpacking.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape, `height` or `width` is odd, or `pitch` is less than
    /// `channels`; [`Error::Unsupported`] for an odd `pitch` or an `out` that is not 4-byte aligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        if !self.height.is_multiple_of(2) || !self.width.is_multiple_of(2) {
            return Err(Error::Internal(format!(
                "{NAME}: {} x {} pixels are no whole number of 2 x 2 patches",
                self.height, self.width
            )));
        }
        check_pitch(NAME, "pitch", self.pitch, self.channels)?;
        if !self.pitch.is_multiple_of(2) || !all_aligned(&[self.out.address()], 4) {
            return Err(refuse(NAME, "a pixel of `out` does not start at a whole pair"));
        }
        let pixels = volume(&[self.height, self.width]);
        let elements = volume(&[pixels, self.pitch]);
        check_len(NAME, "tokens", self.tokens, volume(&[pixels, self.channels]))?;
        check_len(NAME, "out", self.out, elements)?;
        let mut footprint = Footprint::new(device);
        let params = abi::unpack_latents_params {
            tokens: footprint.reads(self.tokens)?,
            out: footprint.writes_rows(self.out, self.height * self.width, self.pitch, self.pitch)?,
            num_pairs: (elements / 2) as i64,
            width: to_i32(NAME, "width", self.width)?,
            channels: to_i32(NAME, "4 x channels", volume(&[4, self.channels]))? / 4,
            pitch: to_i32(NAME, "pitch", self.pitch)?,
            scaling: self.scaling,
            shift: self.shift,
            reserved: 0,
        };
        let ctas = (elements / 2).div_ceil(abi::UNPACK_LATENTS_THREADS as usize);
        let grid = [to_i32(NAME, "the grid", ctas)? as u32, 1, 1];
        // SAFETY: params is this entry's generated type; `tokens` and `out` cover the whole map (checked above), beyond
        // which no thread reaches.
        unsafe { device.launch(stream, Config { kernel: &UNPACK_LATENTS, grid }, &params, &footprint) }
    }
}
