//! Convolutions of NHWC maps as implicit matrix products, GroupNorm and SiLU or an enlargement included.

use std::ops::Range;

use half::bf16;

use super::{all_aligned, check_len, check_pitch, kernel, matrix_len, refuse, round_up, to_i32, volume};
use crate::abi;
use crate::device::{Capability, Config, Device, Footprint, Kernel, StreamId, View};
use crate::{Error, Result};

kernel!(
    /// 4 warps per 128 output channels x 8 x 16 pixels.
    CONV2D, "conv2d", conv2d_bf16_sm80, abi::CONV2D_THREADS, abi::CONV2D_SMEM_BYTES
);
kernel!(
    /// The same on a map that is enlarged twofold.
    CONV2D_ENLARGE, "conv2d", conv2d_enlarge_bf16_sm80, abi::CONV2D_THREADS, abi::CONV2D_ENLARGE_SMEM_BYTES
);
kernel!(
    /// Up to 8 output channels, as f32.
    CONV2D_NARROW, "conv2d", conv2d_narrow_f32_sm80, abi::CONV2D_THREADS, abi::CONV2D_NARROW_SMEM_BYTES
);

/// Taps of a row, and rows of taps.
const SIDE: usize = 3;
/// Taps of a row of an enlarged map's pixel: of three, two fall on one pixel of the map itself.
const FOLDED_SIDE: usize = 2;

/// What the filter passes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The map itself.
    Plain,
    /// The map enlarged twofold by nearest neighbor: each of its pixels becomes 2 x 2, each of which sees but 2 x 2 pixels of
    /// the map, through sums of the filter's taps.
    Enlarged,
}

impl Filter {
    /// Output pixels of a pixel of the map, each with taps of its own; and these taps.
    fn phases_and_taps(self) -> [usize; 2] {
        match self {
            Filter::Plain => [1, SIDE * SIDE],
            Filter::Enlarged => [FOLDED_SIDE * FOLDED_SIDE, FOLDED_SIDE * FOLDED_SIDE],
        }
    }

    /// Of the output's height and width to the map's.
    fn zoom(self) -> usize {
        match self {
            Filter::Plain => 1,
            Filter::Enlarged => 2,
        }
    }

    /// Elements of a packed weight's row, that of an output channel: phases x blocks of 32 input channels x taps x 32.
    pub fn weight_pitch(self, channels: usize) -> usize {
        let [phases, taps] = self.phases_and_taps();
        volume(&[phases, taps, round_up(channels, abi::CONV2D_BLOCK_C as usize)])
    }

    /// An output channel's taps `[channels, 3, 3]` as the kernel reads them, zeros where there is no channel. Sums of taps are
    /// rounded once, to bf16.
    ///
    /// # Panics
    /// Where `packed` has not [`Filter::weight_pitch`] elements, or `taps` not nine for each channel.
    pub fn pack(self, taps: &[bf16], packed: &mut [bf16]) {
        let channels = taps.len() / (SIDE * SIDE);
        assert_eq!((taps.len(), packed.len()), (channels * SIDE * SIDE, self.weight_pitch(channels)));
        let [phases, taps_each] = self.phases_and_taps();
        let phase_len = packed.len() / phases;
        packed.fill(bf16::ZERO);
        for (block, taps) in taps.chunks(SIDE * SIDE * BLOCK_C).enumerate() {
            let count = taps.len() / (SIDE * SIDE);
            let place = |phase: usize, tap: usize| phase * phase_len + (block * taps_each + tap) * BLOCK_C;
            match self {
                Filter::Plain => {
                    for tap in 0..SIDE * SIDE {
                        let to = &mut packed[place(0, tap)..][..count];
                        for (to, taps) in to.iter_mut().zip(taps.as_chunks::<{ SIDE * SIDE }>().0) {
                            *to = taps[tap];
                        }
                    }
                }
                Filter::Enlarged => fold(taps, |phase, tap, sums| {
                    packed[place(phase, tap)..][..count].copy_from_slice(&sums[..count]);
                }),
            }
        }
    }
}

/// Channels whose taps lie side by side.
const BLOCK_C: usize = abi::CONV2D_BLOCK_C as usize;

/// Sums of the taps `[channels, 3, 3]` of at most a block of channels, for each phase and each of its taps: of those that see the
/// same pixel of the map. All channels at once, which the compiler makes vectors of.
fn fold(taps: &[bf16], mut put: impl FnMut(usize, usize, &[bf16; BLOCK_C])) {
    let mut of_tap = [[0.0; BLOCK_C]; SIDE * SIDE];
    for (channel, taps) in taps.chunks_exact(SIDE * SIDE).enumerate() {
        for (of_tap, tap) in of_tap.iter_mut().zip(taps) {
            of_tap[channel] = tap.to_f32();
        }
    }
    for phase in 0..FOLDED_SIDE * FOLDED_SIDE {
        for tap in 0..FOLDED_SIDE * FOLDED_SIDE {
            let columns = seen(phase % FOLDED_SIDE, tap % FOLDED_SIDE);
            let rows = seen(phase / FOLDED_SIDE, tap / FOLDED_SIDE);
            let sums = sum(rows, |row| sum(columns.clone(), |column| of_tap[row * SIDE + column]));
            let mut rounded = [bf16::ZERO; BLOCK_C];
            for (rounded, sum) in rounded.iter_mut().zip(&sums) {
                *rounded = bf16::from_f32(*sum);
            }
            put(phase, tap, &rounded);
        }
    }
}

/// Of the rows (or columns) of taps those that see the nearer of the two pixels, or the farther.
fn seen(phase: usize, tap: usize) -> Range<usize> {
    match (phase, tap) {
        (0, 0) => 0..1,
        (0, _) => 1..3,
        (_, 0) => 0..2,
        (_, _) => 2..3,
    }
}

fn sum(of: Range<usize>, value: impl Fn(usize) -> [f32; BLOCK_C]) -> [f32; BLOCK_C] {
    let mut sum = value(of.start);
    for next in of.skip(1) {
        for (sum, next) in sum.iter_mut().zip(&value(next)) {
            *sum += next;
        }
    }
    sum
}

/// Where a convolution's results go, and what they are.
#[derive(Clone, Copy, Debug)]
pub enum ConvOut<'a> {
    /// bf16 NHWC.
    Bf16(&'a View<bf16>),
    /// bf16 NHWC: the sum with the second map, at the same pitch; may be the first itself.
    AddBf16(&'a View<bf16>, &'a View<bf16>),
    /// f32 NHWC, of at most [`abi::CONV2D_NARROW_OUT_CHANNELS`] channels.
    F32(&'a View<f32>),
}

/// `out = conv(act(x), w) + bias [+ residual]` with 3x3 taps, stride 1, zeros around the map (around `act(x)`);
/// `kernels/conv2d.cu` says how.
///
/// - `x`: bf16 NHWC `[height, width, pitch]`, `channels` of them used; `act` is nothing, or `silu(x * scale + shift)`
/// - `weight`: bf16 `[out_channels, weight_pitch]`, see [`Filter::pack`]
/// - numerics: f32 accumulation, one rounding at the store; `act(x)` is rounded to bf16
/// - source: ours
#[derive(Debug)]
pub struct Conv2d<'a> {
    /// The input map.
    pub x: &'a View<bf16>,
    /// Elements from pixel to pixel; a multiple of 8.
    pub x_pitch: usize,
    /// Input height in pixels.
    pub height: usize,
    /// Input width in pixels.
    pub width: usize,
    /// Input channels.
    pub channels: usize,
    /// Output channels; of bf16 maps a multiple of 8.
    pub out_channels: usize,
    /// What the taps pass over.
    pub filter: Filter,
    /// f32 `[2, channels]`: scale and shift of each channel, as [`GroupNorm`](super::group_norm_silu::GroupNorm) leaves them;
    /// then SiLU.
    pub norm: Option<&'a View<f32>>,
    /// Packed weights.
    pub weight: &'a View<bf16>,
    /// f32 `[out_channels]`.
    pub bias: Option<&'a View<f32>>,
    /// Where the map goes.
    pub out: ConvOut<'a>,
    /// Elements from output pixel to output pixel; of bf16 maps a multiple of 8.
    pub out_pitch: usize,
}

const NAME: &str = "conv2d";

impl Conv2d<'_> {
    /// The entry that does it, and its grid.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what no entry does.
    pub fn select(&self, _: &Capability) -> Result<Config> {
        let kernel: &Kernel = match (self.filter, self.out) {
            (Filter::Plain, ConvOut::Bf16(_) | ConvOut::AddBf16(..)) => &CONV2D,
            (Filter::Plain, ConvOut::F32(_)) => &CONV2D_NARROW,
            (Filter::Enlarged, ConvOut::Bf16(_) | ConvOut::AddBf16(..)) if self.norm.is_none() => {
                &CONV2D_ENLARGE
            }
            (filter, out) => {
                let norm = self.norm.is_some();
                return Err(refuse(NAME, format!("{filter:?}, norm: {norm}, to {out:?}")));
            }
        };
        let [phases, _] = self.filter.phases_and_taps();
        let tiles = |what, n: usize, of: u32| to_i32(NAME, what, n.div_ceil(of as usize)).map(|n| n as u32);
        let grid = [
            tiles("tiles of channels", self.out_channels, abi::CONV2D_BLOCK_N)?,
            tiles("tiles of a row", self.width, abi::CONV2D_TILE_WIDTH)?,
            tiles("rows of tiles", self.height, abi::CONV2D_TILE_HEIGHT)?.saturating_mul(phases as u32),
        ];
        // A GPU's grid is so high and deep at most.
        if grid[1] > 65_535 || grid[2] > 65_535 {
            return Err(refuse(NAME, format!("a map {} x {}", self.height, self.width)));
        }
        Ok(Config { kernel, grid })
    }

    fn check(&self) -> Result<()> {
        if self.height == 0 || self.width == 0 || self.channels == 0 || self.out_channels == 0 {
            return Err(refuse(NAME, format!("a map {} x {} x {}", self.height, self.width, self.channels)));
        }
        if !self.x_pitch.is_multiple_of(8) {
            return Err(refuse(NAME, format!("pixels {} elements apart", self.x_pitch)));
        }
        check_pitch(NAME, "x_pitch", self.x_pitch, self.channels)?;
        check_pitch(NAME, "out_pitch", self.out_pitch, self.out_channels)?;
        let pixels = volume(&[self.height, self.width]);
        check_len(NAME, "x", self.x, matrix_len(pixels, self.x_pitch, self.channels))?;
        to_i32(NAME, "chunks of the map", volume(&[pixels, self.x_pitch / 8]))?;
        let pitch = self.filter.weight_pitch(self.channels);
        check_len(NAME, "weight", self.weight, volume(&[self.out_channels, pitch]))?;
        let mut aligned = vec![self.x.address(), self.weight.address()];
        if let Some(bias) = self.bias {
            check_len(NAME, "bias", bias, self.out_channels)?;
            aligned.push(bias.address());
        }
        if let Some(norm) = self.norm {
            check_len(NAME, "norm", norm, volume(&[2, self.channels]))?;
            aligned.push(norm.address());
            if !self.channels.is_multiple_of(8) {
                return Err(refuse(NAME, format!("a norm of {} channels", self.channels)));
            }
        }
        let in_vectors = self.out_channels.is_multiple_of(8) && self.out_pitch.is_multiple_of(8);
        if !in_vectors && !matches!(self.out, ConvOut::F32(_)) {
            let (channels, pitch) = (self.out_channels, self.out_pitch);
            return Err(refuse(
                NAME,
                format!("{channels} output channels, pixels {pitch} apart: not multiples of 8"),
            ));
        }
        let zoom = self.filter.zoom();
        let out_len = matrix_len(volume(&[pixels, zoom, zoom]), self.out_pitch, self.out_channels);
        match self.out {
            ConvOut::Bf16(out) => {
                check_len(NAME, "out", out, out_len)?;
                aligned.push(out.address());
            }
            ConvOut::AddBf16(out, residual) => {
                check_len(NAME, "out", out, out_len)?;
                check_len(NAME, "residual", residual, out_len)?;
                aligned.extend([out.address(), residual.address()]);
            }
            ConvOut::F32(out) => {
                check_len(NAME, "out", out, out_len)?;
                if self.out_channels > abi::CONV2D_NARROW_OUT_CHANNELS as usize {
                    return Err(refuse(NAME, format!("{} output channels as f32", self.out_channels)));
                }
            }
        }
        match all_aligned(&aligned, 16) {
            true => Ok(()),
            false => Err(Error::Internal(format!("{NAME}: a view does not begin at a multiple of 16 bytes"))),
        }
    }

    /// Enqueues the convolution.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for shapes that the kernel cannot take, [`Error::Internal`] for views that are too small or
    /// misaligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        self.check()?;
        let config = self.select(device.capability())?;
        let (zoom, [_, taps]) = (self.filter.zoom(), self.filter.phases_and_taps());
        let (pixels, pitch) = (volume(&[self.height, self.width]), self.filter.weight_pitch(self.channels));
        let out_pixels = volume(&[pixels, zoom, zoom]);
        let mut footprint = Footprint::new(device);
        footprint.computes(volume(&[2, out_pixels, self.out_channels, taps, self.channels]) as u64);
        let (out_pitch, width) = (self.out_pitch, self.out_channels);
        let (out, residual) = match self.out {
            ConvOut::Bf16(out) => (footprint.writes_rows(out, out_pixels, out_pitch, width)?, 0),
            ConvOut::AddBf16(out, residual) => (
                footprint.writes_rows(out, out_pixels, out_pitch, width)?,
                footprint.reads_rows(residual, out_pixels, out_pitch, width)?,
            ),
            ConvOut::F32(out) => (footprint.writes_rows(out, out_pixels, out_pitch, width)?, 0),
        };
        let params = abi::conv2d_params {
            x: footprint.reads_rows(self.x, pixels, self.x_pitch, self.channels)?,
            weight: footprint.reads_rows(self.weight, self.out_channels, pitch, pitch)?,
            bias: self.bias.map_or(Ok(0), |bias| footprint.reads(&bias.slice(0, width)?))?,
            residual,
            out,
            norm: self.norm.map_or(Ok(0), |norm| footprint.reads(&norm.slice(0, 2 * self.channels)?))?,
            out_pitch: out_pitch as i64,
            x_pitch: to_i32(NAME, "x_pitch", self.x_pitch / 8)?,
            weight_pitch: to_i32(NAME, "a row of the weight", pitch / 8)?,
            height: to_i32(NAME, "height", self.height)?,
            width: to_i32(NAME, "width", self.width)?,
            channels: to_i32(NAME, "channels", self.channels)?,
            out_channels: to_i32(NAME, "output channels", self.out_channels)?,
        };
        // SAFETY: params is these entries' generated type; x, weight, bias, norm, residual and destination were checked for
        // the extents that the loaders and the epilogue reach, and for the alignment of their vectors.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }
}
