//! Every kernel of [`crate::kernels`], at small odd shapes: tails, more than one CTA, each entry point at least once among
//! the [`Case::small`] ones.
//!
//! Tolerances: kernels that promise bits are held to them. Elsewhere a GPU fuses multiply-adds, adds a tensor-core
//! product's terms in its own order and has its own `exp`; f32 then differs in the last digits, and a bf16 store may
//! fall on the other side of a tie: one unit in the last place of the largest value is 2^-7 of it.

use half::bf16;

use super::{Case, Lab, Output, case, random_bits};
use crate::Result;
use crate::device::{StreamId, View};
use crate::kernels::FloatOut;
use crate::kernels::attention::{Attention, Heads, RelativeBias};
use crate::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use crate::kernels::conv2d::{Conv2d, ConvOut, Filter};
use crate::kernels::count_nonfinite::CountNonfinite;
use crate::kernels::euler_step::EulerStep;
use crate::kernels::gemm::{Activation, Epilogue, Gemm, LowRank, Problem, Segment, Weight, Workspace};
use crate::kernels::gemv::{Gemv, GemvActivation, GemvLowRank, GemvWeight};
use crate::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};
use crate::kernels::head_norm_rope::HeadNormRope;
use crate::kernels::layer_norm_mod::{LayerNormMod, Rest};
use crate::kernels::next_step::NextStep;
use crate::kernels::nf4_gemm::Nf4Weight;
use crate::kernels::nf4_half_gemm::Nf4HalfWeight;
use crate::kernels::nf4_quantize::{Nf4Layout, Nf4Quantize, Nf4Source};
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::scale_rows::ScaleRows;
use crate::kernels::select_row::SelectRow;
use crate::kernels::to_rgb::{RgbOut, ToRgb};
use crate::kernels::unpack_latents::UnpackLatents;

pub(super) const COMPUTE: StreamId = StreamId::Compute;
/// Allowed relative L2 error and largest error, of f32 and of bf16 outputs.
pub(super) const F32: (f64, f64) = (2e-5, 1e-4);
pub(super) const BF16: (f64, f64) = (2e-3, 8e-3);
/// Of f32 outputs that are sums in fp16: one that lies near the middle of two numbers, 2^-11 of it apart, falls to the other side.
const HALF: (f64, f64) = (1e-3, 4e-3);

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        small("euler_step", euler_step),
        small("count_nonfinite", count_nonfinite),
        small("select_row", select_row),
        small("next_step", next_step),
        small("to_rgb", to_rgb),
        small("head_norm_rope", head_norm_rope),
        small("group_norm_silu", group_norm_silu),
        small("unpack_latents", unpack_latents),
        small("nf4_gemm_heads", |lab| nf4_gemm_heads(lab, HEADS)),
        small("nf4_gemm_heads_split", |lab| nf4_gemm_heads(lab, SPLIT_HEADS)),
        small("nf4_half_gemm_heads", |lab| nf4_half_gemm_heads(lab, HEADS)),
        small("nf4_half_gemm_heads_split", |lab| nf4_half_gemm_heads(lab, SPLIT_HEADS)),
        small("bf16_gemm_heads", |lab| bf16_gemm_heads(lab, HEADS)),
        small("bf16_gemm_heads_split", |lab| bf16_gemm_heads(lab, SPLIT_HEADS)),
        small("bf16_gemm_epilogues", bf16_gemm_epilogues),
    ];
    // On Hopper the cases of `nf4_gemm` are of these entries, too; here are its own tile's edges.
    cases.extend([
        hopper("nf4_gemm_sm90_heads", |lab| nf4_gemm_heads(lab, HEADS_SM90)),
        hopper("nf4_gemm_sm90_heads_split", |lab| nf4_gemm_heads(lab, SPLIT_HEADS)),
        hopper("nf4_gemm_sm90_259x136x448", |lab| nf4_gemm(lab, [259, 136, 448])),
    ]);
    for width in [256, 3072, 4096, 102] {
        cases.push(small(format!("norms_{width}"), move |lab| norms(lab, width)));
    }
    for layout in [Nf4Layout::Rows, Nf4Layout::Fragments] {
        let name = format!("nf4_quantize_{layout:?}").to_lowercase();
        cases.push(small(name, move |lab| nf4_quantize(lab, layout)));
    }
    for width in [200, 16392] {
        cases.push(small(format!("scale_rows_{width}"), move |lab| scale_rows(lab, width)));
    }
    for m in [1, 2, 4, 7] {
        cases.push(small(format!("gemv_{m}"), move |lab| gemv(lab, m)));
    }
    // Rows by columns by inner width: more k-steps than the ring has stages, in one row of tiles.
    let shape = [33, 136, 448];
    cases.push(small("bf16_gemm_33x136x448", move |lab| bf16_gemm(lab, shape)));
    cases.push(small("nf4_gemm_33x136x448", move |lab| nf4_gemm(lab, shape)));
    cases.push(small("nf4_half_gemm_33x136x448", move |lab| nf4_half_gemm(lab, shape)));
    // Less than a tile, a tile and a bit, many k-steps.
    for shape in [[5, 40, 64], [130, 136, 192], [257, 256, 1024]] {
        let [m, n, k] = shape;
        cases.push(large(format!("bf16_gemm_{m}x{n}x{k}"), move |lab| bf16_gemm(lab, shape)));
        cases.push(large(format!("nf4_gemm_{m}x{n}x{k}"), move |lab| nf4_gemm(lab, shape)));
        cases.push(large(format!("nf4_half_gemm_{m}x{n}x{k}"), move |lab| nf4_half_gemm(lab, shape)));
    }
    // One per entry point: with and without a bias.
    for (heads, head_dim) in [(2, 40), (2, 128), (1, 200), (1, 512)] {
        for masked in [false, true] {
            let name = format!("attention_d{head_dim}{}", if masked { "_masked" } else { "" });
            let kv_len = if masked { 33 } else { 100 };
            cases.push(small(name, move |lab| attention(lab, [heads, 33, kv_len, head_dim], masked)));
        }
    }
    for head_dim in [64, 128] {
        for masked in [false, true] {
            let name = format!("attention_long_d{head_dim}{}", if masked { "_masked" } else { "" });
            let kv_len = if masked { 177 } else { 250 };
            cases.push(large(name, move |lab| attention(lab, [2, 177, kv_len, head_dim], masked)));
        }
    }
    // Channels that fill blocks of 32, as nearly all of a VAE do, more than there are slots for; and such that do not.
    for channels in [40, 96] {
        let whole = if channels % 32 == 0 { "_whole" } else { "" };
        for (what, filter, norm) in [
            ("", Filter::Plain, false),
            ("_norm", Filter::Plain, true),
            ("_enlarged", Filter::Enlarged, false),
        ] {
            cases.push(small(format!("conv2d{whole}{what}"), move |lab| conv2d(lab, channels, filter, norm)));
        }
        cases.push(small(format!("conv2d{whole}_narrow"), move |lab| conv2d_narrow(lab, channels)));
    }
    cases.extend(super::kept::cases());
    cases
}

pub(super) fn small(name: impl Into<String>, run: impl Fn(&Lab) -> Result<Vec<Output>> + 'static) -> Case {
    Case { small: true, ..case("kernels", name, run) }
}

fn hopper(name: impl Into<String>, run: impl Fn(&Lab) -> Result<Vec<Output>> + 'static) -> Case {
    Case { hopper: true, ..small(name, run) }
}

fn large(name: impl Into<String>, run: impl Fn(&Lab) -> Result<Vec<Output>> + 'static) -> Case {
    case("kernels", name, run)
}

fn euler_step(lab: &Lab) -> Result<Vec<Output>> {
    let n = 1025;
    let (latents, velocity) = (lab.f32s(1, n, 3.0)?, lab.f32s(2, n, 2.0)?);
    let latents_bf16 = lab.alloc::<bf16>(n)?;
    let (dt, step) = (lab.upload(&[-0.5f32, -0.25])?, lab.upload(&[1i32])?);
    EulerStep {
        latents: &latents,
        velocity: &velocity,
        negative: None,
        latents_bf16: &latents_bf16,
        dt: &dt,
        step: &step,
    }
    .launch(lab.device(), COMPUTE)?;
    let guided = lab.f32s(3, n, 3.0)?;
    let negative = lab.f32s(4, n, 2.0)?;
    EulerStep {
        latents: &guided,
        velocity: &velocity,
        negative: Some((&negative, &lab.upload(&[2.5f32])?)),
        latents_bf16: &lab.alloc::<bf16>(n)?,
        dt: &dt,
        step: &step,
    }
    .launch(lab.device(), COMPUTE)?;
    Ok(vec![
        lab.bits("latents", &latents)?,
        lab.bits("latents_bf16", &latents_bf16)?,
        lab.bits("guided", &guided)?,
    ])
}

fn unpack_latents(lab: &Lab) -> Result<Vec<Output>> {
    let (height, width, channels) = (6, 10, 12);
    let tokens = lab.f32s(1, height * width * channels, 1.0)?;
    let out = lab.alloc::<bf16>(height * width * 16)?;
    UnpackLatents {
        tokens: &tokens,
        height,
        width,
        channels,
        scaling: 0.3611,
        shift: 0.1159,
        out: &out,
        pitch: 16,
    }
    .launch(lab.device(), COMPUTE)?;
    Ok(vec![lab.bits("latents", &out)?])
}

/// Rows of the two problems of [`gemm_heads`], columns and inner width.
type HeadsShape = ([usize; 2], usize, usize);
const HEADS: HeadsShape = ([130, 20], 2 * 128 + 136, 128);
const HEADS_SM90: HeadsShape = ([260, 20], 2 * 128 + 136, 192);
/// So few tiles of so many k-steps that every machine splits them.
const SPLIT_HEADS: HeadsShape = ([30, 20], 2 * 128 + 8, 1536);

/// Codes and absmax `[n, k]` in fragment order.
fn nf4_weight(lab: &Lab, seed: u64, [n, k]: [usize; 2]) -> Result<(View<u8>, View<f32>)> {
    let layout = Nf4Layout::Fragments;
    let codes = random_bits(seed, layout.codes_len(n, k) / 4);
    let absmax = lab.f32s(seed + 1, layout.absmax_len(n, k), 0.2)?;
    Ok((lab.upload(bytemuck::cast_slice::<u32, u8>(&codes))?, absmax))
}

fn nf4_gemm_heads(lab: &Lab, shape: HeadsShape) -> Result<Vec<Output>> {
    let (codes, absmax) = nf4_weight(lab, 1, [shape.1, shape.2])?;
    gemm_heads(lab, shape, Nf4Weight { codes: &codes, absmax: &absmax })
}

/// Of bf16 up to 1, whose bits are fp16 up to 2.
fn nf4_half_gemm_heads(lab: &Lab, shape: HeadsShape) -> Result<Vec<Output>> {
    let (codes, absmax) = nf4_weight(lab, 1, [shape.1, shape.2])?;
    let weight = Nf4Weight { codes: &codes, absmax: &absmax };
    let x_scale = lab.f32s(9, shape.0[0], 2.0)?;
    gemm_heads(lab, shape, Nf4HalfWeight { weight, x_scale: &x_scale })
}

fn bf16_gemm_heads(lab: &Lab, shape: HeadsShape) -> Result<Vec<Output>> {
    let (_, n, k) = shape;
    let values = lab.bf16s(1, n * k, 0.2)?;
    gemm_heads(lab, shape, Bf16Weight { values: &values, pitch: k })
}

/// Partials and arrivals for as many launches, one after the other, as one likes.
pub(super) fn workspace<W: Weight>(
    lab: &Lab,
    problems: &[(Problem<'_>, W)],
) -> Result<(View<f32>, View<u32>)> {
    let split = Gemm { problems, workspace: None }.split(lab.device().capability());
    Ok((lab.alloc(split.partials_len().max(1))?, lab.upload(&vec![0; split.split.max(1)])?))
}

fn multiply<W: Weight>(lab: &Lab, problems: &[(Problem<'_>, W)]) -> Result<()> {
    let (partials, arrivals) = &workspace(lab, problems)?;
    Gemm { problems, workspace: Some(Workspace { partials, arrivals }) }.launch(lab.device(), COMPUTE)
}

/// Two problems of different height in one launch, with norm and RoPE, a plain segment and an activated one.
pub(super) fn gemm_heads<W: Weight>(lab: &Lab, shape: HeadsShape, weight: W) -> Result<Vec<Output>> {
    let (rows, n, k) = shape;
    let d = 128;
    let (norm, bias) = (lab.f32s(3, 128, 1.5)?, lab.f32s(4, n, 0.5)?);
    let (cos, sin) = (lab.f32s(5, rows[0] * 64, 1.0)?, lab.f32s(6, rows[0] * 64, 1.0)?);
    let x = [lab.bf16s(7, rows[0] * k, 1.0)?, lab.bf16s(8, rows[1] * k, 1.0)?];
    let alloc = |width: usize| -> Result<[View<bf16>; 2]> {
        Ok([lab.alloc(rows[0] * width)?, lab.alloc(rows[1] * width)?])
    };
    let (q, v, mlp) = (alloc(d)?, alloc(d)?, alloc(n - 2 * d)?);
    // A LoRA of more than one k-step for the first, and none for the second.
    let (rank, ends) = (72, vec![d, 2 * d, n]);
    let t_pitch = ends.len() * rank;
    let (t, up) = (lab.bf16s(9, rows[0] * t_pitch, 0.5)?, lab.bf16s(10, n * rank, 0.1)?);
    let low_rank = LowRank { t: &t, t_pitch, up: &up, rank, ends };
    let none = Activation::None;
    let segment =
        |begin, end, activation, epilogue| Segment { begin, end, pitch: end - begin, activation, epilogue };
    let problems = [0, 1].map(|i| {
        let problem = Problem {
            rope: Some((&cos, &sin)),
            norm_eps: 1e-6,
            low_rank: (i == 0).then(|| low_rank.clone()),
            segments: vec![
                segment(0, d, none, Epilogue::NormRope { out: &q[i], weight: &norm }),
                segment(d, 2 * d, none, Epilogue::Store(&v[i])),
                segment(2 * d, n, Activation::GeluTanh, Epilogue::Store(&mlp[i])),
            ],
            ..Problem::simple(&x[i], [rows[i], n, k], Some(&bias), none, Epilogue::Store(&v[i]))
        };
        (problem, weight)
    });
    multiply(lab, &problems)?;
    let mut outputs = Vec::new();
    for (name, views) in [("norm and rope", &q), ("store", &v), ("gelu", &mlp)] {
        for (view, side) in views.iter().zip(["first", "second"]) {
            outputs.push(lab.close_bf16(&format!("{name}, {side}"), view, BF16.0, BF16.1)?);
        }
    }
    Ok(outputs)
}

/// The epilogues and activations that no other case takes.
fn bf16_gemm_epilogues(lab: &Lab) -> Result<Vec<Output>> {
    let (m, n, k) = (33, 140, 100);
    let x = lab.bf16s(1, m * 104, 1.0)?;
    let values = lab.bf16s(2, n * 104, 0.2)?;
    let (sum, product) = (lab.bf16s(3, m * n, 1.0)?, lab.bf16s(4, m * n, 1.0)?);
    let activated = [lab.alloc::<bf16>(m * n)?, lab.alloc::<bf16>(m * n)?];
    let none = Activation::None;
    let runs = [
        (none, Epilogue::AddBf16(&sum, &sum)),
        (none, Epilogue::MulBf16(&product, &product)),
        (Activation::QuickGelu, Epilogue::Store(&activated[0])),
        (Activation::GeluErf, Epilogue::Store(&activated[1])),
    ];
    for (activation, epilogue) in runs {
        let problem = Problem { x_pitch: 104, ..Problem::simple(&x, [m, n, k], None, activation, epilogue) };
        Bf16Gemm { problems: &[(problem, Bf16Weight { values: &values, pitch: 104 })], workspace: None }
            .launch(lab.device(), COMPUTE)?;
    }
    let mut outputs = vec![
        lab.close_bf16("sum", &sum, BF16.0, BF16.1)?,
        lab.close_bf16("product", &product, BF16.0, BF16.1)?,
    ];
    for (view, name) in activated.iter().zip(["quick_gelu", "gelu_erf"]) {
        outputs.push(lab.close_bf16(name, view, BF16.0, BF16.1)?);
    }
    Ok(outputs)
}

fn count_nonfinite(lab: &Lab) -> Result<Vec<Output>> {
    // Any bits: about one in 128 is an infinity or NaN.
    let x = lab.upload(&random_bits(1, 100_003))?.cast::<f32>()?;
    let counter = lab.upload(&[7u32, 9])?;
    CountNonfinite::all(&x, &counter).launch(lab.device(), COMPUTE)?;
    let index = lab.upload(&[1i32])?;
    CountNonfinite { index: Some(&index), ..CountNonfinite::all(&x, &counter) }
        .launch(lab.device(), COMPUTE)?;
    Ok(vec![lab.bits("counter", &counter)?])
}

fn select_row(lab: &Lab) -> Result<Vec<Output>> {
    let (rows, width, pitch) = (5, 1025, 1030);
    let table = lab.f32s(1, rows * pitch, 1.0)?;
    let out = lab.alloc::<f32>(width)?;
    let index = lab.upload(&[3i32])?;
    SelectRow { table: &table, pitch, rows, width, index: &index, out: &out }
        .launch(lab.device(), COMPUTE)?;
    Ok(vec![lab.bits("row", &out)?])
}

fn next_step(lab: &Lab) -> Result<Vec<Output>> {
    let step = lab.upload(&[3i32, 7])?;
    for _ in 0..2 {
        NextStep { step: &step }.launch(lab.device(), COMPUTE)?;
    }
    Ok(vec![lab.bits("step", &step)?])
}

fn to_rgb(lab: &Lab) -> Result<Vec<Output>> {
    let (pixels, pitch) = (1001, 5);
    let x = lab.f32s(1, pixels * pitch, 1.2)?;
    let bytes = || lab.alloc::<u8>(pixels * 3);
    let floats = || lab.alloc::<f32>(pixels * 3);
    let (rgb, planar, unit, planar_unit) = (bytes()?, bytes()?, floats()?, floats()?);
    for out in
        [RgbOut::U8(&rgb), RgbOut::U8Planar(&planar), RgbOut::F32(&unit), RgbOut::F32Planar(&planar_unit)]
    {
        ToRgb { x: &x, pitch, pixels, out }.launch(lab.device(), COMPUTE)?;
    }
    Ok(vec![
        lab.bits("rgb", &rgb)?,
        lab.bits("planar", &planar)?,
        lab.bits("unit", &unit)?,
        lab.bits("planar unit", &planar_unit)?,
    ])
}

fn head_norm_rope(lab: &Lab) -> Result<Vec<Output>> {
    let (rows, heads, head_dim) = (19, 3, 128);
    let pitch = heads * head_dim + 8;
    let x = lab.bf16s(1, rows * pitch, 2.0)?;
    let (cos, sin) =
        (lab.f32s(2, (rows + 4) * head_dim / 2, 1.0)?, lab.f32s(3, (rows + 4) * head_dim / 2, 1.0)?);
    let weight = lab.f32s(4, head_dim, 1.5)?;
    let (cos, sin, weight) = (&cos, &sin, &weight);
    HeadNormRope { x: &x, pitch, rows, heads, head_dim, weight, eps: 1e-6, cos, sin, rope_row: 4 }
        .launch(lab.device(), COMPUTE)?;
    Ok(vec![lab.close_bf16("x", &x, BF16.0, BF16.1)?])
}

fn group_norm_silu(lab: &Lab) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for (pixels, channels, groups, silu) in [(150, 64, 32, true), (65, 12, 3, false)] {
        let x = lab.bf16s(1, pixels * channels, 3.0)?;
        let (weight, bias) = (lab.f32s(2, channels, 1.0)?, lab.f32s(3, channels, 1.0)?);
        let (out, norm) = (lab.alloc::<bf16>(pixels * channels)?, lab.alloc::<f32>(2 * channels)?);
        GroupNorm {
            x: &x,
            pitch: channels,
            pixels,
            channels,
            groups,
            weight: &weight,
            bias: &bias,
            eps: 1e-6,
            workspace: &lab.alloc::<f32>(GroupNorm::workspace_len(pixels, groups))?,
            norm: &norm,
        }
        .launch(lab.device(), COMPUTE)?;
        GroupNormSilu {
            x: &x,
            pitch: channels,
            pixels,
            channels,
            norm: &norm,
            silu,
            out: &out,
            out_pitch: channels,
        }
        .launch(lab.device(), COMPUTE)?;
        outputs.push(lab.close_bf16(&format!("out_{channels}"), &out, BF16.0, BF16.1)?);
    }
    Ok(outputs)
}

fn norms(lab: &Lab, width: usize) -> Result<Vec<Output>> {
    let rows = 9;
    let x = lab.f32s(1, rows * width, 4.0)?;
    let (scale, shift) = (lab.f32s(2, width, 1.0)?, lab.f32s(3, width, 1.0)?);
    let (layer, rms) = (lab.alloc::<f32>(rows * width)?, lab.alloc::<bf16>(rows * width)?);
    LayerNormMod {
        x: &x,
        pitch: width,
        rows,
        width,
        scale: &scale,
        shift: &shift,
        rest: Some(Rest { first_row: 5, scale: &shift, shift: &scale }),
        scale_offset: 1.0,
        eps: 1e-6,
        out: FloatOut::F32(&layer),
        out_pitch: width,
    }
    .launch(lab.device(), COMPUTE)?;
    RmsNorm {
        x: &x,
        pitch: width,
        rows,
        width,
        weight: &scale,
        eps: 1e-6,
        out: FloatOut::Bf16(&rms),
        out_pitch: width,
    }
    .launch(lab.device(), COMPUTE)?;
    Ok(vec![
        lab.close("layer_norm_mod", &layer, F32.0, F32.1)?,
        lab.close_bf16("rms_norm", &rms, BF16.0, BF16.1)?,
    ])
}

fn nf4_quantize(lab: &Lab, layout: Nf4Layout) -> Result<Vec<Output>> {
    let (n, k) = (70, 256);
    let mut weights = super::random_f32s(1, n * k, 0.3);
    (weights[65], weights[66], weights[k]) = (f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY);
    let src = lab.upload(&weights)?;
    let codes = lab.alloc::<u8>(layout.codes_len(n, k))?;
    let absmax = lab.alloc::<f32>(layout.absmax_len(n, k))?;
    let nonfinite = lab.upload(&[3u32])?;
    // The padding, which the kernel leaves as it is.
    lab.device().fill(COMPUTE, &codes, 0)?;
    lab.device().fill(COMPUTE, &absmax.cast::<u8>()?, 0)?;
    let quantize = Nf4Quantize {
        src: Nf4Source::F32(&src),
        pitch: k,
        rows: n,
        k,
        first_row: 0,
        n,
        layout,
        codes: &codes,
        absmax: &absmax,
        nonfinite: &nonfinite,
    };
    quantize.launch(lab.device(), COMPUTE)?;
    let mut outputs =
        vec![lab.bits("codes", &codes)?, lab.bits("absmax", &absmax)?, lab.bits("nonfinite", &nonfinite)?];
    // Codes of a file, some rows of a weight.
    let stored = lab.upload(bytemuck::cast_slice::<u32, u8>(&random_bits(2, 33 * k / 8)))?;
    let src = Nf4Source::Nf4(&stored, &lab.f32s(3, 33 * k / 64, 0.1)?);
    Nf4Quantize { src, rows: 33, first_row: 20, ..quantize }.launch(lab.device(), COMPUTE)?;
    outputs.extend([lab.bits("stored codes", &codes)?, lab.bits("stored absmax", &absmax)?]);
    Ok(outputs)
}

fn gemv(lab: &Lab, m: usize) -> Result<Vec<Output>> {
    // Less than a chunk of k, and with two rows more than two.
    let (n, k) = if m == 2 { (37, 2112) } else { (133, 320) };
    let (x, bias) = (lab.f32s(1, m * k, 2.0)?, lab.f32s(2, n, 1.0)?);
    let weight = lab.bf16s(3, n * k, 0.1)?;
    let codes = lab.upload(bytemuck::cast_slice::<u32, u8>(&random_bits(4, n * k / 8)))?;
    let absmax = lab.f32s(5, n * k / 64, 0.1)?;
    let rank = 72;
    let (t, up) = (lab.f32s(6, m * rank, 1.0)?, lab.bf16s(7, n * rank, 0.1)?);
    let mut outputs = Vec::new();
    for (name, weight) in [
        ("bf16", GemvWeight::Bf16 { weight: &weight, pitch: k }),
        ("nf4", GemvWeight::Nf4 { codes: &codes, absmax: &absmax }),
    ] {
        let out = lab.alloc::<f32>(m * n)?;
        Gemv {
            x: &x,
            pitch: k,
            m,
            n,
            k,
            weight,
            low_rank: Some(GemvLowRank { t: &t, up: &up, rank }),
            bias: Some(&bias),
            act_in: GemvActivation::Silu,
            act_out: GemvActivation::None,
            add: None,
            out: &out,
            out_pitch: n,
        }
        .launch(lab.device(), COMPUTE)?;
        outputs.push(lab.close(name, &out, F32.0, F32.1)?);
    }
    Ok(outputs)
}

fn bf16_gemm(lab: &Lab, [m, n, k]: [usize; 3]) -> Result<Vec<Output>> {
    let (x, bias) = (lab.bf16s(1, m * k, 1.0)?, lab.f32s(2, n, 1.0)?);
    let values = lab.bf16s(3, n * k, 0.2)?;
    let (out, gelu) = (lab.alloc::<f32>(m * n)?, lab.alloc::<bf16>(m * n)?);
    for (activation, epilogue) in
        [(Activation::None, Epilogue::StoreF32(&out)), (Activation::GeluTanh, Epilogue::Store(&gelu))]
    {
        let problem = Problem::simple(&x, [m, n, k], Some(&bias), activation, epilogue);
        Bf16Gemm { problems: &[(problem, Bf16Weight { values: &values, pitch: k })], workspace: None }
            .launch(lab.device(), COMPUTE)?;
    }
    Ok(vec![lab.close("f32", &out, F32.0, F32.1)?, lab.close_bf16("gelu", &gelu, BF16.0, BF16.1)?])
}

fn nf4_gemm(lab: &Lab, shape: [usize; 3]) -> Result<Vec<Output>> {
    let (codes, absmax) = nf4_weight(lab, 4, [shape[1], shape[2]])?;
    let x = lab.bf16s(1, shape[0] * shape[2], 1.0)?;
    nf4_epilogues(lab, &x, shape, Nf4Weight { codes: &codes, absmax: &absmax }, F32)
}

fn nf4_half_gemm(lab: &Lab, shape: [usize; 3]) -> Result<Vec<Output>> {
    let [m, n, k] = shape;
    let (codes, absmax) = nf4_weight(lab, 4, [n, k])?;
    let (x, scale) = (lab.bf16s(1, m * k, 1.0)?, lab.alloc::<f32>(m)?);
    ScaleRows { x: &x, pitch: k, rows: m, width: k, scale: &scale }.launch(lab.device(), COMPUTE)?;
    let weight = Nf4Weight { codes: &codes, absmax: &absmax };
    nf4_epilogues(lab, &x, shape, Nf4HalfWeight { weight, x_scale: &scale }, HALF)
}

fn nf4_epilogues<W: Weight>(
    lab: &Lab,
    x: &View<bf16>,
    [m, n, k]: [usize; 3],
    weight: W,
    allowed: (f64, f64),
) -> Result<Vec<Output>> {
    let (bias, gate) = (lab.f32s(2, n, 1.0)?, lab.f32s(3, n, 1.0)?);
    let (residual, gelu) = (lab.f32s(6, m * n, 1.0)?, lab.alloc::<bf16>(m * n)?);
    let product = lab.bf16s(7, m * n, 1.0)?;
    for (activation, epilogue) in [
        (Activation::None, Epilogue::Add(&residual, Some(&gate))),
        (Activation::None, Epilogue::MulBf16(&product, &product)),
        (Activation::GeluTanh, Epilogue::Store(&gelu)),
    ] {
        let problem = Problem::simple(x, [m, n, k], Some(&bias), activation, epilogue);
        Gemm { problems: &[(problem, weight)], workspace: None }.launch(lab.device(), COMPUTE)?;
    }
    Ok(vec![
        lab.close("residual", &residual, allowed.0, allowed.1)?,
        lab.close_bf16("product", &product, BF16.0, BF16.1)?,
        lab.close_bf16("gelu", &gelu, BF16.0, BF16.1)?,
    ])
}

fn scale_rows(lab: &Lab, width: usize) -> Result<Vec<Output>> {
    let (rows, pitch) = (9, width + 8);
    let (x, scale) = (lab.bf16s(1, rows * pitch, 4.0)?, lab.alloc::<f32>(rows)?);
    ScaleRows { x: &x, pitch, rows, width, scale: &scale }.launch(lab.device(), COMPUTE)?;
    Ok(vec![lab.bits("x", &x)?, lab.bits("scale", &scale)?])
}

/// `masked`: causal and with a position bias, as the text encoders use it.
fn attention(lab: &Lab, shape: [usize; 4], masked: bool) -> Result<Vec<Output>> {
    let [heads, q_len, kv_len, head_dim] = shape;
    let pitch = heads * head_dim;
    let q = lab.bf16s(1, q_len * pitch, 2.0)?;
    let (k, v) = (lab.bf16s(2, kv_len * pitch, 2.0)?, lab.bf16s(3, kv_len * pitch, 1.0)?);
    let out = lab.alloc::<bf16>(q_len * pitch)?;
    let bias = lab.f32s(4, heads * (2 * kv_len - 1), 1.0)?;
    let place = |view| Heads { view, pitch, head_stride: head_dim };
    Attention {
        q: place(&q),
        k: place(&k),
        v: place(&v),
        out: place(&out),
        bias: masked.then_some(RelativeBias { view: &bias, len: kv_len }),
        causal: masked,
        softmax_scale: (head_dim as f32).sqrt().recip(),
        q_len,
        kv_len,
        heads,
        head_dim,
    }
    .launch(lab.device(), COMPUTE)?;
    // Probabilities are rounded to bf16 inside, too.
    Ok(vec![lab.close_bf16("out", &out, 2.0 * BF16.0, 2.0 * BF16.1)?])
}

fn conv2d(lab: &Lab, channels: usize, filter: Filter, norm: bool) -> Result<Vec<Output>> {
    let (height, width, out_channels) = if filter == Filter::Enlarged { (5, 7, 72) } else { (9, 18, 72) };
    let x = lab.bf16s(1, height * width * channels, 1.0)?;
    let weight = lab.bf16s(2, out_channels * filter.weight_pitch(channels), 0.2)?;
    let bias = lab.f32s(3, out_channels, 1.0)?;
    let scales = lab.f32s(4, 2 * channels, 1.0)?;
    let out_pixels = height * width * if filter == Filter::Enlarged { 4 } else { 1 };
    let residual = lab.bf16s(5, out_pixels * out_channels, 1.0)?;
    let out = lab.alloc::<bf16>(out_pixels * out_channels)?;
    Conv2d {
        x: &x,
        x_pitch: channels,
        height,
        width,
        channels,
        out_channels,
        filter,
        norm: norm.then_some(&scales),
        weight: &weight,
        bias: Some(&bias),
        out: if norm { ConvOut::AddBf16(&out, &residual) } else { ConvOut::Bf16(&out) },
        out_pitch: out_channels,
    }
    .launch(lab.device(), COMPUTE)?;
    // What is normalized is rounded to bf16 inside, too.
    Ok(vec![lab.close_bf16("out", &out, 2.0 * BF16.0, 2.0 * BF16.1)?])
}

fn conv2d_narrow(lab: &Lab, channels: usize) -> Result<Vec<Output>> {
    let (height, width, out_channels) = (9, 18, 3);
    let x = lab.bf16s(1, height * width * channels, 1.0)?;
    let weight = lab.bf16s(2, out_channels * Filter::Plain.weight_pitch(channels), 0.2)?;
    let bias = lab.f32s(3, out_channels, 1.0)?;
    let scales = lab.f32s(4, 2 * channels, 1.0)?;
    let out = lab.alloc::<f32>(height * width * out_channels)?;
    Conv2d {
        x: &x,
        x_pitch: channels,
        height,
        width,
        channels,
        out_channels,
        filter: Filter::Plain,
        norm: Some(&scales),
        weight: &weight,
        bias: Some(&bias),
        out: ConvOut::F32(&out),
        out_pitch: out_channels,
    }
    .launch(lab.device(), COMPUTE)?;
    // The input is rounded to bf16 once it is normalized: by chance one way here and the other there.
    Ok(vec![lab.close("out", &out, 2.0 * BF16.0, 2.0 * BF16.1)?])
}
