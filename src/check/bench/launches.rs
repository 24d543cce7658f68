//! The launches that are timed, each on a set of buffers of its own.

use half::bf16;

use crate::Result;
use crate::check::kernels::workspace;
use crate::check::{Lab, kept, random_bits};
use crate::device::{StreamId, View};
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads};
use crate::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use crate::kernels::conv2d::{Conv2d, ConvOut, Filter};
use crate::kernels::gemm::{Activation, Epilogue, Problem, Workspace};
use crate::kernels::gemv::{Gemv, GemvActivation, GemvWeight};
use crate::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};
use crate::kernels::kept::{Format, KeptLayout};
use crate::kernels::kept_gemm::{KeptGemm, KeptWeight};
use crate::kernels::layer_norm_mod::LayerNormMod;
use crate::kernels::nf4_gemm::{Nf4Gemm, Nf4Weight};
use crate::kernels::nf4_half_gemm::{Nf4HalfGemm, Nf4HalfWeight};
use crate::kernels::nf4_quantize::Nf4Layout;
use crate::kernels::scale_rows::ScaleRows;

const COMPUTE: StreamId = StreamId::Compute;

/// Enqueues once more.
pub type Launch = Box<dyn Fn() -> Result<()>>;

fn bf16s(lab: &Lab, len: usize) -> Result<View<bf16>> {
    lab.bf16s(1, len, 1.0)
}

fn random_bytes(lab: &Lab, len: usize) -> Result<View<u8>> {
    let words = random_bits(4, len.div_ceil(4));
    lab.upload(&bytemuck::cast_slice::<u32, u8>(&words)[..len])
}

pub fn nf4_gemm(lab: &Lab, m: usize, n: usize, k: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let layout = Nf4Layout::Fragments;
    let codes = random_bytes(lab, layout.codes_len(n, k))?;
    let absmax = lab.f32s(2, layout.absmax_len(n, k), 0.1)?;
    let (x, bias, out) = (bf16s(lab, m * k)?, lab.f32s(3, n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::Store(&out));
    let weight = Nf4Weight { codes: &codes, absmax: &absmax };
    let (partials, arrivals) = workspace(lab, &[(problem, weight)])?;
    Ok(Box::new(move || {
        let shape = [m, n, k];
        let problem = Problem::simple(&x, shape, Some(&bias), Activation::None, Epilogue::Store(&out));
        let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
        Nf4Gemm { problems: &[(problem, Nf4Weight { codes: &codes, absmax: &absmax })], workspace }
            .launch(&device, COMPUTE)
    }))
}

pub fn kept_gemm(lab: &Lab, format: Format, m: usize, n: usize, k: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let bytes = kept::weights(lab, format, KeptLayout::Panels, n, k)?;
    let (x, bias, out) = (bf16s(lab, m * k)?, lab.f32s(3, n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::Store(&out));
    let (partials, arrivals) = workspace(lab, &[(problem, KeptWeight { format, bytes: &bytes })])?;
    Ok(Box::new(move || {
        let shape = [m, n, k];
        let problem = Problem::simple(&x, shape, Some(&bias), Activation::None, Epilogue::Store(&out));
        let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
        KeptGemm { problems: &[(problem, KeptWeight { format, bytes: &bytes })], workspace }
            .launch(&device, COMPUTE)
    }))
}

/// Tokens are scaled anew each time: those of the last time are numbers like others.
pub fn nf4_half_gemm(lab: &Lab, m: usize, n: usize, k: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let layout = Nf4Layout::Fragments;
    let codes = random_bytes(lab, layout.codes_len(n, k))?;
    let absmax = lab.f32s(2, layout.absmax_len(n, k), 0.1)?;
    let (x, bias, out) = (bf16s(lab, m * k)?, lab.f32s(3, n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let scale = lab.alloc::<f32>(m)?;
    let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::Store(&out));
    let weight = Nf4HalfWeight { weight: Nf4Weight { codes: &codes, absmax: &absmax }, x_scale: &scale };
    let (partials, arrivals) = workspace(lab, &[(problem, weight)])?;
    Ok(Box::new(move || {
        ScaleRows { x: &x, pitch: k, rows: m, width: k, scale: &scale }.launch(&device, COMPUTE)?;
        let shape = [m, n, k];
        let problem = Problem::simple(&x, shape, Some(&bias), Activation::None, Epilogue::Store(&out));
        let weight = Nf4HalfWeight { weight: Nf4Weight { codes: &codes, absmax: &absmax }, x_scale: &scale };
        let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
        Nf4HalfGemm { problems: &[(problem, weight)], workspace }.launch(&device, COMPUTE)
    }))
}

pub fn bf16_gemm(lab: &Lab, m: usize, n: usize, k: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let (x, values, out) = (bf16s(lab, m * k)?, bf16s(lab, n * k)?, lab.alloc::<bf16>(m * n)?);
    let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::Store(&out));
    let (partials, arrivals) = workspace(lab, &[(problem, Bf16Weight { values: &values, pitch: k })])?;
    Ok(Box::new(move || {
        let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::Store(&out));
        let workspace = Some(Workspace { partials: &partials, arrivals: &arrivals });
        Bf16Gemm { problems: &[(problem, Bf16Weight { values: &values, pitch: k })], workspace }
            .launch(&device, COMPUTE)
    }))
}

pub fn attention(lab: &Lab, heads: usize, tokens: usize, head_dim: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let width = heads * head_dim;
    let parts = [0, 1, 2].map(|_| bf16s(lab, tokens * width));
    let [q, k, v] = parts;
    let (q, k, v, out) = (q?, k?, v?, lab.alloc::<bf16>(tokens * width)?);
    Ok(Box::new(move || {
        let place = |view| Heads { view, pitch: width, head_stride: head_dim };
        Attention {
            q: place(&q),
            k: place(&k),
            v: place(&v),
            out: place(&out),
            bias: None,
            causal: false,
            softmax_scale: (head_dim as f32).sqrt().recip(),
            q_len: tokens,
            kv_len: tokens,
            heads,
            head_dim,
        }
        .launch(&device, COMPUTE)
    }))
}

pub fn conv(lab: &Lab, side: usize, channels: usize, upsample: bool) -> Result<Launch> {
    let device = lab.device().clone();
    let pixels = side * side * if upsample { 4 } else { 1 };
    let (x, out) = (bf16s(lab, side * side * channels)?, lab.alloc::<bf16>(pixels * channels)?);
    let filter = if upsample { Filter::Enlarged } else { Filter::Plain };
    let weight = bf16s(lab, channels * filter.weight_pitch(channels))?;
    let (bias, norm) = (lab.f32s(3, channels, 1.0)?, lab.f32s(4, 2 * channels, 1.0)?);
    Ok(Box::new(move || {
        Conv2d {
            x: &x,
            x_pitch: channels,
            height: side,
            width: side,
            channels,
            out_channels: channels,
            filter,
            norm: (!upsample).then_some(&norm),
            weight: &weight,
            bias: Some(&bias),
            out: ConvOut::Bf16(&out),
            out_pitch: channels,
        }
        .launch(&device, COMPUTE)
    }))
}

pub fn nf4_gemv(lab: &Lab, m: usize, n: usize, k: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let codes = random_bytes(lab, n * k / 2)?;
    let absmax = lab.f32s(2, n * k / 64, 0.1)?;
    let (x, bias) = (lab.f32s(1, m * k, 1.0)?, lab.f32s(3, n, 1.0)?);
    let out = lab.alloc::<f32>(m * n)?;
    Ok(Box::new(move || {
        Gemv {
            x: &x,
            pitch: k,
            m,
            n,
            k,
            weight: GemvWeight::Nf4 { codes: &codes, absmax: &absmax },
            low_rank: None,
            bias: Some(&bias),
            act_in: GemvActivation::Silu,
            act_out: GemvActivation::None,
            add: None,
            out: &out,
            out_pitch: n,
        }
        .launch(&device, COMPUTE)
    }))
}

pub fn kept_gemv(lab: &Lab, format: Format, m: usize, n: usize, k: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let bytes = kept::weights(lab, format, KeptLayout::Rows, n, k)?;
    let (x, out) = (lab.f32s(1, m * k, 1.0)?, lab.alloc::<f32>(m * n)?);
    Ok(Box::new(move || {
        Gemv {
            x: &x,
            pitch: k,
            m,
            n,
            k,
            weight: GemvWeight::Kept { format, bytes: &bytes },
            low_rank: None,
            bias: None,
            act_in: GemvActivation::Silu,
            act_out: GemvActivation::None,
            add: None,
            out: &out,
            out_pitch: n,
        }
        .launch(&device, COMPUTE)
    }))
}

pub fn layer_norm_mod(lab: &Lab, rows: usize, width: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let x = lab.f32s(1, rows * width, 4.0)?;
    let (scale, shift) = (lab.f32s(2, width, 1.0)?, lab.f32s(3, width, 1.0)?);
    let out = lab.alloc::<bf16>(rows * width)?;
    Ok(Box::new(move || {
        LayerNormMod {
            x: &x,
            pitch: width,
            rows,
            width,
            scale: &scale,
            shift: &shift,
            rest: None,
            scale_offset: 1.0,
            eps: 1e-6,
            out: FloatOut::Bf16(&out),
            out_pitch: width,
        }
        .launch(&device, COMPUTE)
    }))
}

pub fn group_norm_silu(lab: &Lab, side: usize, channels: usize) -> Result<Launch> {
    let device = lab.device().clone();
    let (pixels, groups) = (side * side, 32);
    let (x, out) = (bf16s(lab, pixels * channels)?, lab.alloc::<bf16>(pixels * channels)?);
    let (weight, bias) = (lab.f32s(2, channels, 1.0)?, lab.f32s(3, channels, 1.0)?);
    let workspace = lab.alloc::<f32>(GroupNorm::workspace_len(pixels, groups))?;
    let norm = lab.alloc::<f32>(2 * channels)?;
    Ok(Box::new(move || {
        GroupNorm {
            x: &x,
            pitch: channels,
            pixels,
            channels,
            groups,
            weight: &weight,
            bias: &bias,
            eps: 1e-6,
            workspace: &workspace,
            norm: &norm,
        }
        .launch(&device, COMPUTE)?;
        GroupNormSilu {
            x: &x,
            pitch: channels,
            pixels,
            channels,
            norm: &norm,
            silu: true,
            out: &out,
            out_pitch: channels,
        }
        .launch(&device, COMPUTE)
    }))
}
