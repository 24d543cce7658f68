//! GroupNorm over NHWC maps, optionally followed by SiLU.

use half::bf16;

use super::{all_aligned, check_len, check_pitch, kernel, matrix_len, refuse, to_i32, volume};
use crate::abi;
use crate::device::{Capability, Config, Device, Footprint, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// Mean and M2 of a chunk of pixels, 8 channels per thread.
    GROUP_NORM_PARTIALS_X8, "group_norm_silu", group_norm_partials_x8,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_SMEM_BYTES
);
kernel!(
    /// The same for channels that cannot be read 16 bytes at a time.
    GROUP_NORM_PARTIALS_X1, "group_norm_silu", group_norm_partials_x1,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_SMEM_BYTES
);
kernel!(
    /// Combines the chunks of a group, to scales and shifts of its channels.
    GROUP_NORM_FINISH, "group_norm_silu", group_norm_finish,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_FINISH_SMEM_BYTES
);
kernel!(
    /// Scales and shifts, 8 channels per thread.
    GROUP_NORM_APPLY_X8, "group_norm_silu", group_norm_apply_x8,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_APPLY_SMEM_BYTES
);
kernel!(
    /// The same for channels that cannot be read 16 bytes at a time.
    GROUP_NORM_APPLY_X1, "group_norm_silu", group_norm_apply_x1,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_APPLY_SMEM_BYTES
);

/// `norm = [weight / sqrt(var_g + eps), bias - mean_g * weight / sqrt(var_g + eps)]`: what [`GroupNormSilu`], or a convolution, makes
/// a GroupNorm of `x` with; mean and (biased) variance per group of `channels / groups` neighboring channels over all pixels.
///
/// - `x`: bf16 `[pixels, channels]` with a pixel pitch; `weight`, `bias`: f32 `[channels]`; `norm`: f32 `[2, channels]`
/// - `workspace`: f32, [`GroupNorm::workspace_len`] elements
/// - numerics: f32 statistics per chunk of 64 pixels, combined by Chan's formula in a fixed order
/// - source: GroupNorm (arXiv:1803.08494)
#[derive(Debug)]
pub struct GroupNorm<'a> {
    /// The map.
    pub x: &'a View<bf16>,
    /// Elements from one pixel of `x` to the next.
    pub pitch: usize,
    /// Height times width.
    pub pixels: usize,
    /// At most [`abi::GROUP_NORM_SILU_MAX_CHANNELS`].
    pub channels: usize,
    /// Divides `channels`.
    pub groups: usize,
    /// Scale of each channel.
    pub weight: &'a View<f32>,
    /// Shift of each channel.
    pub bias: &'a View<f32>,
    /// 1e-6 in the VAE.
    pub eps: f32,
    /// Scratch.
    pub workspace: &'a View<f32>,
    /// Scales, then shifts.
    pub norm: &'a View<f32>,
}

/// `out = act(x * scale + shift)` per channel; `act` is SiLU or nothing.
///
/// - `x`, `out`: bf16 `[pixels, channels]` with pixel pitches; `norm`: f32 `[2, channels]`, from [`GroupNorm`]
/// - numerics: f32, one rounding at the store
/// - source: GroupNorm (arXiv:1803.08494)
#[derive(Debug)]
pub struct GroupNormSilu<'a> {
    /// The map.
    pub x: &'a View<bf16>,
    /// Elements from one pixel of `x` to the next.
    pub pitch: usize,
    /// Height times width.
    pub pixels: usize,
    /// At most [`abi::GROUP_NORM_SILU_MAX_CHANNELS`].
    pub channels: usize,
    /// Scales, then shifts.
    pub norm: &'a View<f32>,
    /// Whether SiLU follows.
    pub silu: bool,
    /// May be `x`, at the same pitch.
    pub out: &'a View<bf16>,
    /// Elements from one pixel of `out` to the next.
    pub out_pitch: usize,
}

const NAME: &str = "group_norm_silu";

fn num_chunks(pixels: usize) -> usize {
    pixels.div_ceil(abi::GROUP_NORM_SILU_CHUNK as usize)
}

fn check_channels(channels: usize) -> Result<()> {
    let most = abi::GROUP_NORM_SILU_MAX_CHANNELS as usize;
    match channels == 0 || channels > most {
        true => Err(refuse(NAME, format!("channels = {channels} is not in 1..={most}"))),
        false => Ok(()),
    }
}

/// Whether a map's channels can be read (or written) eight at a time.
fn in_vectors(channels: usize, pitch: usize, view: &View<bf16>) -> bool {
    channels.is_multiple_of(8) && pitch.is_multiple_of(8) && all_aligned(&[view.address()], 16)
}

impl GroupNorm<'_> {
    /// How many f32 the workspace needs: two per group and chunk.
    pub fn workspace_len(pixels: usize, groups: usize) -> usize {
        volume(&[2, groups, num_chunks(pixels)])
    }

    fn check<'d>(&self, device: &'d Device) -> Result<(abi::group_norm_silu_params, [Footprint<'d>; 2])> {
        check_channels(self.channels)?;
        if self.groups == 0 || !self.channels.is_multiple_of(self.groups) {
            return Err(Error::Internal(format!(
                "{NAME}: {} channels are not a whole number for each of {} groups",
                self.channels, self.groups
            )));
        }
        check_pitch(NAME, "pitch", self.pitch, self.channels)?;
        check_len(NAME, "x", self.x, matrix_len(self.pixels, self.pitch, self.channels))?;
        check_len(NAME, "weight", self.weight, self.channels)?;
        check_len(NAME, "bias", self.bias, self.channels)?;
        check_len(NAME, "workspace", self.workspace, Self::workspace_len(self.pixels, self.groups))?;
        check_len(NAME, "norm", self.norm, volume(&[2, self.channels]))?;
        let [mut sums, mut finish] = [(); 2].map(|()| Footprint::new(device));
        let partials = self.workspace.slice(0, Self::workspace_len(self.pixels, self.groups))?;
        finish.reads(&partials)?;
        let params = abi::group_norm_silu_params {
            x: sums.reads_rows(self.x, self.pixels, self.pitch, self.channels)?,
            weight: finish.reads(&self.weight.slice(0, self.channels)?)?,
            bias: finish.reads(&self.bias.slice(0, self.channels)?)?,
            out: 0,
            partials: sums.writes(&partials)?,
            norm: finish.writes(&self.norm.slice(0, 2 * self.channels)?)?,
            pixels: self.pixels as i64,
            pitch: self.pitch as i64,
            out_pitch: 0,
            num_chunks: to_i32(NAME, "the number of chunks", num_chunks(self.pixels))?,
            channels: self.channels as i32,
            groups: self.groups as i32,
            silu: 0,
            eps: self.eps,
            reserved: 0,
        };
        Ok((params, [sums, finish]))
    }

    /// The entries of the two launches: by eight channels at a time where the rows are aligned for it.
    pub fn select(&self, _: &Capability) -> [Config; 2] {
        let partials = match in_vectors(self.channels, self.pitch, self.x) {
            true => &GROUP_NORM_PARTIALS_X8,
            false => &GROUP_NORM_PARTIALS_X1,
        };
        [
            Config { kernel: partials, grid: [num_chunks(self.pixels) as u32, 1, 1] },
            Config { kernel: &GROUP_NORM_FINISH, grid: [self.groups as u32, 1, 1] },
        ]
    }

    /// Enqueues the two launches.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape, the pitch is less than `channels`, there are no pixels, or
    /// `groups` does not divide `channels`; [`Error::Unsupported`] for too many channels.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let (params, [sums, finishes]) = self.check(device)?;
        if self.pixels == 0 {
            return Err(Error::Internal(format!("{NAME}: no pixels have no mean")));
        }
        let [partials, finish] = self.select(device.capability());
        // SAFETY: params is these entries' generated type; x covers `pixels` pixels of `channels` channels at its pitch, the
        // workspace the partial statistics and norm its channels (checked above); the vector entry gets rows that are aligned
        // for it; the launches are ordered by the stream.
        unsafe {
            device.launch(stream, partials, &params, &sums)?;
            device.launch(stream, finish, &params, &finishes)
        }
    }
}

impl GroupNormSilu<'_> {
    /// By eight channels at a time where the rows are aligned for it.
    pub fn select(&self, _: &Capability) -> Config {
        let vectors = in_vectors(self.channels, self.pitch, self.x)
            && in_vectors(self.channels, self.out_pitch, self.out)
            && all_aligned(&[self.norm.address()], 16);
        let kernel = if vectors { &GROUP_NORM_APPLY_X8 } else { &GROUP_NORM_APPLY_X1 };
        Config { kernel, grid: [num_chunks(self.pixels) as u32, 1, 1] }
    }

    /// Enqueues it.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape or a pitch is less than `channels`; [`Error::Unsupported`] for
    /// too many channels.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        check_channels(self.channels)?;
        check_pitch(NAME, "pitch", self.pitch, self.channels)?;
        check_pitch(NAME, "out_pitch", self.out_pitch, self.channels)?;
        check_len(NAME, "x", self.x, matrix_len(self.pixels, self.pitch, self.channels))?;
        check_len(NAME, "out", self.out, matrix_len(self.pixels, self.out_pitch, self.channels))?;
        check_len(NAME, "norm", self.norm, volume(&[2, self.channels]))?;
        let mut footprint = Footprint::new(device);
        let params = abi::group_norm_silu_params {
            x: footprint.reads_rows(self.x, self.pixels, self.pitch, self.channels)?,
            weight: 0,
            bias: 0,
            out: footprint.writes_rows(self.out, self.pixels, self.out_pitch, self.channels)?,
            partials: 0,
            norm: footprint.reads(&self.norm.slice(0, 2 * self.channels)?)?,
            pixels: self.pixels as i64,
            pitch: self.pitch as i64,
            out_pitch: self.out_pitch as i64,
            num_chunks: to_i32(NAME, "the number of chunks", num_chunks(self.pixels))?,
            channels: self.channels as i32,
            groups: 1,
            silu: i32::from(self.silu),
            eps: 0.0,
            reserved: 0,
        };
        if self.pixels == 0 {
            return Ok(());
        }
        let config = self.select(device.capability());
        // SAFETY: params is these entries' generated type; the views cover `pixels` pixels of `channels` channels at their
        // pitches, norm its channels (checked above); the vector entry gets rows that are aligned for it.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }
}
