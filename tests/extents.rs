//! Shapes whose extents are beyond `usize` are refused by every wrapper: a product that wrapped would pass as small, and
//! the kernel would reach where it points. (In a build without overflow checks, as a release is, nothing else would stop
//! it.)

mod common;
use common::*;
use half::bf16;
use schnell::device::{Device, View};
use schnell::kernels::attention::{Attention, Heads, RelativeBias};
use schnell::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use schnell::kernels::conv2d::{Conv2d, ConvOut, Filter};
use schnell::kernels::gemm::{Activation, Epilogue, Gemm, Problem, Segment};
use schnell::kernels::gemv::{Gemv, GemvActivation, GemvWeight};
use schnell::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};
use schnell::kernels::head_norm_rope::HeadNormRope;
use schnell::kernels::kept::Format;
use schnell::kernels::kept_gemm::{KeptGemm, KeptWeight};
use schnell::kernels::nf4_gemm::Nf4Weight;
use schnell::kernels::nf4_half_gemm::Nf4HalfWeight;
use schnell::kernels::nf4_quantize::{Nf4Layout, Nf4Quantize, Nf4Source};
use schnell::kernels::scale_rows::ScaleRows;
use schnell::kernels::to_rgb::{RgbOut, ToRgb};
use schnell::kernels::unpack_latents::UnpackLatents;
use schnell::{Error, Result};

/// 4 of these are 2^64, which wraps to 0.
const QUARTER: usize = 1 << 62;

/// Small memory, large enough for what a wrapped product would be.
struct Small {
    device: Device,
    halves: View<bf16>,
    floats: View<f32>,
    bytes: View<u8>,
}

impl Small {
    fn new() -> Small {
        let device = emulator();
        let memory = device.allocate(8 * 4096).unwrap();
        Small {
            halves: memory.view(0, 4096).unwrap(),
            floats: memory.view(8192, 2048).unwrap(),
            bytes: memory.view(16384, 4096).unwrap(),
            device,
        }
    }
}

#[track_caller]
fn refused(result: Result<()>) {
    assert!(matches!(result, Err(Error::Internal(_) | Error::Unsupported(_))), "{result:?}");
}

#[test]
fn bf16_gemm() {
    let s = Small::new();
    let good = Problem::simple(&s.halves, [5, 8, 8], None, Activation::None, Epilogue::StoreF32(&s.floats));
    let launch = |problem: Problem, pitch: usize| {
        let weight = Bf16Weight { values: &s.halves, pitch };
        Bf16Gemm { problems: &[(problem, weight)], workspace: None }.launch(&s.device, COMPUTE)
    };
    launch(good.clone(), 8).unwrap();
    refused(launch(Problem { x_pitch: QUARTER, ..good.clone() }, 8));
    let out = Segment { pitch: QUARTER, ..good.segments[0] };
    refused(launch(Problem { segments: vec![out], ..good.clone() }, 8));
    let column = Segment { end: 5, ..good.segments[0] };
    refused(launch(Problem { n: 5, segments: vec![column], ..good.clone() }, QUARTER));
    let rope = Some((&s.floats, &s.floats));
    refused(launch(Problem { m: 1 << 58, rope, ..good.clone() }, 8));
    assert_eq!(Problem { m: QUARTER, ..good }.flops(), u64::MAX);
}

#[test]
fn nf4_gemm() {
    let s = Small::new();
    let good = Problem::simple(&s.halves, [5, 8, 64], None, Activation::None, Epilogue::StoreF32(&s.floats));
    let launch = |problem: Problem| {
        let weight = Nf4Weight { codes: &s.bytes, absmax: &s.floats };
        let half = Nf4HalfWeight { weight, x_scale: &s.floats };
        let halves =
            Gemm { problems: &[(problem.clone(), half)], workspace: None }.launch(&s.device, COMPUTE);
        let launched = Gemm { problems: &[(problem, weight)], workspace: None }.launch(&s.device, COMPUTE);
        assert_eq!(launched.is_ok(), halves.is_ok());
        launched.and(halves)
    };
    launch(good.clone()).unwrap();
    refused(launch(Problem { x_pitch: QUARTER, ..good.clone() }));
    refused(launch(Problem { n: usize::MAX - 7, ..good.clone() }));
    refused(launch(Problem { n: 1 << 59, ..good.clone() }));
    refused(launch(Problem { k: QUARTER, ..good }));
    let rows = ScaleRows { x: &s.halves, pitch: 8, rows: 5, width: 8, scale: &s.floats };
    rows.launch(&s.device, COMPUTE).unwrap();
    refused(ScaleRows { pitch: QUARTER, ..rows }.launch(&s.device, COMPUTE));
    refused(ScaleRows { rows: QUARTER, ..rows }.launch(&s.device, COMPUTE));
    refused(ScaleRows { width: QUARTER, pitch: QUARTER, ..rows }.launch(&s.device, COMPUTE));
}

#[test]
fn kept_gemm() {
    let s = Small::new();
    let good = Problem::simple(&s.halves, [5, 8, 64], None, Activation::None, Epilogue::StoreF32(&s.floats));
    let launch = |problem: Problem, format| {
        let weight = KeptWeight { format, bytes: &s.bytes };
        KeptGemm { problems: &[(problem, weight)], workspace: None }.launch(&s.device, COMPUTE)
    };
    for format in Format::ALL.into_iter().filter(|format| format.takes(64)) {
        refused(launch(Problem { n: usize::MAX - 7, ..good.clone() }, format));
        refused(launch(Problem { n: 1 << 59, ..good.clone() }, format));
        refused(launch(Problem { k: QUARTER, ..good.clone() }, format));
    }
}

#[test]
fn conv2d() {
    let s = Small::new();
    let good = Conv2d {
        x: &s.halves,
        x_pitch: 8,
        height: 1,
        width: 5,
        channels: 8,
        out_channels: 8,
        filter: Filter::Plain,
        norm: None,
        weight: &s.halves,
        bias: None,
        out: ConvOut::Bf16(&s.halves),
        out_pitch: 8,
    };
    let launch = |conv: Conv2d| conv.launch(&s.device, COMPUTE);
    refused(launch(Conv2d { x_pitch: QUARTER, ..good }));
    refused(launch(Conv2d { out_pitch: QUARTER, ..good }));
    refused(launch(Conv2d { height: QUARTER, width: 4, ..good }));
    refused(launch(Conv2d { height: QUARTER / 4, width: 4, filter: Filter::Enlarged, ..good }));
    refused(launch(Conv2d { channels: usize::MAX - 6, x_pitch: usize::MAX, ..good }));
    refused(launch(Conv2d { channels: QUARTER, x_pitch: QUARTER, ..good }));
    refused(launch(Conv2d { out_channels: QUARTER, out_pitch: QUARTER, ..good }));
    refused(launch(Conv2d { channels: QUARTER, x_pitch: QUARTER, norm: Some(&s.floats), ..good }));
    assert_eq!(Filter::Enlarged.weight_pitch(usize::MAX), usize::MAX);
    launch(good).unwrap();
}

#[test]
fn attention() {
    let s = Small::new();
    let heads = Heads { view: &s.halves, pitch: 16, head_stride: 8 };
    let good = Attention {
        q: heads,
        k: heads,
        v: heads,
        out: heads,
        bias: None,
        causal: false,
        softmax_scale: 1.0,
        q_len: 5,
        kv_len: 5,
        heads: 2,
        head_dim: 8,
    };
    let launch = |attention: Attention| attention.launch(&s.device, COMPUTE);
    refused(launch(Attention { q: Heads { pitch: QUARTER, ..heads }, ..good }));
    refused(launch(Attention { v: Heads { pitch: QUARTER, ..heads }, ..good }));
    let wide = Heads { head_stride: QUARTER, ..heads };
    refused(launch(Attention { k: wide, heads: 5, ..good }));
    // Every head in the same place.
    let one = Heads { head_stride: 0, ..heads };
    let all = Attention { q: one, k: one, v: one, out: one, ..good };
    refused(launch(Attention { heads: (1 << 32) + 1, ..all }));
    let bias = |len| Some(RelativeBias { view: &s.floats, len });
    refused(launch(Attention { bias: bias(usize::MAX / 2 + 2), ..all }));
    refused(launch(Attention { bias: bias(QUARTER + 1), heads: 4, ..all }));
    launch(good).unwrap();
}

#[test]
fn nf4_quantize() {
    let s = Small::new();
    let good = Nf4Quantize {
        src: Nf4Source::F32(&s.floats),
        pitch: 64,
        rows: 1,
        k: 64,
        first_row: 0,
        n: 1,
        layout: Nf4Layout::Rows,
        codes: &s.bytes,
        absmax: &s.floats,
        nonfinite: &s.floats.cast().unwrap(),
    };
    let launch = |quantize: Nf4Quantize| quantize.launch(&s.device, COMPUTE);
    refused(launch(Nf4Quantize { n: 1 << 59, first_row: 1 << 58, ..good }));
    refused(launch(Nf4Quantize { n: usize::MAX, layout: Nf4Layout::Fragments, ..good }));
    refused(launch(Nf4Quantize { rows: 5, n: 5, pitch: QUARTER, ..good }));
    let stored = Nf4Source::Nf4(&s.bytes, &s.floats);
    refused(launch(Nf4Quantize { src: stored, rows: 5, n: 5, pitch: QUARTER, ..good }));
    refused(launch(Nf4Quantize { src: stored, pitch: 65, ..good }));
    launch(Nf4Quantize { src: stored, ..good }).unwrap();
    launch(good).unwrap();
}

#[test]
fn gemv() {
    let s = Small::new();
    let good = Gemv {
        x: &s.floats,
        pitch: 64,
        m: 1,
        n: 4,
        k: 64,
        weight: GemvWeight::Bf16 { weight: &s.halves, pitch: 64 },
        low_rank: None,
        bias: None,
        act_in: GemvActivation::None,
        act_out: GemvActivation::None,
        add: None,
        out: &s.floats,
        out_pitch: 4,
    };
    let launch = |gemv: Gemv| gemv.launch(&s.device, COMPUTE);
    refused(launch(Gemv { pitch: QUARTER, m: 5, ..good }));
    refused(launch(Gemv { weight: GemvWeight::Bf16 { weight: &s.halves, pitch: QUARTER }, n: 5, ..good }));
    let nf4 = GemvWeight::Nf4 { codes: &s.bytes, absmax: &s.floats };
    refused(launch(Gemv { weight: nf4, n: 1 << 59, out_pitch: 1 << 59, ..good }));
    let kept = GemvWeight::Kept { format: Format::Q8_0, bytes: &s.bytes };
    refused(launch(Gemv { weight: kept, n: 1 << 59, out_pitch: 1 << 59, ..good }));
}

#[test]
fn maps_and_tokens() {
    let s = Small::new();
    let (pixels, norm) = (1 << 61, &s.floats);
    let scales = GroupNorm {
        x: &s.halves,
        pitch: 8,
        pixels,
        channels: 8,
        groups: 8,
        weight: &s.floats,
        bias: &s.floats,
        eps: 1e-6,
        workspace: &s.floats,
        norm,
    };
    refused(scales.launch(&s.device, COMPUTE));
    let (x, out) = (&s.halves, &s.halves);
    let apply = GroupNormSilu { x, pitch: 8, pixels, channels: 8, norm, silu: false, out, out_pitch: 8 };
    refused(apply.launch(&s.device, COMPUTE));
    assert_eq!(GroupNorm::workspace_len(usize::MAX, 1 << 20), usize::MAX);
    let (x, weight) = (&s.halves, &s.floats);
    let (cos, sin, eps) = (&s.floats, &s.floats, 1e-6);
    let rope =
        HeadNormRope { x, pitch: 8, rows: 1, heads: 1, head_dim: 8, weight, eps, cos, sin, rope_row: 0 };
    refused(HeadNormRope { pitch: QUARTER, rows: 5, ..rope }.launch(&s.device, COMPUTE));
    refused(HeadNormRope { heads: 1 << 61, pitch: usize::MAX - 1, ..rope }.launch(&s.device, COMPUTE));
    refused(HeadNormRope { rope_row: QUARTER, ..rope }.launch(&s.device, COMPUTE));
    refused(
        ToRgb { x: &s.floats, pitch: 3, pixels: usize::MAX / 3 + 1, out: RgbOut::U8(&s.bytes) }
            .launch(&s.device, COMPUTE),
    );
    let (tokens, out) = (&s.floats, &s.halves);
    let (scaling, shift) = (1.0, 0.0);
    let unpack = UnpackLatents { tokens, height: 2, width: 2, channels: 4, scaling, shift, out, pitch: 4 };
    refused(UnpackLatents { height: QUARTER, width: 4, ..unpack }.launch(&s.device, COMPUTE));
    refused(UnpackLatents { height: QUARTER, ..unpack }.launch(&s.device, COMPUTE));
}
