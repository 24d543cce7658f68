//! The VAE's decoder: latents to pixels.
//!
//! Maps are NHWC bf16 in three buffers of the largest size: the residual stream, its normalised copy and the first
//! convolution's result. Source: diffusers `AutoencoderKL.decode`.

use half::bf16;

use crate::arena::{Layout, Lifetime, Phase, Slot};
use crate::config::VaeConfig;
use crate::device::View;
use crate::kernels::attention::{Attention, Heads, MAX_HEAD_DIM};
use crate::kernels::conv2d::Conv2d;
use crate::kernels::gemm::{Activation, Epilogue};
use crate::kernels::group_norm_silu::GroupNormSilu;
use crate::kernels::to_rgb::ToRgb;
use crate::kernels::unpack_latents::UnpackLatents;
use crate::nn::{Affine, Builder, Conv, Linear, Product, Quantize, Rows, Run, Tokens};
use crate::weights::Part;
use crate::weights::upload::Job;
use crate::{Error, Result};

const NORM_EPS: f32 = 1e-6;
/// Elements from pixel to pixel of the decoder's output.
pub const OUT_PITCH: usize = 4;

/// The planned decoder.
#[derive(Debug)]
pub struct Vae {
    config: VaeConfig,
    latent_height: usize,
    latent_width: usize,
    post_quant: Option<Conv>,
    conv_in: Conv,
    mid: [Resnet; 2],
    attention: Option<MidAttention>,
    ups: Vec<Up>,
    norm_out: Affine,
    conv_out: Conv,
    maps: [Slot<bf16>; 3],
    workspace: Slot<f32>,
    /// f32 NHWC `[height, width, 4]`, red, green, blue in [-1, 1] before clamping.
    pub image: Slot<f32>,
    /// u8 `[height, width, 3]`.
    pub rgb: Slot<u8>,
}

#[derive(Debug)]
struct Resnet {
    norm1: Affine,
    conv1: Conv,
    norm2: Affine,
    conv2: Conv,
    shortcut: Option<Conv>,
}

#[derive(Debug)]
struct MidAttention {
    norm: Affine,
    qkv: Linear,
    out: Linear,
    /// bf16 `[pixels, 3 top]`: what the projections yield.
    buffer: Slot<bf16>,
}

#[derive(Debug)]
struct Up {
    resnets: Vec<Resnet>,
    upsample: Option<Conv>,
}

fn resnet(b: &mut Builder<'_>, name: &str, channels: usize, out_channels: usize) -> Resnet {
    Resnet {
        norm1: b.affine(&format!("{name}.norm1"), channels),
        conv1: b.conv(&format!("{name}.conv1"), channels, out_channels, 3),
        norm2: b.affine(&format!("{name}.norm2"), out_channels),
        conv2: b.conv(&format!("{name}.conv2"), out_channels, out_channels, 3),
        shortcut: (channels != out_channels)
            .then(|| b.conv(&format!("{name}.conv_shortcut"), channels, out_channels, 1)),
    }
}

/// A map in one of the three buffers.
#[derive(Clone, Copy)]
struct Map {
    buffer: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl Vae {
    /// Plans weights and buffers for latents of this size.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for widths that the kernels cannot take.
    pub fn plan(
        config: &VaeConfig,
        latent_height: usize,
        latent_width: usize,
        layout: &mut Layout,
        jobs: &mut Vec<Job>,
    ) -> Result<Vae> {
        let top = config.top_channels();
        if config.block_channels.iter().any(|c| c % 8 != 0) || config.out_channels != 3 {
            return Err(Error::Unsupported(format!(
                "a VAE with channels {:?} and {} output channels: widths must be multiples of 8, output 3",
                config.block_channels, config.out_channels
            )));
        }
        if config.mid_attention && top > MAX_HEAD_DIM {
            return Err(Error::Unsupported(format!(
                "VAE attention {top} wide; the widest is {MAX_HEAD_DIM}"
            )));
        }
        let here = Lifetime::only(Phase::Decode);
        let mut b = Builder::new(layout, jobs, Part::Vae, Quantize::None);
        let latent = config.latent_channels;
        let post_quant = config.use_post_quant_conv.then(|| b.conv("post_quant_conv", latent, latent, 1));
        let conv_in = b.conv("decoder.conv_in", latent, top, 3);
        let first = resnet(&mut b, "decoder.mid_block.resnets.0", top, top);
        let attention = config.mid_attention.then(|| {
            let name = |part: &str| format!("decoder.mid_block.attentions.0.{part}");
            let [q, k, v] = ["to_q", "to_k", "to_v"].map(name);
            MidAttention {
                norm: b.affine(&name("group_norm"), top),
                qkv: b.linear(&[(&q, top), (&k, top), (&v, top)], top, true, Rows::Many),
                out: b.linear(&[(&name("to_out.0"), top)], top, true, Rows::Many),
                buffer: b.layout.region("vae.qkv", latent_height * latent_width * 3 * top, here),
            }
        });
        let mid = [first, resnet(&mut b, "decoder.mid_block.resnets.1", top, top)];

        // The largest map decides the buffers: after each upsampling the level below still has this level's channels.
        let pixels = |level: usize| (latent_height << level) * (latent_width << level);
        let mut largest = pixels(0) * top.max(latent.next_multiple_of(8));
        let levels = config.block_channels.len();
        let (mut ups, mut channels) = (Vec::new(), top);
        for (i, &next) in config.block_channels.iter().rev().enumerate() {
            largest = largest.max(pixels(i) * channels.max(next));
            let mut resnets = Vec::new();
            for k in 0..=config.layers_per_block {
                resnets.push(resnet(&mut b, &format!("decoder.up_blocks.{i}.resnets.{k}"), channels, next));
                channels = next;
            }
            let upsample = (i + 1 < levels)
                .then(|| b.conv(&format!("decoder.up_blocks.{i}.upsamplers.0.conv"), next, next, 3));
            ups.push(Up { resnets, upsample });
        }
        let norm_out = b.affine("decoder.conv_norm_out", channels);
        let conv_out = b.conv("decoder.conv_out", channels, config.out_channels, 3);

        let out_pixels = pixels(levels - 1);
        Ok(Vae {
            latent_height,
            latent_width,
            post_quant,
            conv_in,
            mid,
            ups,
            norm_out,
            conv_out,
            maps: [0, 1, 2].map(|i| layout.region(format!("vae.map{i}"), largest, here)),
            attention,
            workspace: layout.region(
                "vae.statistics",
                GroupNormSilu::workspace_len(out_pixels, config.groups),
                here,
            ),
            image: layout.region("vae.image", out_pixels * OUT_PITCH, here),
            rgb: layout.region("vae.rgb", out_pixels * 3, here),
            config: config.clone(),
        })
    }

    /// Enqueues the decoder on `latents` f32 tokens `[latent_height / 2 * latent_width / 2, 4 * latent_channels]`;
    /// the result is `image` and `rgb`.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn run(&self, run: &Run<'_>, latents: &View<f32>) -> Result<()> {
        let (height, width, latent) = (self.latent_height, self.latent_width, self.config.latent_channels);
        let pitch = latent.next_multiple_of(8);
        UnpackLatents {
            tokens: latents,
            height,
            width,
            channels: latent,
            scaling: self.config.scaling,
            shift: self.config.shift,
            out: &run.view(&self.maps[1])?,
            pitch,
        }
        .launch(run.device, Run::STREAM)?;
        let mut map = Map { buffer: 1, height, width, channels: latent };
        if let Some(conv) = &self.post_quant {
            self.convolve(run, conv, map, false, 2, false)?;
            map.buffer = 2;
        }
        self.convolve(run, &self.conv_in, map, false, 0, false)?;
        map = Map { buffer: 0, channels: self.conv_in.out_channels, ..map };
        map = self.resnet(run, &self.mid[0], map)?;
        if let Some(attention) = &self.attention {
            self.attend(run, attention, map)?;
        }
        map = self.resnet(run, &self.mid[1], map)?;
        for up in &self.ups {
            for resnet in &up.resnets {
                map = self.resnet(run, resnet, map)?;
            }
            if let Some(conv) = &up.upsample {
                let to = (map.buffer + 1) % 3;
                self.convolve(run, conv, map, true, to, false)?;
                map = Map {
                    buffer: to,
                    height: 2 * map.height,
                    width: 2 * map.width,
                    channels: conv.out_channels,
                };
            }
        }
        let normed = (map.buffer + 1) % 3;
        self.norm(run, &self.norm_out, map, normed, true)?;
        let image = run.view(&self.image)?;
        let epilogue = Epilogue::StoreF32(&image);
        self.convolution(run, &self.conv_out, Map { buffer: normed, ..map }, false, epilogue, OUT_PITCH)?;
        ToRgb { x: &image, pitch: OUT_PITCH, pixels: map.height * map.width, out: &run.view(&self.rgb)? }
            .launch(run.device, Run::STREAM)
    }

    /// `map + conv2(silu(norm2(conv1(silu(norm1(map))))))`, in place unless the channels change.
    fn resnet(&self, run: &Run<'_>, resnet: &Resnet, map: Map) -> Result<Map> {
        let (normed, inner) = ((map.buffer + 1) % 3, (map.buffer + 2) % 3);
        self.norm(run, &resnet.norm1, map, normed, true)?;
        self.convolve(run, &resnet.conv1, Map { buffer: normed, ..map }, false, inner, false)?;
        let out = Map { channels: resnet.conv1.out_channels, ..map };
        self.norm(run, &resnet.norm2, Map { buffer: inner, ..out }, normed, true)?;
        if let Some(shortcut) = &resnet.shortcut {
            // `inner` has been used up: it takes the narrowed residual and with it the sum.
            self.convolve(run, shortcut, map, false, inner, false)?;
            self.convolve(run, &resnet.conv2, Map { buffer: normed, ..out }, false, inner, true)?;
            return Ok(Map { buffer: inner, ..out });
        }
        self.convolve(run, &resnet.conv2, Map { buffer: normed, ..out }, false, map.buffer, true)?;
        Ok(out)
    }

    fn norm(&self, run: &Run<'_>, affine: &Affine, map: Map, out: usize, silu: bool) -> Result<()> {
        GroupNormSilu {
            x: &run.view(&self.maps[map.buffer])?,
            pitch: map.channels,
            pixels: map.height * map.width,
            channels: map.channels,
            groups: self.config.groups,
            weight: &run.view(&affine.weight)?,
            bias: &run.view(&affine.bias)?,
            eps: NORM_EPS,
            silu,
            out: &run.view(&self.maps[out])?,
            out_pitch: map.channels,
            workspace: &run.view(&self.workspace)?,
        }
        .launch(run.device, Run::STREAM)
    }

    /// A convolution into buffer `to`, added to what is there if `residual`.
    fn convolve(
        &self,
        run: &Run<'_>,
        conv: &Conv,
        map: Map,
        upsample: bool,
        to: usize,
        residual: bool,
    ) -> Result<()> {
        let out = run.view(&self.maps[to])?;
        let epilogue = if residual { Epilogue::AddBf16(&out, &out) } else { Epilogue::Store(&out) };
        self.convolution(run, conv, map, upsample, epilogue, conv.out_channels.next_multiple_of(8))
    }

    fn convolution(
        &self,
        run: &Run<'_>,
        conv: &Conv,
        map: Map,
        upsample: bool,
        epilogue: Epilogue<'_>,
        out_pitch: usize,
    ) -> Result<()> {
        Conv2d {
            x: &run.view(&self.maps[map.buffer])?,
            x_pitch: map.channels.next_multiple_of(8),
            height: map.height,
            width: map.width,
            channels: map.channels,
            out_channels: conv.out_channels,
            kernel: conv.kernel,
            upsample,
            weight: &run.view(&conv.weight)?,
            bias: Some(&run.view(&conv.bias)?),
            epilogue,
            out_pitch,
        }
        .launch(run.device, Run::STREAM)
    }

    /// Self-attention of all pixels with one head, added to the map in place.
    fn attend(&self, run: &Run<'_>, attention: &MidAttention, map: Map) -> Result<()> {
        let (c, pixels) = (map.channels, map.height * map.width);
        let (normed, attended) = ((map.buffer + 1) % 3, (map.buffer + 2) % 3);
        self.norm(run, &attention.norm, map, normed, false)?;
        let x = run.view(&self.maps[normed])?;
        let qkv = run.view(&attention.buffer)?;
        let tokens = |view, pitch| Tokens { view, pitch, rows: pixels };
        let none = Activation::None;
        run.gemm(&[Product::new(tokens(&x, c), &attention.qkv, 3 * c, none, Epilogue::Store(&qkv))])?;
        let [q, k, v] = [0, 1, 2].map(|i| qkv.slice(i * c, qkv.len() - i * c));
        let (q, k, v) = (q?, k?, v?);
        let part = |view| Heads { view, pitch: 3 * c, head_stride: c };
        let out = run.view(&self.maps[attended])?;
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
        .launch(run.device, Run::STREAM)?;
        let map = run.view(&self.maps[map.buffer])?;
        let add = Epilogue::AddBf16(&map, &map);
        run.gemm(&[Product::new(tokens(&out, c), &attention.out, c, none, add)])
    }
}
