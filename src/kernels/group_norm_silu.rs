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
    /// Combines the chunks of a group.
    GROUP_NORM_FINISH, "group_norm_silu", group_norm_finish,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_FINISH_SMEM_BYTES
);
kernel!(
    /// Normalizes, 8 channels per thread.
    GROUP_NORM_APPLY_X8, "group_norm_silu", group_norm_apply_x8,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_APPLY_SMEM_BYTES
);
kernel!(
    /// The same for channels that cannot be read 16 bytes at a time.
    GROUP_NORM_APPLY_X1, "group_norm_silu", group_norm_apply_x1,
    abi::GROUP_NORM_SILU_THREADS, abi::GROUP_NORM_SILU_APPLY_SMEM_BYTES
);

/// `out = act((x - mean_g) / sqrt(var_g + eps) * weight + bias)`, mean and (biased) variance per group of
/// `channels / groups` neighboring channels over all pixels; `act` is SiLU or nothing.
///
/// - `x`, `out`: bf16 `[pixels, channels]` with pixel pitches; `weight`, `bias`: f32 `[channels]`
/// - `workspace`: f32, [`GroupNormSilu::workspace_len`] elements
/// - numerics: f32 statistics per chunk of 64 pixels, combined by Chan's formula in a fixed order; one rounding at the
///   store
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
    /// Divides `channels`.
    pub groups: usize,
    /// Scale of each channel.
    pub weight: &'a View<f32>,
    /// Shift of each channel.
    pub bias: &'a View<f32>,
    /// 1e-6 in the VAE.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// May be `x`, at the same pitch.
    pub out: &'a View<bf16>,
    /// Elements from one pixel of `out` to the next.
    pub out_pitch: usize,
    /// Scratch.
    pub workspace: &'a View<f32>,
}

const NAME: &str = "group_norm_silu";

fn num_chunks(pixels: usize) -> usize {
    pixels.div_ceil(abi::GROUP_NORM_SILU_CHUNK as usize)
}

impl GroupNormSilu<'_> {
    /// How many f32 the workspace needs: two per group and chunk, and two per group.
    pub fn workspace_len(pixels: usize, groups: usize) -> usize {
        volume(&[2, groups, num_chunks(pixels) + 1])
    }

    fn check<'d>(&self, device: &'d Device) -> Result<(abi::group_norm_silu_params, [Footprint<'d>; 3])> {
        let most = abi::GROUP_NORM_SILU_MAX_CHANNELS as usize;
        if self.channels == 0 || self.channels > most {
            return Err(refuse(NAME, format!("channels = {} is not in 1..={most}", self.channels)));
        }
        if self.groups == 0 || !self.channels.is_multiple_of(self.groups) {
            return Err(Error::Internal(format!(
                "{NAME}: {} channels are not a whole number for each of {} groups",
                self.channels, self.groups
            )));
        }
        check_pitch(NAME, "pitch", self.pitch, self.channels)?;
        check_pitch(NAME, "out_pitch", self.out_pitch, self.channels)?;
        check_len(NAME, "x", self.x, matrix_len(self.pixels, self.pitch, self.channels))?;
        check_len(NAME, "out", self.out, matrix_len(self.pixels, self.out_pitch, self.channels))?;
        check_len(NAME, "weight", self.weight, self.channels)?;
        check_len(NAME, "bias", self.bias, self.channels)?;
        check_len(NAME, "workspace", self.workspace, Self::workspace_len(self.pixels, self.groups))?;
        let num_chunks = num_chunks(self.pixels);
        let [mut sums, mut finish, mut apply] = [(); 3].map(|()| Footprint::new(device));
        let sums_len = 2 * self.groups * num_chunks;
        let (partials, statistics) =
            (self.workspace.slice(0, sums_len)?, self.workspace.slice(sums_len, 2 * self.groups)?);
        let x = sums.reads_rows(self.x, self.pixels, self.pitch, self.channels)?;
        sums.writes(&partials)?;
        finish.reads(&partials)?;
        finish.writes(&statistics)?;
        apply.reads(&statistics)?;
        apply.reads_rows(self.x, self.pixels, self.pitch, self.channels)?;
        let params = abi::group_norm_silu_params {
            x,
            weight: apply.reads(self.weight)?,
            bias: apply.reads(self.bias)?,
            out: apply.writes_rows(self.out, self.pixels, self.out_pitch, self.channels)?,
            partials: partials.address(),
            statistics: statistics.address(),
            pixels: self.pixels as i64,
            pitch: self.pitch as i64,
            out_pitch: self.out_pitch as i64,
            num_chunks: to_i32(NAME, "the number of chunks", num_chunks)?,
            channels: self.channels as i32,
            groups: self.groups as i32,
            silu: i32::from(self.silu),
            eps: self.eps,
            reserved: 0,
        };
        Ok((params, [sums, finish, apply]))
    }

    /// The entries of the three launches: by eight channels at a time where the rows are aligned for it.
    pub fn select(&self, _: &Capability) -> [Config; 3] {
        let reads_vectors = self.channels.is_multiple_of(8)
            && self.pitch.is_multiple_of(8)
            && all_aligned(&[self.x.address()], 16);
        let applies_vectors = self.out_pitch.is_multiple_of(8)
            && all_aligned(&[self.out.address(), self.weight.address(), self.bias.address()], 16);
        let partials = if reads_vectors { &GROUP_NORM_PARTIALS_X8 } else { &GROUP_NORM_PARTIALS_X1 };
        let apply =
            if reads_vectors && applies_vectors { &GROUP_NORM_APPLY_X8 } else { &GROUP_NORM_APPLY_X1 };
        let chunks = [num_chunks(self.pixels) as u32, 1, 1];
        let groups = [self.groups as u32, 1, 1];
        [
            Config { kernel: partials, grid: chunks },
            Config { kernel: &GROUP_NORM_FINISH, grid: groups },
            Config { kernel: apply, grid: chunks },
        ]
    }

    /// Enqueues the three launches.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is shorter than its shape, a pitch is less than `channels`, or `groups` does not
    /// divide `channels`; [`Error::Unsupported`] for too many channels.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        let (params, [sums, finishes, applies]) = self.check(device)?;
        if self.pixels == 0 {
            return Ok(());
        }
        let [partials, finish, apply] = self.select(device.capability());
        // SAFETY: params is these entries' generated type; the views cover `pixels` pixels of `channels` channels at
        // their pitches and the workspace both statistics (checked above); the vector entries get rows that are
        // aligned for them; the launches are ordered by the stream.
        unsafe {
            device.launch(stream, partials, &params, &sums)?;
            device.launch(stream, finish, &params, &finishes)?;
            device.launch(stream, apply, &params, &applies)
        }
    }
}
