//! Convolutions of NHWC maps as implicit matrix products.

use half::bf16;

use super::bf16_gemm::Bf16Weight;
use super::gemm::{Activation, Epilogue, Epilogues, Problem, Segment, grid};
use super::{check_len, kernel, matrix_len, refuse, round_up, to_i32, volume};
use crate::Result;
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};

kernel!(
    /// 4 warps per 128 output channels x 128 output pixels.
    CONV2D, "conv2d", conv2d_bf16_sm80, abi::GEMM_THREADS, abi::CONV2D_SMEM_BYTES
);

/// Elements of a packed weight's row: taps x input channels, the channels of each tap padded with zeros to 8.
pub fn weight_pitch(channels: usize, kernel: usize) -> usize {
    volume(&[kernel, kernel, round_up(channels, 8)])
}

/// `out = conv(x, w) + bias [+ residual]`, stride 1, zero padding that keeps the size; `kernels/conv2d.cu` says how.
///
/// - `x`: bf16 NHWC `[height, width, pitch]`, `channels` of them used; with `upsample` it is read as if enlarged
///   twofold by nearest neighbor
/// - `weight`: bf16 `[out_channels, kernel^2, channels padded to 8]`, see [`weight_pitch`]
/// - numerics: f32 accumulation, one rounding at the store
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
    /// Output channels.
    pub out_channels: usize,
    /// 3 (padding 1) or 1.
    pub kernel: usize,
    /// Nearest-neighbor enlargement by two before the convolution.
    pub upsample: bool,
    /// Packed weights.
    pub weight: &'a View<bf16>,
    /// f32 `[out_channels]`.
    pub bias: Option<&'a View<f32>>,
    /// Where the map goes: [`Epilogue::Store`], [`Epilogue::AddBf16`] or [`Epilogue::StoreF32`].
    pub epilogue: Epilogue<'a>,
    /// Elements from output pixel to output pixel.
    pub out_pitch: usize,
}

impl Conv2d<'_> {
    /// Enqueues the convolution.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for shapes that the kernel cannot take, [`crate::Error::Internal`] for views that
    /// are too small or misaligned.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        const NAME: &str = "conv2d";
        if self.kernel != 3 && self.kernel != 1 {
            return Err(refuse(NAME, format!("a kernel of {0} x {0}", self.kernel)));
        }
        if self.height == 0
            || self.width == 0
            || self.channels == 0
            || self.out_channels == 0
            || self.x_pitch < self.channels
        {
            return Err(refuse(NAME, format!("a map {} x {} x {}", self.height, self.width, self.channels)));
        }
        let zoom = 1 + self.upsample as usize;
        let m = volume(&[self.height, self.width, zoom, zoom]);
        let k = weight_pitch(self.channels, self.kernel);
        let pixels = volume(&[self.height, self.width]);
        check_len(NAME, "x", self.x, matrix_len(pixels, self.x_pitch, self.channels))?;
        // The kernel counts the map in chunks of 8 channels, and a tile's pixels and their taps may lie beyond it.
        let reach = volume(&[self.height.saturating_add(4), self.width]);
        let reach = reach.saturating_add(abi::GEMM_BLOCK_M as usize);
        to_i32(NAME, "chunks of the map", volume(&[reach, self.x_pitch / 8]))?;
        let weight = Bf16Weight { values: self.weight, pitch: k };
        weight.check(NAME, self.out_channels, k)?;
        let problem = Problem {
            x: self.x,
            x_pitch: self.x_pitch,
            m,
            n: self.out_channels,
            k,
            bias: self.bias,
            rope: None,
            norm_eps: 0.0,
            segments: vec![Segment {
                begin: 0,
                end: self.out_channels,
                pitch: self.out_pitch,
                activation: Activation::None,
                epilogue: self.epilogue,
            }],
        };
        if !Epilogues::Map.have(problem.segments.iter()) {
            return Err(refuse(NAME, format!("{:?}", self.epilogue)));
        }
        let mut footprint = Footprint::new(device);
        let mut gemm = problem.params(NAME, &mut footprint)?;
        let (taps, row) = (self.kernel * self.kernel, self.x_pitch);
        footprint.computes(volume(&[2, m, self.out_channels, taps, self.channels]) as u64);
        gemm.x = footprint.reads_rows(self.x, pixels, row, self.channels)?;
        gemm.w = footprint.reads_rows(self.weight, self.out_channels, k, k)?;
        gemm.w_pitch = k as i64;
        let params = abi::conv2d_params {
            gemm,
            in_height: to_i32(NAME, "height", self.height)?,
            in_width: to_i32(NAME, "width", self.width)?,
            out_width: to_i32(NAME, "out width", volume(&[self.width, zoom]))?,
            channels: to_i32(NAME, "channels", self.channels)?,
            kernel: self.kernel as i32,
            upsample: self.upsample as i32,
        };
        let config = Config { kernel: &CONV2D, grid: grid(std::iter::once(&problem)) };
        // SAFETY: params is this entry's generated type; x, weight, bias and destination were checked for the extents
        // that the loader and the epilogue reach.
        unsafe { device.launch(stream, config, &params, &footprint) }
    }
}
