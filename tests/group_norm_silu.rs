//! `group_norm_silu` against candle's GroupNorm and a plain loop.

mod common;
use candle_core::{Device as Candle, Module, Tensor};
use common::*;
use half::bf16;
use schnell::device::Device;
use schnell::kernels::group_norm_silu::{GroupNorm, GroupNormSilu};

struct Case {
    pixels: usize,
    channels: usize,
    groups: usize,
    pitch: usize,
    out_pitch: usize,
    silu: bool,
    in_place: bool,
    /// Floats between a 16-byte boundary and `weight`, and `bias`.
    parameters_at: usize,
    mean: f32,
    spread: f32,
}

impl Case {
    fn new(pixels: usize, channels: usize, groups: usize) -> Case {
        Case {
            pixels,
            channels,
            groups,
            pitch: channels,
            out_pitch: channels,
            silu: true,
            in_place: false,
            parameters_at: 0,
            mean: 0.5,
            spread: 1.0,
        }
    }
}

const EPS: f32 = 1e-6;

struct Inputs {
    x: Vec<bf16>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

fn inputs(case: &Case) -> Inputs {
    let mut rng = Rng((case.pixels * 1000 + case.channels) as u64);
    // Every channel has a mean and a spread of its own, and the pixels drift.
    let mut x = Vec::new();
    for pixel in 0..case.pixels {
        for channel in 0..case.pitch {
            let spread = case.spread * (1.0 + (channel % 5) as f32);
            let drift = pixel as f32 / case.pixels as f32;
            x.push(bf16::from_f32(rng.uniform() * spread + case.mean * (1.0 + (channel % 3) as f32) + drift));
        }
    }
    if !case.in_place {
        end_rows(&mut x, case.pitch, case.channels, bf16::from_bits(u16::MAX));
    }
    Inputs { x, weight: rng.f32s(case.channels, 1.5), bias: rng.f32s(case.channels, 0.5) }
}

/// In f64, or with every operation rounded by `round`.
fn reference(case: &Case, inputs: &Inputs, round: impl Fn(f64) -> f64) -> Vec<f32> {
    let per_group = case.channels / case.groups;
    let at = |pixel: usize, channel: usize| inputs.x[pixel * case.pitch + channel].to_f64();
    let mut out = vec![0.0; case.pixels * case.channels];
    for group in 0..case.groups {
        let channels = group * per_group..(group + 1) * per_group;
        let values = || (0..case.pixels).flat_map(|p| channels.clone().map(move |c| (p, c)));
        let count = (case.pixels * per_group) as f64;
        let mean = values().map(|(p, c)| at(p, c)).sum::<f64>() / count;
        let var = values().map(|(p, c)| (at(p, c) - mean).powi(2)).sum::<f64>() / count;
        let rstd = 1.0 / (var + f64::from(EPS)).sqrt();
        for (p, c) in values() {
            let normed = round(round((at(p, c) - mean) * rstd) * f64::from(inputs.weight[c]));
            let y = round(normed + f64::from(inputs.bias[c]));
            out[p * case.channels + c] = (if case.silu { round(y / (1.0 + (-y).exp())) } else { y }) as f32;
        }
    }
    out
}

fn run(device: Device, case: &Case, inputs: &Inputs) -> Vec<bf16> {
    let bench = Bench::with_bytes(device, 16 << 20);
    let x = bench.upload(&inputs.x);
    let parameter = |values: &[f32]| {
        let behind = [vec![f32::NAN; case.parameters_at], values.to_vec()].concat();
        bench.upload(&behind).slice(case.parameters_at, values.len()).unwrap()
    };
    let (weight, bias) = (parameter(&inputs.weight), parameter(&inputs.bias));
    let workspace = bench.alloc::<f32>(GroupNorm::workspace_len(case.pixels, case.groups));
    let norm = parameter(&vec![0.0; 2 * case.channels]);
    let out_len = pitched_len(case.pixels, case.out_pitch, case.channels);
    let out = if case.in_place { x.clone() } else { bench.alloc::<bf16>(out_len) };
    GroupNorm {
        x: &x,
        pitch: case.pitch,
        pixels: case.pixels,
        channels: case.channels,
        groups: case.groups,
        weight: &weight,
        bias: &bias,
        eps: EPS,
        workspace: &workspace,
        norm: &norm,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    GroupNormSilu {
        x: &x,
        pitch: case.pitch,
        pixels: case.pixels,
        channels: case.channels,
        norm: &norm,
        silu: case.silu,
        out: &out,
        out_pitch: case.out_pitch,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    without_gaps(&bench.download(&out), case.out_pitch, case.channels)
}

fn check(case: &Case) {
    let what = format!("{} pixels, {} channels in {} groups", case.pixels, case.channels, case.groups);
    let inputs = inputs(case);
    let got = run(emulator(), case, &inputs);
    let want = reference(case, &inputs, |v| v);
    let plain = reference(case, &inputs, |v| f64::from(round_bf16(v as f32)));
    assert_close(&what, &to_f32(&got), &want, &plain);
    // One rounding of the f32 result (and the f32 statistics' share); x * scale + shift, whose scale is below 3 here, is known
    // to some ulp of what it is the difference of.
    let slack = 1e-5 + 3.0 * case.mean.abs() * 3.0 / (1 << 22) as f32;
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!(
            (g.to_f32() - w).abs() <= w.abs() / 250.0 + slack,
            "{what}: element {i} is {g}, expected {w}"
        );
    }
}

#[test]
fn every_width_and_grouping() {
    let shapes = [
        (8, 8),
        (8, 1),
        (16, 4),
        (32, 32),
        (64, 32),
        (96, 32),
        (128, 32),
        (256, 32),
        (512, 32),
        (520, 5),
        (1024, 32),
    ];
    for (channels, groups) in shapes {
        check(&Case::new(70, channels, groups));
    }
}

#[test]
fn widths_that_are_no_multiple_of_eight() {
    for (channels, groups) in [(1, 1), (7, 7), (9, 3), (12, 4), (255, 5), (257, 1), (300, 100), (2044, 4)] {
        check(&Case::new(67, channels, groups));
    }
    check(&Case::new(3, 2048, 32));
}

#[test]
fn every_number_of_pixels() {
    for pixels in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 4096] {
        check(&Case::new(pixels, 32, 8));
    }
    // More chunks than the finishing CTA has threads.
    check(&Case::new(64 * 300 + 5, 8, 4));
}

#[test]
fn pitches_in_place_and_without_silu() {
    check(&Case { pitch: 40, out_pitch: 48, ..Case::new(70, 32, 8) });
    check(&Case { pitch: 33, ..Case::new(70, 32, 8) });
    check(&Case { out_pitch: 33, ..Case::new(70, 32, 8) });
    check(&Case { silu: false, ..Case::new(70, 64, 32) });
    check(&Case { in_place: true, ..Case::new(200, 64, 32) });
    check(&Case { parameters_at: 1, ..Case::new(70, 64, 32) });
}

#[test]
fn a_large_mean_costs_no_precision() {
    // Means of 1000 to 3000 and a spread of 16 to 80: bf16 steps are 4 to 16 there, and E[x^2] - mean^2 would fail.
    for (channels, groups) in [(32, 32), (12, 12)] {
        check(&Case { mean: 1000.0, spread: 16.0, silu: false, ..Case::new(5000, channels, groups) });
    }
}

#[test]
fn constant_groups_give_the_bias() {
    let case = Case { silu: false, ..Case::new(100, 16, 4) };
    let mut inputs = inputs(&case);
    inputs.x.fill(bf16::from_f32(77.0));
    let got = run(emulator(), &case, &inputs);
    // The scale is 1 / sqrt(eps) times the weight; torch's kernels, too, take the difference of products with it.
    let ulp = 77.0 * 1000.0 * 1.5 / (1 << 24) as f32;
    for pixel in got.chunks(16) {
        for (y, bias) in pixel.iter().zip(&inputs.bias) {
            assert!((y.to_f32() - bias).abs() <= bias.abs() / 256.0 + ulp, "{y}, expected {bias}");
        }
        assert_eq!(pixel, &got[..16]);
    }
}

#[test]
fn equals_candle() {
    let case = Case { silu: false, ..Case::new(100, 64, 32) };
    let inputs = inputs(&case);
    let x = Tensor::from_vec(to_f32(&inputs.x), (1, 100, 64), &Candle::Cpu).unwrap().transpose(1, 2).unwrap();
    let vector = |v: &[f32]| Tensor::from_vec(v.to_vec(), v.len(), &Candle::Cpu).unwrap();
    let norm = candle_nn::GroupNorm::new(vector(&inputs.weight), vector(&inputs.bias), 64, 32, 1e-6).unwrap();
    let want = norm.forward(&x.contiguous().unwrap()).unwrap().transpose(1, 2).unwrap();
    let want: Vec<f32> = want.contiguous().unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let got = to_f32(&run(emulator(), &case, &inputs));
    let rounded: Vec<f32> = want.iter().map(|v| round_bf16(*v)).collect();
    assert_close("candle", &got, &want, &rounded);
}

#[test]
fn the_same_bits_twice_and_under_every_schedule() {
    for case in [Case::new(200, 128, 32), Case::new(130, 12, 3)] {
        let inputs = inputs(&case);
        let want = run(emulator(), &case, &inputs);
        for device in [emulator(), random_emulator(1, 1), random_emulator(2, 2), random_emulator(3, 2)] {
            assert_eq!(run(device, &case, &inputs), want);
        }
    }
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, vector) = (bench.alloc::<bf16>(100 * 16), bench.alloc::<f32>(4096));
    assert_eq!(GroupNorm::workspace_len(100, 4), 2 * 4 * 2);
    let (workspace, norm) = (bench.alloc::<f32>(16), bench.alloc::<f32>(32));
    let (pixels, channels, pitch, out_pitch) = (100, 16, 16, 16);
    let (weight, bias) = (&vector, &vector);
    let good = || GroupNorm {
        x: &x,
        pitch,
        pixels,
        channels,
        groups: 4,
        weight,
        bias,
        eps: EPS,
        workspace: &workspace,
        norm: &norm,
    };
    good().launch(&bench.device, COMPUTE).unwrap();
    let (short_x, short_vector) = (x.slice(0, 1599).unwrap(), vector.slice(0, 15).unwrap());
    let (short_workspace, short_norm) = (workspace.slice(0, 15).unwrap(), norm.slice(0, 31).unwrap());
    for bad in [
        GroupNorm { x: &short_x, ..good() },
        GroupNorm { weight: &short_vector, ..good() },
        GroupNorm { bias: &short_vector, ..good() },
        GroupNorm { workspace: &short_workspace, ..good() },
        GroupNorm { norm: &short_norm, ..good() },
        GroupNorm { pitch: 15, ..good() },
        GroupNorm { groups: 3, ..good() },
        GroupNorm { groups: 0, ..good() },
        GroupNorm { pixels: 0, ..good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    let apply =
        || GroupNormSilu { x: &x, pitch, pixels, channels, norm: &norm, silu: true, out: &x, out_pitch };
    apply().launch(&bench.device, COMPUTE).unwrap();
    GroupNormSilu { pixels: 0, ..apply() }.launch(&bench.device, COMPUTE).unwrap();
    for bad in [
        GroupNormSilu { x: &short_x, ..apply() },
        GroupNormSilu { out: &short_x, ..apply() },
        GroupNormSilu { norm: &short_norm, ..apply() },
        GroupNormSilu { pitch: 15, ..apply() },
        GroupNormSilu { out_pitch: 15, ..apply() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    for channels in [0, 2049] {
        let unsupported = |result| matches!(result, Err(schnell::Error::Unsupported(_)));
        let bad = GroupNorm { channels, pixels: 1, groups: 1, ..good() };
        assert!(unsupported(bad.launch(&bench.device, COMPUTE)), "{bad:?}");
        let bad = GroupNormSilu { channels, pixels: 1, ..apply() };
        assert!(unsupported(bad.launch(&bench.device, COMPUTE)), "{bad:?}");
    }
}
