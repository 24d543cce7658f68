//! Which entry point a problem gets: by its shape and epilogues, and by nothing that differs from one budget to the next.

mod common;

use common::Bench;
use half::bf16;
use schnell::device::{Capability, Config, Device, EmulatorOptions, StreamId, View};
use schnell::kernels::FloatOut;
use schnell::kernels::attention::{Attention, Heads, RelativeBias};
use schnell::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use schnell::kernels::conv2d::{Conv2d, ConvOut, Filter};
use schnell::kernels::gemm::{Activation, Epilogue, Problem, Segment};
use schnell::kernels::gemv::{Gemv, GemvActivation, GemvWeight};
use schnell::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};
use schnell::kernels::kept::Format;
use schnell::kernels::kept_gemm::{KeptGemm, KeptWeight};
use schnell::kernels::layer_norm_mod::LayerNormMod;
use schnell::kernels::nf4_gemm::{Nf4Gemm, Nf4Weight};
use schnell::kernels::nf4_half_gemm::{Nf4HalfGemm, Nf4HalfWeight};
use schnell::kernels::rms_norm::RmsNorm;
use schnell::kernels::scale_rows::ScaleRows;

/// The entry's name, after asking for machines that differ in all that must not matter.
fn chosen(device: &Device, select: impl Fn(&Capability) -> Config) -> &'static str {
    let own = device.capability().clone();
    let config = select(&own);
    let mut others = vec![own.clone(); 4];
    others[0].total_bytes = 1 << 30;
    others[1].name = "another".to_string();
    others[2].is_emulator = false;
    others[3].threads = 99;
    for other in &others {
        assert!(select(other) == config, "{config} here, {} on {other:?}", select(other));
    }
    config.kernel.name()
}

fn bench() -> Bench {
    Bench::new(Device::emulator(EmulatorOptions::default()))
}

#[test]
fn products_by_their_epilogues() {
    let bench = bench();
    let (m, n, k) = (40, 256, 64);
    let x = bench.alloc::<bf16>(m * k);
    let (codes, absmax) = (bench.alloc::<u8>(n * k / 2), bench.alloc::<f32>(n * k / 64));
    let values = bench.alloc::<bf16>(n * k);
    let (out, out_f32, norm) =
        (bench.alloc::<bf16>(m * n), bench.alloc::<f32>(m * n), bench.alloc::<f32>(128));
    let table = bench.alloc::<f32>(m * 64);
    let all = |problem: &Problem<'_>| -> Result<[&'static str; 3], schnell::Error> {
        let weight = Nf4Weight { codes: &codes, absmax: &absmax };
        let nf4 = [(problem.clone(), weight)];
        let half = [(problem.clone(), Nf4HalfWeight { weight, x_scale: &table })];
        let dense = [(problem.clone(), Bf16Weight { values: &values, pitch: k })];
        Nf4Gemm { problems: &nf4, workspace: None }.select(bench.device.capability())?;
        Ok([
            chosen(&bench.device, |c| Nf4Gemm { problems: &nf4, workspace: None }.select(c).unwrap()),
            chosen(&bench.device, |c| Nf4HalfGemm { problems: &half, workspace: None }.select(c).unwrap()),
            chosen(&bench.device, |c| Bf16Gemm { problems: &dense, workspace: None }.select(c).unwrap()),
        ])
    };
    let simple = |activation, epilogue| Problem::simple(&x, [m, n, k], None, activation, epilogue);
    let (none, gelu) = (Activation::None, Activation::GeluTanh);
    for (activation, epilogue, entry) in [
        (none, Epilogue::Store(&out), "store"),
        (gelu, Epilogue::Store(&out), "store"),
        (Activation::GeluErf, Epilogue::Store(&out), "store"),
        (none, Epilogue::StoreF32(&out_f32), "residual"),
        (none, Epilogue::Add(&out_f32, None), "residual"),
        (none, Epilogue::AddBf16(&out, &out), "combine"),
        (none, Epilogue::MulBf16(&out, &out), "combine"),
    ] {
        let names = all(&simple(activation, epilogue)).unwrap();
        assert_eq!(names, ["nf4", "nf4_half", "bf16"].map(|of| format!("{of}_gemm_{entry}_sm80")));
    }
    let segment = |begin, end, activation, epilogue| Segment { begin, end, pitch: 128, activation, epilogue };
    let head = segment(0, 128, none, Epilogue::NormRope { out: &out, weight: &norm });
    let with_rest = |activation, epilogue| Problem {
        rope: Some((&table, &table)),
        segments: vec![head, segment(128, 256, activation, epilogue)],
        ..simple(none, Epilogue::Store(&out))
    };
    for format in Format::ALL {
        let problem = simple(none, Epilogue::StoreF32(&out_f32));
        let kept = [(problem, KeptWeight { format, bytes: &codes })];
        let name =
            chosen(&bench.device, |c| KeptGemm { problems: &kept, workspace: None }.select(c).unwrap());
        assert_eq!(name, format!("{}_gemm_residual_sm80", format.to_string().to_lowercase()));
    }
    let names = all(&with_rest(gelu, Epilogue::Store(&out))).unwrap();
    assert_eq!(names, ["nf4_gemm_heads_sm80", "nf4_half_gemm_heads_sm80", "bf16_gemm_heads_sm80"]);
    // No model needs these, and no entry point has code for them.
    for problem in [
        simple(gelu, Epilogue::StoreF32(&out_f32)),
        with_rest(Activation::QuickGelu, Epilogue::Store(&out)),
        with_rest(none, Epilogue::Add(&out_f32, None)),
    ] {
        let refusal = all(&problem).unwrap_err();
        assert!(matches!(refusal, schnell::Error::Unsupported(_)), "{refusal}");
        let launched =
            Nf4Gemm { problems: &[(problem, Nf4Weight { codes: &codes, absmax: &absmax })], workspace: None }
                .launch(&bench.device, StreamId::Compute);
        assert!(launched.unwrap_err().to_string().contains("no entry point has the epilogues"));
    }
}

#[test]
fn rows_to_scale_by_their_width() {
    let bench = bench();
    let (x, scale) = (&bench.alloc::<bf16>(1 << 15), &bench.alloc::<f32>(1));
    for (width, entry) in [(8, "wide"), (16384, "wide"), (16392, "any")] {
        let rows = ScaleRows { x, pitch: width, rows: 1, width, scale };
        assert_eq!(chosen(&bench.device, |c| rows.select(c)), format!("scale_rows_{entry}"), "{width}");
    }
}

#[test]
fn attention_by_the_width_of_its_heads() {
    let bench = bench();
    let (view, table) = (bench.alloc::<bf16>(512), bench.alloc::<f32>(1));
    for (head_dim, padded) in
        [(8, 64), (64, 64), (72, 128), (128, 128), (136, 256), (256, 256), (264, 512), (512, 512)]
    {
        let place = Heads { view: &view, pitch: head_dim, head_stride: head_dim };
        let name = |bias| {
            let attention = Attention {
                q: place,
                k: place,
                v: place,
                out: place,
                bias,
                causal: false,
                softmax_scale: 1.0,
                q_len: 1,
                kv_len: 1,
                heads: 1,
                head_dim,
            };
            chosen(&bench.device, |c| attention.select(c).unwrap())
        };
        assert_eq!(name(None), format!("attention_d{padded}_bf16_sm80"));
        let bias = RelativeBias { view: &table, len: 1 };
        assert_eq!(name(Some(bias)), format!("attention_d{padded}_bias_bf16_sm80"));
    }
}

#[test]
fn few_rows_by_their_number_and_weight() {
    let bench = bench();
    let (n, k) = (32, 64);
    let (x, out) = (bench.alloc::<f32>(8 * k), bench.alloc::<f32>(8 * n));
    let (values, codes) = (bench.alloc::<bf16>(n * k), bench.alloc::<u8>(n * k / 2));
    let absmax = bench.alloc::<f32>(n);
    for (m, padded) in [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)] {
        let name = |weight| {
            let gemv = Gemv {
                x: &x,
                pitch: k,
                m,
                n,
                k,
                weight,
                low_rank: None,
                bias: None,
                act_in: GemvActivation::None,
                act_out: GemvActivation::None,
                add: None,
                out: &out,
                out_pitch: n,
            };
            chosen(&bench.device, |c| gemv.select(c))
        };
        assert_eq!(name(GemvWeight::Bf16 { weight: &values, pitch: k }), format!("gemv_bf16_m{padded}"));
        assert_eq!(name(GemvWeight::Nf4 { codes: &codes, absmax: &absmax }), format!("gemv_nf4_m{padded}"));
        let of_kept = if padded == 2 { 4 } else { padded };
        for format in Format::ALL {
            let expected = format!("gemv_{}_m{of_kept}", format.to_string().to_lowercase());
            assert_eq!(name(GemvWeight::Kept { format, bytes: &codes }), expected);
        }
    }
}

#[test]
fn norms_by_width_and_alignment() {
    let bench = bench();
    let rows = 2;
    let x = bench.alloc::<f32>(rows * 5000);
    let out = bench.alloc::<bf16>(rows * 5000);
    for (width, first, layer_entry, rms_entry) in [
        (256, 0, "small", "small"),
        (256, 1, "any", "any"), // Rows that begin off 16 bytes.
        (3072, 0, "wide", "wide"),
        (4096, 0, "any", "wide"),
        (4100, 0, "any", "any"),
        (102, 0, "any", "any"),
    ] {
        let x = x.slice(first, x.len() - first).unwrap();
        let (x, out): (&View<f32>, _) = (&x, FloatOut::Bf16(&out));
        let (pitch, out_pitch, eps) = (width, width, 1e-6);
        let layer = LayerNormMod {
            x,
            pitch,
            rows,
            width,
            scale: x,
            shift: x,
            rest: None,
            scale_offset: 1.0,
            eps,
            out,
            out_pitch,
        };
        assert_eq!(
            chosen(&bench.device, |c| layer.select(c)),
            format!("layer_norm_mod_{layer_entry}"),
            "{width}"
        );
        let rms = RmsNorm { x, pitch, rows, width, weight: x, eps, out, out_pitch };
        assert_eq!(chosen(&bench.device, |c| rms.select(c)), format!("rms_norm_{rms_entry}"), "{width}");
    }
}

#[test]
fn group_norm_by_channels_and_alignment() {
    let bench = bench();
    let (x, weight) = (bench.alloc::<bf16>(4096), bench.alloc::<f32>(256));
    for (channels, out_pitch, entries) in
        [(64, 64, ["x8", "x8"]), (64, 65, ["x8", "x1"]), (12, 12, ["x1", "x1"])]
    {
        let norm = GroupNorm {
            x: &x,
            pitch: channels,
            pixels: 4,
            channels,
            groups: 4,
            weight: &weight,
            bias: &weight,
            eps: 1e-6,
            workspace: &weight,
            norm: &weight,
        };
        let (pixels, silu, scales) = (4, true, &weight);
        let apply = GroupNormSilu {
            x: &x,
            pitch: channels,
            pixels,
            channels,
            norm: scales,
            silu,
            out: &x,
            out_pitch,
        };
        let name = |i: usize| chosen(&bench.device, |c| norm.select(c)[i]);
        assert_eq!(
            [name(0), name(1), chosen(&bench.device, |c| apply.select(c))],
            [
                format!("group_norm_partials_{}", entries[0]),
                "group_norm_finish".to_string(),
                format!("group_norm_apply_{}", entries[1])
            ]
        );
    }
}

#[test]
fn convolutions_by_filter_and_results() {
    let bench = bench();
    let (x, floats) = (bench.alloc::<bf16>(4096), bench.alloc::<f32>(4096));
    let weight = bench.alloc::<bf16>(200 * 9 * 32);
    let conv = Conv2d {
        x: &x,
        x_pitch: 8,
        height: 9,
        width: 33,
        channels: 8,
        out_channels: 200,
        filter: Filter::Plain,
        norm: None,
        weight: &weight,
        bias: None,
        out: ConvOut::Bf16(&x),
        out_pitch: 200,
    };
    let grid = |conv: &Conv2d| conv.select(bench.device.capability()).unwrap().grid;
    for (conv, entry, ctas) in [
        (Conv2d { ..conv }, "conv2d_bf16_sm80", [2, 3, 2]),
        (Conv2d { norm: Some(&floats), ..conv }, "conv2d_bf16_sm80", [2, 3, 2]),
        (Conv2d { filter: Filter::Enlarged, ..conv }, "conv2d_enlarge_bf16_sm80", [2, 3, 8]),
        (Conv2d { out: ConvOut::F32(&floats), out_channels: 3, ..conv }, "conv2d_narrow_f32_sm80", [1, 3, 2]),
    ] {
        assert_eq!((chosen(&bench.device, |c| conv.select(c).unwrap()), grid(&conv)), (entry, ctas));
    }
    let enlarged = Conv2d { filter: Filter::Enlarged, norm: Some(&floats), ..conv };
    assert!(enlarged.select(bench.device.capability()).is_err());
    assert!(Conv2d { height: 1 << 20, ..conv }.select(bench.device.capability()).is_err());
}
