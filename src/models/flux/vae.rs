//! The VAE's decoder: latents to pixels.
//!
//! Maps are NHWC bf16, a buffer each, whose place the program's passes decide. Source: diffusers `AutoencoderKL.decode`.

use half::bf16;

use crate::config::VaeConfig;
use crate::device::View;
use crate::kernels::attention::{Attention, Heads, MAX_HEAD_DIM};
use crate::kernels::conv2d::{Conv2d, ConvOut, Filter};
use crate::kernels::gemm::{Activation, Epilogue, IN_PLACE_COLUMNS};
use crate::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};
use crate::kernels::to_rgb::{RgbOut, ToRgb};
use crate::kernels::unpack_latents::UnpackLatents;
use crate::models::layers::{Affine, Conv, Network, Product, Tokens};
use crate::program::{HostRange, Recorder, STREAM};
use crate::{Error, Result};

const NORM_EPS: f32 = 1e-6;
/// Red, green, blue.
const COLORS: usize = 3;

/// A map `[height, width, channels]`, pixels `pitch` apart.
#[derive(Clone)]
struct Map {
    view: View<bf16>,
    height: usize,
    width: usize,
    channels: usize,
    pitch: usize,
}

impl Map {
    fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Its pixels as rows of a matrix.
    fn tokens(&self) -> Tokens<'_> {
        Tokens { view: &self.view, pitch: self.pitch, rows: self.pixels() }
    }
}

/// What a decoder leaves.
pub(crate) struct Picture {
    /// f32 NHWC `[height, width, 3]` in [-1, 1] before clamping.
    pub image: View<f32>,
    /// u8 `[height, width, 3]`.
    pub rgb: View<u8>,
}

/// Records the decoder on `latents`, f32 tokens `[height / 2 * width / 2, 4 * latent_channels]` of latents that are `height` x
/// `width`.
///
/// # Errors
/// [`Error::Unsupported`] for widths that the kernels cannot take.
pub(crate) fn record(
    net: &mut Network<'_>,
    config: &VaeConfig,
    [height, width]: [usize; 2],
    latents: &View<f32>,
) -> Result<Picture> {
    if config.block_channels.iter().any(|c| c % 8 != 0) || config.out_channels != COLORS {
        return Err(Error::Unsupported(format!(
            "a VAE with channels {:?} and {} output channels: widths must be multiples of 8, output 3",
            config.block_channels, config.out_channels
        )));
    }
    let (top, latent) = (config.top_channels(), config.latent_channels);
    let mut decoder = Decoder { net, config };
    let mut map = decoder.map(height, width, latent)?;
    UnpackLatents {
        tokens: latents,
        height,
        width,
        channels: latent,
        scaling: config.scaling,
        shift: config.shift,
        out: &map.view,
        pitch: map.pitch,
    }
    .launch(decoder.net.device(), STREAM)?;
    if config.use_post_quant_conv {
        map = decoder.convolve_1x1("post_quant_conv", map, latent)?;
    }
    let conv = decoder.net.conv("decoder.conv_in", latent, top, Filter::Plain)?;
    map = decoder.convolve(&conv, &map, None)?;
    map = decoder.resnet("decoder.mid_block.resnets.0", map, top)?;
    if config.mid_attention {
        decoder.attend("decoder.mid_block.attentions.0", &map)?;
    }
    map = decoder.resnet("decoder.mid_block.resnets.1", map, top)?;
    let levels = config.block_channels.len();
    for (i, &channels) in config.block_channels.iter().rev().enumerate() {
        for k in 0..=config.layers_per_block {
            map = decoder.resnet(&format!("decoder.up_blocks.{i}.resnets.{k}"), map, channels)?;
        }
        if i + 1 < levels {
            let name = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
            let conv = decoder.net.conv(&name, channels, channels, Filter::Enlarged)?;
            map = decoder.convolve(&conv, &map, None)?;
        }
    }
    let norm = decoder.norm("decoder.conv_norm_out", &map)?;
    let conv = decoder.net.conv("decoder.conv_out", map.channels, config.out_channels, Filter::Plain)?;
    let image = decoder.net.buffer::<f32>("image", map.pixels() * COLORS)?;
    decoder.convolution(&conv, &map, Some(&norm), ConvOut::F32(&image), COLORS)?;
    let rgb = decoder.net.buffer::<u8>("rgb", map.pixels() * COLORS)?;
    ToRgb { x: &image, pitch: COLORS, pixels: map.pixels(), out: RgbOut::U8(&rgb) }
        .launch(decoder.net.device(), STREAM)?;
    Ok(Picture { image, rgb })
}

/// Records that the host gets the picture as floats in [0, 1], `[height, width, 3]`.
pub(crate) fn fetch_floats(recorder: &mut Recorder, picture: &Picture) -> Result<HostRange> {
    let unit = recorder.buffer::<f32>("unit_rgb", picture.image.len())?;
    let (x, pixels) = (&picture.image, picture.image.len() / COLORS);
    ToRgb { x, pitch: COLORS, pixels, out: RgbOut::F32(&unit) }.launch(recorder.device(), STREAM)?;
    recorder.fetch(&unit)
}

struct Decoder<'a, 'n, 'c> {
    net: &'a mut Network<'n>,
    config: &'c VaeConfig,
}

impl Decoder<'_, '_, '_> {
    fn map(&mut self, height: usize, width: usize, channels: usize) -> Result<Map> {
        let pitch = channels.next_multiple_of(8);
        let view = self.net.buffer("map", height * width * pitch)?;
        Ok(Map { view, height, width, channels, pitch })
    }

    /// `shortcut(map) + conv2(silu(norm2(conv1(silu(norm1(map))))))`, in place unless the channels change.
    fn resnet(&mut self, name: &str, map: Map, out_channels: usize) -> Result<Map> {
        let channels = map.channels;
        let norm1 = self.norm(&format!("{name}.norm1"), &map)?;
        let conv1 = self.net.conv(&format!("{name}.conv1"), channels, out_channels, Filter::Plain)?;
        let inner = self.convolve(&conv1, &map, Some(&norm1))?;
        let norm2 = self.norm(&format!("{name}.norm2"), &inner)?;
        let conv2 = self.net.conv(&format!("{name}.conv2"), out_channels, out_channels, Filter::Plain)?;
        let out = match channels == out_channels {
            true => map,
            false => self.convolve_1x1(&format!("{name}.conv_shortcut"), map, out_channels)?,
        };
        let sum = ConvOut::AddBf16(&out.view, &out.view);
        self.convolution(&conv2, &inner, Some(&norm2), sum, out.pitch)?;
        Ok(out)
    }

    /// What scales and shifts each channel to its GroupNorm: f32 `[2, channels]`.
    fn norm(&mut self, name: &str, map: &Map) -> Result<View<f32>> {
        let Affine { weight, bias } = self.net.affine(name, map.channels)?;
        let len = GroupNorm::workspace_len(map.pixels(), self.config.groups);
        let workspace = self.net.buffer::<f32>("statistics", len)?;
        let norm = self.net.buffer::<f32>("norm", 2 * map.channels)?;
        GroupNorm {
            x: &map.view,
            pitch: map.pitch,
            pixels: map.pixels(),
            channels: map.channels,
            groups: self.config.groups,
            weight: &weight,
            bias: &bias,
            eps: NORM_EPS,
            workspace: &workspace,
            norm: &norm,
        }
        .launch(self.net.device(), STREAM)?;
        Ok(norm)
    }

    /// A convolution into a map of its own.
    fn convolve(&mut self, conv: &Conv, map: &Map, norm: Option<&View<f32>>) -> Result<Map> {
        let zoom = if conv.filter == Filter::Enlarged { 2 } else { 1 };
        let out = self.map(zoom * map.height, zoom * map.width, conv.out_channels)?;
        self.convolution(conv, map, norm, ConvOut::Bf16(&out.view), out.pitch)?;
        Ok(out)
    }

    fn convolution(
        &mut self,
        conv: &Conv,
        map: &Map,
        norm: Option<&View<f32>>,
        out: ConvOut<'_>,
        out_pitch: usize,
    ) -> Result<()> {
        Conv2d {
            x: &map.view,
            x_pitch: map.pitch,
            height: map.height,
            width: map.width,
            channels: map.channels,
            out_channels: conv.out_channels,
            filter: conv.filter,
            norm,
            weight: &conv.weight,
            bias: Some(&conv.bias),
            out,
            out_pitch,
        }
        .launch(self.net.device(), STREAM)
    }

    /// Mixes each pixel's channels: into the first of them where that can be, so that the largest maps of all, those that become
    /// narrower, need no third beside them.
    fn convolve_1x1(&mut self, name: &str, map: Map, out_channels: usize) -> Result<Map> {
        let linear = self.net.conv_1x1(name, map.channels, out_channels)?;
        let out = match out_channels <= map.pitch.min(IN_PLACE_COLUMNS) {
            true => Map { channels: out_channels, ..map.clone() },
            false => self.map(map.height, map.width, out_channels)?,
        };
        let (store, pixels) = (Epilogue::Store(&out.view), map.tokens());
        self.net.gemm(&[Product::new(pixels, &linear, out.pitch, Activation::None, store)])?;
        Ok(out)
    }

    /// Self-attention of all pixels with one head, added to the map in place.
    fn attend(&mut self, name: &str, map: &Map) -> Result<()> {
        let (c, pixels) = (map.channels, map.pixels());
        if c > MAX_HEAD_DIM {
            return Err(Error::Unsupported(format!("VAE attention {c} wide; the widest is {MAX_HEAD_DIM}")));
        }
        let norm = self.norm(&format!("{name}.group_norm"), map)?;
        let normed = self.map(map.height, map.width, c)?;
        GroupNormSilu {
            x: &map.view,
            pitch: map.pitch,
            pixels,
            channels: c,
            norm: &norm,
            silu: false,
            out: &normed.view,
            out_pitch: normed.pitch,
        }
        .launch(self.net.device(), STREAM)?;
        let none = Activation::None;
        let parts =
            [(&format!("{name}.to_q")[..], c), (&format!("{name}.to_k"), c), (&format!("{name}.to_v"), c)];
        let linear = self.net.linear(&parts, c, true)?;
        let qkv = self.net.buffer::<bf16>("qkv", pixels * 3 * c)?;
        let store = Epilogue::Store(&qkv);
        self.net.gemm(&[Product::new(normed.tokens(), &linear, 3 * c, none, store)])?;
        let [q, k, v] = [0, 1, 2].map(|i| qkv.slice(i * c, qkv.len() - i * c));
        let (q, k, v) = (q?, k?, v?);
        let part = |view| Heads { view, pitch: 3 * c, head_stride: c };
        let out = self.net.buffer::<bf16>("attended", pixels * c)?;
        Attention {
            q: part(&q),
            k: part(&k),
            v: part(&v),
            out: Heads { view: &out, pitch: c, head_stride: c },
            bias: None,
            causal: false,
            softmax_scale: 1.0 / (c as f32).sqrt(),
            q_len: pixels,
            kv_len: pixels,
            heads: 1,
            head_dim: c,
        }
        .launch(self.net.device(), STREAM)?;
        let linear = self.net.linear(&[(&format!("{name}.to_out.0"), c)], c, true)?;
        let add = Epilogue::AddBf16(&map.view, &map.view);
        let attended = Tokens { view: &out, pitch: c, rows: pixels };
        self.net.gemm(&[Product::new(attended, &linear, c, none, add)])
    }
}
