//! `rms_norm` against candle's and a plain loop.

mod common;
use candle_core::{Device as Candle, Tensor};
use common::*;
use half::bf16;
use schnell::device::Device;
use schnell::kernels::FloatOut;
use schnell::kernels::rms_norm::RmsNorm;

struct Case {
    rows: usize,
    width: usize,
    pitch: usize,
    out_pitch: usize,
}

impl Case {
    fn new(rows: usize, width: usize) -> Case {
        Case { rows, width, pitch: width, out_pitch: width }
    }
}

const EPS: f32 = 1e-6;

fn inputs(case: &Case) -> (Vec<f32>, Vec<f32>) {
    let mut rng = Rng((case.rows * 100_000 + case.width) as u64);
    let mut x = rng.f32s(case.rows * case.pitch, 5.0);
    x[case.width / 2] = 400.0;
    end_rows(&mut x, case.pitch, case.width, f32::NAN);
    (x, rng.f32s(case.width, 1.5))
}

/// In f64, or with every operation rounded by `round`.
fn reference(case: &Case, x: &[f32], weight: &[f32], round: impl Fn(f64) -> f64) -> Vec<f32> {
    let mut out = Vec::new();
    for row in x.chunks(case.pitch) {
        let row = &row[..case.width];
        let mean_sq = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / case.width as f64;
        let rrms = 1.0 / (mean_sq + f64::from(EPS)).sqrt();
        for (v, w) in row.iter().zip(weight) {
            out.push(round(round(f64::from(*v) * rrms) * f64::from(*w)) as f32);
        }
    }
    out
}

fn run(device: Device, case: &Case, x: &[f32], weight: &[f32]) -> (Vec<bf16>, Vec<f32>) {
    let bench = Bench::with_bytes(device, 4 << 20);
    let (x, weight) = (bench.upload(x), bench.upload(weight));
    let out_len = pitched_len(case.rows, case.out_pitch, case.width);
    let (out_bf16, out_f32) = (bench.alloc::<bf16>(out_len), bench.alloc::<f32>(out_len));
    for out in [FloatOut::Bf16(&out_bf16), FloatOut::F32(&out_f32)] {
        let Case { rows, width, pitch, out_pitch } = *case;
        RmsNorm { x: &x, pitch, rows, width, weight: &weight, eps: EPS, out, out_pitch }
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
    let (x, weight) = inputs(case);
    let (bf16s, f32s) = run(emulator(), case, &x, &weight);
    let want = reference(case, &x, &weight, |v| v);
    let plain = reference(case, &x, &weight, |v| f64::from(round_bf16(v as f32)));
    assert_close(&what, &to_f32(&bf16s), &want, &plain);
    // f32 throughout: the sum of squares and four roundings.
    assert!(rel_l2(&f32s, &want) < 1e-6, "{what}: f32 output off by {:.3e}", rel_l2(&f32s, &want));
    let rounded: Vec<bf16> = f32s.iter().map(|v| bf16::from_f32(*v)).collect();
    assert_eq!(bf16s, rounded, "{what}: the two outputs differ");
}

#[test]
fn every_width_and_path() {
    for width in
        [1, 3, 4, 16, 31, 32, 33, 127, 128, 129, 132, 1020, 1023, 1024, 1025, 1028, 4095, 4096, 4097, 4100]
    {
        check(&Case::new(3, width));
    }
    for width in [10240, 16384] {
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
}

#[test]
fn equals_candle() {
    let case = Case::new(7, 4096);
    let (x, weight) = inputs(&case);
    let (_, got) = run(emulator(), &case, &x, &weight);
    let x = Tensor::from_vec(x, (7, 4096), &Candle::Cpu).unwrap();
    let weight = Tensor::from_vec(weight, 4096, &Candle::Cpu).unwrap();
    let want = candle_nn::ops::rms_norm(&x, &weight, EPS).unwrap();
    let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
    // Two f32 sums of squares in different orders.
    assert!(rel_l2(&got, &want) < 1e-6, "{:.3e}", rel_l2(&got, &want));
}

#[test]
fn rows_of_zeros_give_zeros() {
    let case = Case::new(2, 64);
    let (_, weight) = inputs(&case);
    let (bf16s, f32s) = run(emulator(), &case, &[0.0; 128], &weight);
    assert!(f32s.iter().all(|v| *v == 0.0) && bf16s.iter().all(|v| v.to_f32() == 0.0));
}

#[test]
fn the_same_bits_twice_and_under_every_schedule() {
    for case in [Case::new(6, 257), Case::new(6, 1024), Case::new(6, 2048)] {
        let (x, weight) = inputs(&case);
        let want = run(emulator(), &case, &x, &weight);
        for device in [emulator(), random_emulator(1, 1), random_emulator(2, 2), random_emulator(3, 2)] {
            assert_eq!(run(device, &case, &x, &weight), want);
        }
    }
}

#[test]
fn refusals() {
    let bench = Bench::new(emulator());
    let (x, v, out) = (bench.alloc::<f32>(128), bench.alloc::<f32>(64), bench.alloc::<bf16>(128));
    let (short_x, short_v, short_out) =
        (x.slice(0, 127).unwrap(), v.slice(0, 63).unwrap(), out.slice(0, 127).unwrap());
    let good = || RmsNorm {
        x: &x,
        pitch: 64,
        rows: 2,
        width: 64,
        weight: &v,
        eps: EPS,
        out: FloatOut::Bf16(&out),
        out_pitch: 64,
    };
    let short_f32 = FloatOut::F32(&short_x);
    for bad in [
        RmsNorm { x: &short_x, ..good() },
        RmsNorm { weight: &short_v, ..good() },
        RmsNorm { out: FloatOut::Bf16(&short_out), ..good() },
        RmsNorm { out: short_f32, ..good() },
        RmsNorm { pitch: 63, ..good() },
        RmsNorm { out_pitch: 63, ..good() },
        RmsNorm { width: 0, ..good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    RmsNorm { rows: 0, ..good() }.launch(&bench.device, COMPUTE).unwrap();
    assert!(bench.download(&out).iter().all(|v| v.to_bits() == 0xffff), "no rows, no output");
}
