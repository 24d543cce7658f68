//! `layer_norm_mod` against candle's layer norm and a plain loop.

mod common;
use candle_core::{Device as Candle, Tensor};
use common::*;
use half::bf16;
use schnell::device::Device;
use schnell::kernels::FloatOut;
use schnell::kernels::layer_norm_mod::{LayerNormMod, Rest};

struct Case {
    rows: usize,
    width: usize,
    pitch: usize,
    out_pitch: usize,
    scale_offset: f32,
    eps: f32,
}

impl Case {
    fn new(rows: usize, width: usize) -> Case {
        Case { rows, width, pitch: width, out_pitch: width, scale_offset: 1.0, eps: 1e-6 }
    }
}

struct Inputs {
    x: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// Rows with a mean of their own and one channel that dwarfs the others, as FLUX's residual stream has.
fn inputs(case: &Case) -> Inputs {
    let mut rng = Rng((case.rows * 100_000 + case.width) as u64);
    let mut x = rng.f32s(case.rows * case.pitch, 2.0);
    for (row, values) in x.chunks_mut(case.pitch).enumerate() {
        let mean = row as f32 * 3.0 - 4.0;
        values.iter_mut().for_each(|v| *v += mean);
        values[case.width / 2] += 300.0;
    }
    end_rows(&mut x, case.pitch, case.width, f32::NAN);
    Inputs { x, scale: rng.f32s(case.width, 0.5), shift: rng.f32s(case.width, 0.5) }
}

/// In f64, or with every operation rounded by `round`.
fn reference(case: &Case, inputs: &Inputs, round: impl Fn(f64) -> f64) -> Vec<f32> {
    let mut out = Vec::new();
    for row in inputs.x.chunks(case.pitch) {
        let row: Vec<f64> = row[..case.width].iter().map(|v| f64::from(*v)).collect();
        let mean = row.iter().sum::<f64>() / case.width as f64;
        let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / case.width as f64;
        let rstd = 1.0 / (var + f64::from(case.eps)).sqrt();
        for (i, v) in row.iter().enumerate() {
            let factor = round(f64::from(case.scale_offset) + f64::from(inputs.scale[i]));
            out.push(round(round(round((v - mean) * rstd) * factor) + f64::from(inputs.shift[i])) as f32);
        }
    }
    out
}

/// The kernel's bf16 and f32 outputs, rows without their gaps.
fn run(device: Device, case: &Case, inputs: &Inputs) -> (Vec<bf16>, Vec<f32>) {
    let bench = Bench::with_bytes(device, 4 << 20);
    let x = bench.upload(&inputs.x);
    let (scale, shift) = (bench.upload(&inputs.scale), bench.upload(&inputs.shift));
    let out_len = pitched_len(case.rows, case.out_pitch, case.width);
    let (out_bf16, out_f32) = (bench.alloc::<bf16>(out_len), bench.alloc::<f32>(out_len));
    for out in [FloatOut::Bf16(&out_bf16), FloatOut::F32(&out_f32)] {
        LayerNormMod {
            x: &x,
            pitch: case.pitch,
            rows: case.rows,
            width: case.width,
            scale: &scale,
            shift: &shift,
            rest: None,
            scale_offset: case.scale_offset,
            eps: case.eps,
            out,
            out_pitch: case.out_pitch,
        }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    }
    (
        without_gaps(&bench.download(&out_bf16), case.out_pitch, case.width),
        without_gaps(&bench.download(&out_f32), case.out_pitch, case.width),
    )
}

fn check(case: &Case) {
    let what = format!("{} x {}, pitches {} and {}", case.rows, case.width, case.pitch, case.out_pitch);
    let inputs = inputs(case);
    let (bf16s, f32s) = run(emulator(), case, &inputs);
    let want = reference(case, &inputs, |v| v);
    let plain = reference(case, &inputs, |v| f64::from(round_bf16(v as f32)));
    assert_close(&what, &to_f32(&bf16s), &want, &plain);
    // f32 throughout: a few roundings of the largest intermediate, which is the input's distance from its mean.
    assert!(rel_l2(&f32s, &want) < 1e-6, "{what}: f32 output off by {:.3e}", rel_l2(&f32s, &want));
    let rounded: Vec<bf16> = f32s.iter().map(|v| bf16::from_f32(*v)).collect();
    assert_eq!(bf16s, rounded, "{what}: the two outputs differ");
}

#[test]
fn every_width_and_path() {
    for width in
        [1, 3, 4, 16, 31, 32, 33, 127, 128, 129, 132, 768, 1020, 1023, 1024, 1025, 1028, 3071, 3072, 3076]
    {
        check(&Case::new(3, width));
    }
    for width in [4096, 10240, 16384] {
        check(&Case::new(2, width));
    }
}

#[test]
fn rows_and_pitches() {
    for rows in [1, 4, 5, 9] {
        check(&Case::new(rows, 64));
    }
    check(&Case { pitch: 72, out_pitch: 80, ..Case::new(5, 64) });
    check(&Case { pitch: 65, out_pitch: 64, ..Case::new(5, 64) });
    check(&Case { pitch: 64, out_pitch: 67, ..Case::new(5, 64) });
    check(&Case { pitch: 3072, out_pitch: 15360, ..Case::new(2, 3072) });
}

/// Rows with another scale and shift are what a launch of their own gives.
#[test]
fn the_rest_has_its_own_modulation() {
    let rows = 9;
    for width in [33, 64, 2048] {
        let inputs = inputs(&Case::new(rows, width));
        let bench = Bench::new(emulator());
        let (x, scale, shift) =
            (bench.upload(&inputs.x), bench.upload(&inputs.scale), bench.upload(&inputs.shift));
        let out = bench.alloc::<bf16>(rows * width);
        let run = |first: usize, rows: usize, scale, shift, rest| {
            let out = out.slice(first * width, rows * width).unwrap();
            LayerNormMod {
                x: &x.slice(first * width, rows * width).unwrap(),
                pitch: width,
                rows,
                width,
                scale,
                shift,
                rest,
                scale_offset: 1.0,
                eps: 1e-6,
                out: FloatOut::Bf16(&out),
                out_pitch: width,
            }
            .launch(&bench.device, COMPUTE)
            .unwrap();
        };
        for first_row in [0, 1, 4, 6, rows] {
            run(0, first_row, &scale, &shift, None);
            run(first_row, rows - first_row, &shift, &scale, None);
            let want = bench.download(&out);
            run(0, rows, &scale, &shift, Some(Rest { first_row, scale: &shift, shift: &scale }));
            assert_eq!(bench.download(&out), want, "{width} from row {first_row} on");
        }
    }
}

#[test]
fn affine_equals_candle() {
    let case = Case { scale_offset: 0.0, eps: 1e-5, ..Case::new(7, 768) };
    let inputs = inputs(&case);
    let (_, got) = run(emulator(), &case, &inputs);
    let tensor = |v: &[f32], shape: &[usize]| Tensor::from_vec(v.to_vec(), shape, &Candle::Cpu).unwrap();
    let want = candle_nn::ops::layer_norm(
        &tensor(&inputs.x, &[7, 768]),
        &tensor(&inputs.scale, &[768]),
        &tensor(&inputs.shift, &[768]),
        1e-5,
    )
    .unwrap();
    let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
    // candle sums squares and the mean in one pass, so with an outlier of 300 it is the less exact of the two.
    assert!(rel_l2(&got, &want) < 1e-5, "{:.3e}", rel_l2(&got, &want));
}

#[test]
fn a_large_mean_costs_no_precision() {
    let case = Case::new(2, 3072);
    let mut inputs = inputs(&case);
    inputs.x.iter_mut().for_each(|v| *v += 4096.0);
    let (_, got) = run(emulator(), &case, &inputs);
    let want = reference(&case, &inputs, |v| v);
    // The mean itself carries an f32 rounding of 4096 (2.4e-4), against deviations of about 5.
    assert!(rel_l2(&got, &want) < 1e-4, "{:.3e}", rel_l2(&got, &want));
}

#[test]
fn unaligned_views_take_the_scalar_path() {
    let case = Case::new(3, 64);
    let inputs = inputs(&case);
    let bench = Bench::new(emulator());
    let shifted: Vec<f32> = std::iter::once(0.0).chain(inputs.x.iter().copied()).collect();
    let x = bench.upload(&shifted).slice(1, 192).unwrap();
    let (scale, shift) = (bench.upload(&inputs.scale), bench.upload(&inputs.shift));
    let out = bench.alloc::<bf16>(193).slice(1, 192).unwrap();
    LayerNormMod {
        x: &x,
        pitch: 64,
        rows: 3,
        width: 64,
        scale: &scale,
        shift: &shift,
        rest: None,
        scale_offset: 1.0,
        eps: 1e-6,
        out: FloatOut::Bf16(&out),
        out_pitch: 64,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    let want = reference(&case, &inputs, |v| v);
    let plain = reference(&case, &inputs, |v| f64::from(round_bf16(v as f32)));
    assert_close("unaligned", &to_f32(&bench.download(&out)), &want, &plain);
}

#[test]
fn the_same_bits_twice_and_under_every_schedule() {
    for case in [Case::new(6, 257), Case::new(6, 1024), Case::new(6, 2048)] {
        let inputs = inputs(&case);
        let (bf16s, f32s) = run(emulator(), &case, &inputs);
        let devices = [emulator(), random_emulator(1, 1), random_emulator(2, 2), random_emulator(3, 2)];
        for device in devices {
            assert_eq!(run(device, &case, &inputs), (bf16s.clone(), f32s.clone()));
        }
    }
}

#[test]
fn refusals() {
    let bench = Bench::new(emulator());
    let (x, v, out) = (bench.alloc::<f32>(128), bench.alloc::<f32>(64), bench.alloc::<bf16>(128));
    let (short_x, short_v, short_out) =
        (x.slice(0, 127).unwrap(), v.slice(0, 63).unwrap(), out.slice(0, 127).unwrap());
    let good = || LayerNormMod {
        x: &x,
        pitch: 64,
        rows: 2,
        width: 64,
        scale: &v,
        shift: &v,
        rest: None,
        scale_offset: 1.0,
        eps: 1e-6,
        out: FloatOut::Bf16(&out),
        out_pitch: 64,
    };
    let short_f32 = FloatOut::F32(&short_x);
    for bad in [
        LayerNormMod { x: &short_x, ..good() },
        LayerNormMod { scale: &short_v, ..good() },
        LayerNormMod { shift: &short_v, ..good() },
        LayerNormMod { out: FloatOut::Bf16(&short_out), ..good() },
        LayerNormMod { out: short_f32, ..good() },
        LayerNormMod { pitch: 63, ..good() },
        LayerNormMod { out_pitch: 63, ..good() },
        LayerNormMod { width: 0, ..good() },
        LayerNormMod { rest: Some(Rest { first_row: 1, scale: &short_v, shift: &v }), ..good() },
        LayerNormMod { rest: Some(Rest { first_row: 1, scale: &v, shift: &short_v }), ..good() },
        LayerNormMod { rest: Some(Rest { first_row: 3, scale: &v, shift: &v }), ..good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    LayerNormMod { rows: 0, ..good() }.launch(&bench.device, COMPUTE).unwrap();
    assert!(bench.download(&out).iter().all(|v| v.to_bits() == 0xffff), "no rows, no output");
}
