//! Every kernel of a pipeline at shapes like those of FLUX, aligned and in whole tiles: what `tests/accesses.rs` counts.

use half::bf16;
use schnell::device::View;
use schnell::kernels::FloatOut;
use schnell::kernels::attention::{Attention, Heads, RelativeBias};
use schnell::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use schnell::kernels::conv2d::{Conv2d, ConvOut, Filter};
use schnell::kernels::count_nonfinite::CountNonfinite;
use schnell::kernels::euler_step::EulerStep;
use schnell::kernels::gemm::{Activation, Epilogue, Gemm, Problem, Weight};
use schnell::kernels::gemv::{Gemv, GemvActivation, GemvWeight};
use schnell::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};
use schnell::kernels::head_norm_rope::HeadNormRope;
use schnell::kernels::kept::{Format, KeptLayout};
use schnell::kernels::kept_gemm::{KeptGemm, KeptWeight};
use schnell::kernels::layer_norm_mod::LayerNormMod;
use schnell::kernels::next_step::NextStep;
use schnell::kernels::nf4_gemm::Nf4Weight;
use schnell::kernels::nf4_half_gemm::Nf4HalfWeight;
use schnell::kernels::nf4_quantize::{Nf4Layout, Nf4Quantize, Nf4Source};
use schnell::kernels::rms_norm::RmsNorm;
use schnell::kernels::scale_rows::ScaleRows;
use schnell::kernels::select_row::SelectRow;
use schnell::kernels::to_rgb::{RgbOut, ToRgb};
use schnell::kernels::unpack_latents::UnpackLatents;

use crate::common::{Bench, COMPUTE, Rng};

/// NaN patterns are as good as any numbers: no kernel's addresses depend on data, but for the codes of NF4.
fn codes(bench: &Bench, len: usize) -> View<u8> {
    let mut rng = Rng(1);
    bench.upload(&(0..len).map(|_| rng.bits() as u8).collect::<Vec<u8>>())
}

fn nf4_gemms(bench: &Bench) {
    let shape @ [m, n, k] = [128, 256, 256];
    let layout = Nf4Layout::Fragments;
    let (codes, absmax) = (codes(bench, layout.codes_len(n, k)), bench.alloc(layout.absmax_len(n, k)));
    let (x, scale) = (bench.alloc(m * k), bench.alloc(m));
    let weight = Nf4Weight { codes: &codes, absmax: &absmax };
    nf4_gemm(bench, shape, &x, weight);
    nf4_gemm(bench, shape, &x, Nf4HalfWeight { weight, x_scale: &scale });
    for width in [3072, 15360] {
        let (x, scale) = (bench.alloc(2 * width), bench.alloc(2));
        ScaleRows { x: &x, pitch: width, rows: 2, width, scale: &scale }
            .launch(&bench.device, COMPUTE)
            .unwrap();
    }
}

/// What Hopper has kernels of its own for.
pub fn launch_all_of_hopper(bench: &Bench) {
    let shape @ [m, n, k] = [256, 256, 256];
    let layout = Nf4Layout::Fragments;
    let (codes, absmax) = (codes(bench, layout.codes_len(n, k)), bench.alloc(layout.absmax_len(n, k)));
    nf4_gemm(bench, shape, &bench.alloc(m * k), Nf4Weight { codes: &codes, absmax: &absmax });
}

fn nf4_gemm<W: Weight>(bench: &Bench, [m, n, k]: [usize; 3], x: &View<bf16>, weight: W) {
    let (bias, gate) = (bench.alloc(n), bench.alloc(n));
    let (out, residual) = (bench.alloc::<bf16>(m * n), bench.alloc::<f32>(m * n));
    for (activation, epilogue) in [
        (Activation::GeluTanh, Epilogue::Store(&out)),
        (Activation::None, Epilogue::Add(&residual, Some(&gate))),
        (Activation::None, Epilogue::MulBf16(&out, &out)),
    ] {
        let problem = Problem::simple(x, [m, n, k], Some(&bias), activation, epilogue);
        Gemm { problems: &[(problem, weight)], workspace: None }.launch(&bench.device, COMPUTE).unwrap();
    }
    gemm_heads(bench, [m, n, k], x, &bias, weight);
}

fn gemm_heads<W: Weight>(bench: &Bench, shape: [usize; 3], x: &View<bf16>, bias: &View<f32>, weight: W) {
    let [m, n, _] = shape;
    let out = bench.alloc::<bf16>(m * n);
    let (norm, cos, sin) = (bench.alloc(128), bench.alloc(m * 64), bench.alloc(m * 64));
    let mut problem = Problem::simple(
        x,
        shape,
        Some(bias),
        Activation::None,
        Epilogue::NormRope { out: &out, weight: &norm },
    );
    problem.rope = Some((&cos, &sin));
    Gemm { problems: &[(problem, weight)], workspace: None }.launch(&bench.device, COMPUTE).unwrap();
}

fn bf16_gemm(bench: &Bench) {
    let [m, n, k] = [128, 128, 256];
    let (x, bias, values) = (bench.alloc(m * k), bench.alloc(n), bench.alloc(n * k));
    let (out, product) = (bench.alloc::<f32>(m * n), bench.alloc::<bf16>(m * n));
    let other = bench.alloc::<bf16>(m * n);
    let weight = Bf16Weight { values: &values, pitch: k };
    for epilogue in [
        Epilogue::StoreF32(&out),
        Epilogue::Store(&product),
        Epilogue::AddBf16(&product, &other),
        Epilogue::MulBf16(&product, &other),
    ] {
        let problem = Problem::simple(&x, [m, n, k], Some(&bias), Activation::None, epilogue);
        Bf16Gemm { problems: &[(problem, weight)], workspace: None }.launch(&bench.device, COMPUTE).unwrap();
    }
    gemm_heads(bench, [m, n, k], &x, &bias, weight);
}

fn conv2d(bench: &Bench) {
    let (height, width, channels) = (8, 32, 64);
    let (x, norm) = (bench.alloc(height * width * channels), bench.alloc(2 * channels));
    let launch = |filter: Filter, norm, out: ConvOut, out_channels| {
        let weight = bench.alloc(out_channels * filter.weight_pitch(channels));
        Conv2d {
            x: &x,
            x_pitch: channels,
            height,
            width,
            channels,
            out_channels,
            filter,
            norm,
            weight: &weight,
            bias: Some(&bench.alloc(out_channels)),
            out,
            out_pitch: out_channels,
        }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    };
    let out = bench.alloc::<bf16>(4 * height * width * 128);
    launch(Filter::Plain, None, ConvOut::Bf16(&out), 128);
    launch(Filter::Plain, Some(&norm), ConvOut::AddBf16(&out, &out), 128);
    launch(Filter::Enlarged, None, ConvOut::Bf16(&out), 128);
    launch(Filter::Plain, Some(&norm), ConvOut::F32(&bench.alloc(height * width * 3)), 3);
}

/// As CLIP (causal), T5 (biased), FLUX and the VAE use it, and the other entries.
fn attention(bench: &Bench) {
    for (head_dim, heads, causal, biased) in [
        (64, 2, true, false),
        (64, 2, false, true),
        (128, 2, false, false),
        (128, 2, false, true),
        (256, 1, false, false),
        (256, 1, false, true),
        (512, 1, false, false),
        (512, 1, false, true),
    ] {
        let len = 128;
        let pitch = heads * head_dim;
        let [q, k, v, out] = [(); 4].map(|()| bench.alloc(len * pitch));
        let bias = bench.alloc(heads * (2 * len - 1));
        fn place(view: &View<bf16>, pitch: usize, head_stride: usize) -> Heads<'_> {
            Heads { view, pitch, head_stride }
        }
        Attention {
            q: place(&q, pitch, head_dim),
            k: place(&k, pitch, head_dim),
            v: place(&v, pitch, head_dim),
            out: place(&out, pitch, head_dim),
            bias: biased.then_some(RelativeBias { view: &bias, len }),
            causal,
            softmax_scale: 0.1,
            q_len: len,
            kv_len: len,
            heads,
            head_dim,
        }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    }
}

fn kept_gemm(bench: &Bench) {
    let [m, n, k] = [128, 256, 512];
    let (x, bias, gate) = (bench.alloc(m * k), bench.alloc(n), bench.alloc(n));
    let (out, residual) = (bench.alloc::<bf16>(m * n), bench.alloc::<f32>(m * n));
    for format in Format::ALL {
        let bytes = codes(bench, format.kept_len(KeptLayout::Panels, n, k));
        let weight = KeptWeight { format, bytes: &bytes };
        for (activation, epilogue) in [
            (Activation::GeluTanh, Epilogue::Store(&out)),
            (Activation::None, Epilogue::Add(&residual, Some(&gate))),
            (Activation::None, Epilogue::MulBf16(&out, &out)),
        ] {
            let problem = Problem::simple(&x, [m, n, k], Some(&bias), activation, epilogue);
            KeptGemm { problems: &[(problem, weight)], workspace: None }
                .launch(&bench.device, COMPUTE)
                .unwrap();
        }
        gemm_heads(bench, [m, n, k], &x, &bias, weight);
    }
}

/// Every number of rows that has an entry point.
fn gemv(bench: &Bench) {
    let (n, k) = (64, 2048);
    let bias = bench.alloc(n);
    let weight = bench.alloc(n * k);
    let kept = Format::ALL.map(|format| (format, codes(bench, format.kept_len(KeptLayout::Rows, n, k))));
    let (codes, absmax) = (codes(bench, n * k / 2), bench.alloc(n * k / 64));
    let wide =
        [GemvWeight::Bf16 { weight: &weight, pitch: k }, GemvWeight::Nf4 { codes: &codes, absmax: &absmax }];
    let kept = kept.iter().map(|(format, bytes)| GemvWeight::Kept { format: *format, bytes });
    let weights: Vec<GemvWeight<'_>> = wide.into_iter().chain(kept).collect();
    for m in [1, 2, 4, 8] {
        let (x, out) = (bench.alloc(m * k), bench.alloc(m * n));
        for &weight in &weights {
            Gemv {
                x: &x,
                pitch: k,
                m,
                n,
                k,
                weight,
                low_rank: None,
                bias: Some(&bias),
                act_in: GemvActivation::Silu,
                act_out: GemvActivation::None,
                add: None,
                out: &out,
                out_pitch: n,
            }
            .launch(&bench.device, COMPUTE)
            .unwrap();
        }
    }
}

fn norms(bench: &Bench) {
    let rows = 8;
    for width in [768, 3072, 4096] {
        let x = bench.alloc(rows * width);
        let (scale, shift) = (bench.alloc(width), bench.alloc(width));
        let (floats, rounded) = (bench.alloc(rows * width), bench.alloc(rows * width));
        for out in [FloatOut::F32(&floats), FloatOut::Bf16(&rounded)] {
            let norm = LayerNormMod {
                x: &x,
                pitch: width,
                rows,
                width,
                scale: &scale,
                shift: &shift,
                rest: None,
                scale_offset: 1.0,
                eps: 1e-6,
                out,
                out_pitch: width,
            };
            // Only T5 is wider than 3072, and has no such norm.
            if width <= 3072 {
                norm.launch(&bench.device, COMPUTE).unwrap();
            }
            RmsNorm { x: &x, pitch: width, rows, width, weight: &scale, eps: 1e-6, out, out_pitch: width }
                .launch(&bench.device, COMPUTE)
                .unwrap();
        }
    }
}

/// The widths of the VAE.
fn group_norm_silu(bench: &Bench) {
    for channels in [128, 256, 512] {
        let (pixels, groups) = (192, 32);
        let [x, out] = [(); 2].map(|()| bench.alloc(pixels * channels));
        let (weight, bias, norm) = (bench.alloc(channels), bench.alloc(channels), bench.alloc(2 * channels));
        GroupNorm {
            x: &x,
            pitch: channels,
            pixels,
            channels,
            groups,
            weight: &weight,
            bias: &bias,
            eps: 1e-6,
            workspace: &bench.alloc(GroupNorm::workspace_len(pixels, groups)),
            norm: &norm,
        }
        .launch(&bench.device, COMPUTE)
        .unwrap();
        let silu = false;
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
        .launch(&bench.device, COMPUTE)
        .unwrap();
    }
}

fn head_norm_rope(bench: &Bench) {
    let (rows, heads, head_dim) = (8, 4, 128);
    let pitch = heads * head_dim;
    let (cos, sin) = (bench.alloc(rows * head_dim / 2), bench.alloc(rows * head_dim / 2));
    let weight = bench.alloc(head_dim);
    let x = bench.alloc(rows * pitch);
    let (cos, sin, weight) = (&cos, &sin, &weight);
    HeadNormRope { x: &x, pitch, rows, heads, head_dim, weight, eps: 1e-6, cos, sin, rope_row: 0 }
        .launch(&bench.device, COMPUTE)
        .unwrap();
}

/// What runs once per picture or model.
fn once(bench: &Bench) {
    let n = 1024;
    let [latents, velocity] = [(); 2].map(|()| bench.alloc(n));
    let latents_bf16 = bench.alloc(n);
    EulerStep {
        latents: &latents,
        velocity: &velocity,
        negative: None,
        latents_bf16: &latents_bf16,
        dt: &bench.upload(&[-0.25f32]),
        step: &bench.upload(&[0i32]),
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    let counter = bench.upload(&[0u32]);
    CountNonfinite::all(&latents, &counter).launch(&bench.device, COMPUTE).unwrap();
    let index = bench.upload(&[1i32]);
    let (table, row) = (bench.alloc(2 * n), bench.alloc(n));
    SelectRow { table: &table, pitch: n, rows: 2, width: n, index: &index, out: &row }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    NextStep { step: &index }.launch(&bench.device, COMPUTE).unwrap();
    let (height, width, channels) = (8, 16, 16);
    let tokens = bench.alloc(height * width * channels);
    let map = bench.alloc(height * width * 16);
    UnpackLatents {
        tokens: &tokens,
        height,
        width,
        channels,
        scaling: 0.3611,
        shift: 0.1159,
        out: &map,
        pitch: 16,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    let (pixels, pitch) = (512, 8);
    let (bytes, floats) = (&bench.alloc(pixels * 3), &bench.alloc(pixels * 3));
    for out in [RgbOut::U8(bytes), RgbOut::U8Planar(bytes), RgbOut::F32(floats), RgbOut::F32Planar(floats)] {
        ToRgb { x: &bench.alloc(pixels * pitch), pitch, pixels, out }.launch(&bench.device, COMPUTE).unwrap();
    }
    let (n, k) = (64, 256);
    let (f32s, bf16s) = (bench.alloc(n * k), bench.alloc(n * k));
    for (src, layout) in
        [(Nf4Source::F32(&f32s), Nf4Layout::Rows), (Nf4Source::Bf16(&bf16s), Nf4Layout::Fragments)]
    {
        let codes = bench.alloc(layout.codes_len(n, k));
        let (absmax, nonfinite) = (bench.alloc(layout.absmax_len(n, k)), bench.alloc(1));
        Nf4Quantize {
            src,
            pitch: k,
            rows: n,
            k,
            first_row: 0,
            n,
            layout,
            codes: &codes,
            absmax: &absmax,
            nonfinite: &nonfinite,
        }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    }
}

pub fn launch_all(bench: &Bench) {
    for launch in [
        nf4_gemms,
        kept_gemm,
        bf16_gemm,
        conv2d,
        attention,
        gemv,
        norms,
        group_norm_silu,
        head_norm_rope,
        once,
    ] {
        launch(bench);
    }
}
