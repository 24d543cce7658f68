//! `head_norm_rope` against candle's RMSNorm and interleaved RoPE, and a plain loop.

mod common;
use candle_core::{Device as Candle, Tensor};
use common::*;
use half::bf16;
use schnell::device::Device;
use schnell::kernels::head_norm_rope::HeadNormRope;

struct Case {
    rows: usize,
    heads: usize,
    head_dim: usize,
    pitch: usize,
    rope_row: usize,
}

impl Case {
    fn new(rows: usize, heads: usize, head_dim: usize) -> Case {
        Case { rows, heads, head_dim, pitch: heads * head_dim, rope_row: 0 }
    }
}

struct Inputs {
    x: Vec<bf16>,
    weight: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

const EPS: f32 = 1e-6;

fn inputs(case: &Case) -> Inputs {
    let mut rng = Rng((case.rows * 1000 + case.head_dim) as u64);
    let angles = rng.f32s((case.rope_row + case.rows) * case.head_dim / 2, 3.0);
    let mut x = rng.bf16s(case.rows * case.pitch, 4.0);
    // Nothing behind the last row: it must not be touched.
    x.truncate(x.len() - (case.pitch - case.heads * case.head_dim));
    Inputs {
        x,
        weight: rng.f32s(case.head_dim, 1.5),
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
    }
}

/// In f64, or with every operation rounded by `round`; gaps keep their input.
fn reference(case: &Case, inputs: &Inputs, round: impl Fn(f64) -> f64) -> Vec<f32> {
    let mut out = to_f32(&inputs.x);
    let pairs = case.head_dim / 2;
    for row in 0..case.rows {
        for head in 0..case.heads {
            let at = row * case.pitch + head * case.head_dim;
            let x: Vec<f64> = inputs.x[at..at + case.head_dim].iter().map(|v| v.to_f64()).collect();
            let rrms = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + f64::from(EPS)).sqrt();
            let y: Vec<f64> =
                x.iter().zip(&inputs.weight).map(|(v, w)| round(round(v * rrms) * f64::from(*w))).collect();
            for p in 0..pairs {
                let table = (case.rope_row + row) * pairs + p;
                let (c, s) = (f64::from(inputs.cos[table]), f64::from(inputs.sin[table]));
                out[at + 2 * p] = round(round(y[2 * p] * c) - round(y[2 * p + 1] * s)) as f32;
                out[at + 2 * p + 1] = round(round(y[2 * p] * s) + round(y[2 * p + 1] * c)) as f32;
            }
        }
    }
    out
}

fn run(device: Device, case: &Case, inputs: &Inputs) -> Vec<bf16> {
    let bench = Bench::with_bytes(device, 4 << 20);
    let x = bench.upload(&inputs.x);
    let (weight, cos, sin) =
        (bench.upload(&inputs.weight), bench.upload(&inputs.cos), bench.upload(&inputs.sin));
    let Case { rows, heads, head_dim, pitch, rope_row } = *case;
    HeadNormRope {
        x: &x,
        pitch,
        rows,
        heads,
        head_dim,
        weight: &weight,
        eps: EPS,
        cos: &cos,
        sin: &sin,
        rope_row,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    bench.download(&x)
}

fn check(case: &Case) {
    let what = format!("{} x {} x {}", case.rows, case.heads, case.head_dim);
    let inputs = inputs(case);
    let got = run(emulator(), case, &inputs);
    let want = reference(case, &inputs, |v| v);
    let plain = reference(case, &inputs, |v| f64::from(round_bf16(v as f32)));
    assert_close(&what, &to_f32(&got), &want, &plain);
    // One rounding of the f32 result, so nowhere further off than half a bf16 step (and the f32 error's share).
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g.to_f32() - w).abs() <= w.abs() / 250.0 + 1e-5, "{what}: element {i} is {g}, expected {w}");
    }
    for (row, (g, x)) in got.chunks(case.pitch).zip(inputs.x.chunks(case.pitch)).enumerate() {
        let width = case.heads * case.head_dim;
        assert_eq!(g[width..], x[width..], "{what}: the gap behind row {row} was written");
    }
}

#[test]
fn every_head_width() {
    for head_dim in [2, 4, 16, 62, 64, 66, 80, 126, 128, 130, 254, 256] {
        check(&Case::new(3, 3, head_dim));
    }
}

#[test]
fn rows_pitches_and_positions() {
    check(&Case::new(1, 1, 64));
    check(&Case::new(1, 24, 128));
    check(&Case::new(5, 2, 32));
    check(&Case { pitch: 3 * 64 + 6, ..Case::new(4, 2, 64) });
    check(&Case { rope_row: 7, ..Case::new(4, 2, 64) });
    check(&Case { pitch: 9216, ..Case::new(2, 24, 128) });
}

#[test]
fn equals_candle() {
    let case = Case::new(9, 4, 64);
    let inputs = inputs(&case);
    let tensor = |v: &[f32], shape: &[usize]| Tensor::from_vec(v.to_vec(), shape, &Candle::Cpu).unwrap();
    let x = tensor(&to_f32(&inputs.x), &[1, 9, 4, 64]);
    let normed = candle_nn::ops::rms_norm(&x, &tensor(&inputs.weight, &[64]), EPS).unwrap();
    let normed = normed.transpose(1, 2).unwrap().contiguous().unwrap();
    let (cos, sin) = (tensor(&inputs.cos, &[9, 32]), tensor(&inputs.sin, &[9, 32]));
    let want = candle_nn::rotary_emb::rope_i(&normed, &cos, &sin).unwrap().transpose(1, 2).unwrap();
    let want: Vec<f32> = want.contiguous().unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let got = to_f32(&run(emulator(), &case, &inputs));
    let rounded: Vec<f32> = want.iter().map(|v| round_bf16(*v)).collect();
    assert_close("candle", &got, &want, &rounded);
}

#[test]
fn the_same_bits_twice_and_under_every_schedule() {
    let case = Case::new(5, 3, 80);
    let inputs = inputs(&case);
    let want = run(emulator(), &case, &inputs);
    for device in [emulator(), random_emulator(1, 1), random_emulator(2, 2), random_emulator(3, 2)] {
        assert_eq!(run(device, &case, &inputs), want);
    }
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, weight, table) = (bench.alloc::<bf16>(513), bench.alloc::<f32>(512), bench.alloc::<f32>(128));
    let good = || HeadNormRope {
        x: &x,
        pitch: 128,
        rows: 4,
        heads: 2,
        head_dim: 64,
        weight: &weight,
        eps: EPS,
        cos: &table,
        sin: &table,
        rope_row: 0,
    };
    good().launch(&bench.device, COMPUTE).unwrap();
    let (short_x, odd_x) = (x.slice(0, 511).unwrap(), x.slice(1, 512).unwrap());
    let (short_weight, short_table) = (weight.slice(0, 63).unwrap(), table.slice(0, 127).unwrap());
    for bad in [
        HeadNormRope { x: &short_x, ..good() },
        HeadNormRope { x: &odd_x, ..good() },
        HeadNormRope { weight: &short_weight, ..good() },
        HeadNormRope { cos: &short_table, ..good() },
        HeadNormRope { sin: &short_table, ..good() },
        HeadNormRope { rope_row: 1, ..good() },
        HeadNormRope { rows: 5, ..good() },
        HeadNormRope { pitch: 126, ..good() },
        HeadNormRope { pitch: 129, rows: 2, ..good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    for head_dim in [0, 63, 258] {
        let bad = HeadNormRope { head_dim, rows: 1, heads: 1, pitch: 258, ..good() };
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Unsupported(_))), "{bad:?}");
    }
}
