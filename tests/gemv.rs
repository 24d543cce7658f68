//! `gemv` against a plain loop in f64, with bf16 and NF4 weights.

mod common;
#[path = "common/nf4.rs"]
mod nf4;
use common::*;
use half::bf16;
use schnell::device::{Device, View};
use schnell::kernels::gemv::{Gemv, GemvActivation, GemvAddend, GemvLowRank, GemvWeight};
use schnell::kernels::nf4_quantize::{Nf4Layout, Nf4Quantize, Nf4Source};

#[derive(Clone, Copy, PartialEq)]
enum Add {
    None,
    Rows,
    Broadcast,
    InPlace,
}

#[derive(Clone)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    nf4: bool,
    pitch: usize,
    weight_pitch: usize,
    out_pitch: usize,
    bias: bool,
    act_in: GemvActivation,
    act_out: GemvActivation,
    add: Add,
    /// Of a LoRA, 0 for none.
    rank: usize,
}

impl Case {
    fn new(m: usize, n: usize, k: usize, nf4: bool) -> Case {
        Case {
            m,
            n,
            k,
            nf4,
            pitch: k,
            weight_pitch: k,
            out_pitch: n,
            bias: true,
            act_in: GemvActivation::None,
            act_out: GemvActivation::None,
            add: Add::None,
            rank: 0,
        }
    }
}

struct Inputs {
    x: Vec<f32>,
    /// bf16 weights as they are, or as NF4 codes mean them: `[n, weight_pitch]`.
    weight: Vec<bf16>,
    /// `[n, k / 2]` and `[n, k / 64]`.
    codes: Vec<u8>,
    absmax: Vec<f32>,
    bias: Vec<f32>,
    add: Vec<f32>,
    /// `[m, rank]` and `[n, rank]`.
    low_t: Vec<f32>,
    low_up: Vec<bf16>,
}

fn inputs(case: &Case) -> Inputs {
    let Case { m, n, k, .. } = *case;
    let mut rng = Rng((m * 1_000_000 + n * 1000 + k) as u64);
    let mut x = rng.f32s(m * case.pitch, 2.0);
    end_rows(&mut x, case.pitch, k, f32::NAN);
    let (low_t, low_up) = (rng.f32s(m * case.rank, 1.0), rng.bf16s(n * case.rank, 1.0));
    let (bias, mut add) = (rng.f32s(n, 1.0), rng.f32s(m * case.out_pitch, 1.0));
    end_rows(&mut add, case.out_pitch, n, f32::from_bits(u32::MAX));
    if !case.nf4 {
        let mut weight = rng.bf16s(n * case.weight_pitch, 0.5);
        end_rows(&mut weight, case.weight_pitch, k, bf16::NAN);
        return Inputs { x, weight, codes: vec![], absmax: vec![], bias, add, low_t, low_up };
    }
    let codes: Vec<u8> = (0..n * k / 2).map(|_| rng.bits() as u8).collect();
    let absmax: Vec<f32> = (0..n * k / 64).map(|_| rng.uniform().abs() + 0.01).collect();
    let weight = (0..n * k)
        .map(|i| {
            let code = if i % 2 == 0 { codes[i / 2] >> 4 } else { codes[i / 2] & 15 };
            nf4::dequantize(code, absmax[i / 64])
        })
        .collect();
    Inputs { x, weight, codes, absmax, bias, add, low_t, low_up }
}

fn silu(x: f64, act: GemvActivation) -> f64 {
    if act == GemvActivation::Silu { x / (1.0 + (-x).exp()) } else { x }
}

/// In f64, with inputs, sums and results rounded by `round`.
fn reference(case: &Case, inputs: &Inputs, round: impl Fn(f64) -> f64) -> Vec<f32> {
    let mut out = Vec::new();
    for m in 0..case.m {
        let x: Vec<f64> = inputs.x[m * case.pitch..][..case.k]
            .iter()
            .map(|v| round(silu(f64::from(*v), case.act_in)))
            .collect();
        for n in 0..case.n {
            let w = &inputs.weight[n * case.weight_pitch..][..case.k];
            let mut sum = round(x.iter().zip(w).map(|(x, w)| x * w.to_f64()).sum::<f64>());
            if case.rank > 0 {
                let (t, up) = (inputs.low_t.chunks(case.rank).nth(m), inputs.low_up.chunks(case.rank).nth(n));
                let products = t.unwrap().iter().zip(up.unwrap()).map(|(t, up)| f64::from(*t) * up.to_f64());
                sum = round(sum + products.sum::<f64>());
            }
            if case.bias {
                sum = round(sum + f64::from(inputs.bias[n]));
            }
            sum = round(silu(sum, case.act_out));
            sum = match case.add {
                Add::None => sum,
                Add::Broadcast => round(sum + f64::from(inputs.add[n])),
                Add::Rows | Add::InPlace => round(sum + f64::from(inputs.add[m * case.out_pitch + n])),
            };
            out.push(sum as f32);
        }
    }
    out
}

fn run(device: Device, case: &Case, inputs: &Inputs) -> Vec<f32> {
    let bench = Bench::with_bytes(device, 8 << 20);
    let x = bench.upload(&inputs.x);
    let weight = bench.upload(&inputs.weight);
    let (codes, absmax) = (bench.upload(&inputs.codes), bench.upload(&inputs.absmax));
    let (bias, add) = (bench.upload(&inputs.bias), bench.upload(&inputs.add));
    let (low_t, low_up) = (bench.upload(&inputs.low_t), bench.upload(&inputs.low_up));
    let low_rank = GemvLowRank { t: &low_t, up: &low_up, rank: case.rank };
    let fresh = bench.alloc::<f32>(pitched_len(case.m, case.out_pitch, case.n));
    let out = if case.add == Add::InPlace { &add } else { &fresh };
    let pitch = case.out_pitch;
    Gemv {
        x: &x,
        pitch: case.pitch,
        m: case.m,
        n: case.n,
        k: case.k,
        weight: if case.nf4 {
            GemvWeight::Nf4 { codes: &codes, absmax: &absmax }
        } else {
            GemvWeight::Bf16 { weight: &weight, pitch: case.weight_pitch }
        },
        low_rank: (case.rank > 0).then_some(low_rank),
        bias: case.bias.then_some(&bias),
        act_in: case.act_in,
        act_out: case.act_out,
        add: match case.add {
            Add::None => None,
            Add::Broadcast => Some(GemvAddend { rows: &add, pitch: 0 }),
            Add::Rows | Add::InPlace => Some(GemvAddend { rows: &add, pitch }),
        },
        out,
        out_pitch: pitch,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    without_gaps(&bench.download(out), pitch, case.n)
}

#[track_caller]
fn check(case: &Case) {
    let what = format!("{} x {} x {}, nf4 {}", case.m, case.n, case.k, case.nf4);
    let inputs = inputs(case);
    let got = run(emulator(), case, &inputs);
    let want = reference(case, &inputs, |v| v);
    let plain = reference(case, &inputs, |v| f64::from(round_bf16(v as f32)));
    assert_close(&what, &got, &want, &plain);
    // All f32: the error of a sum of k products, each lane's share of it in order. A single wrong weight is larger.
    let scale = want.iter().fold(1f32, |m, w| m.max(w.abs())) as f64;
    assert!(max_abs(&got, &want) <= 2e-5 * scale, "{what}: off by {:.3e} of {scale}", max_abs(&got, &want));
}

#[test]
fn every_number_of_rows() {
    for nf4 in [false, true] {
        for m in 1..=8 {
            check(&Case::new(m, 37, 192, nf4));
        }
    }
}

#[test]
fn every_number_of_features() {
    for nf4 in [false, true] {
        for n in [1, 3, 4, 5, 31, 32, 33, 64] {
            check(&Case::new(2, n, 128, nf4));
        }
        check(&Case::new(1, 3072, 64, nf4));
        check(&Case::new(1, 18432, 64, nf4));
    }
}

#[test]
fn every_depth() {
    for k in [1, 2, 7, 8, 9, 63, 255, 256, 257, 1023, 1024, 1025, 1032, 2048, 3072, 4096, 10240] {
        check(&Case::new(2, 5, k, false));
    }
    for k in [64, 128, 960, 1024, 1088, 2048, 3072, 4096, 10240] {
        check(&Case::new(2, 5, k, true));
    }
}

#[test]
fn activations_bias_and_addend() {
    use GemvActivation::{None, Silu};
    for nf4 in [false, true] {
        for (act_in, act_out, bias, add) in [
            (Silu, None, true, Add::None),
            (None, Silu, true, Add::Rows),
            (Silu, Silu, false, Add::Broadcast),
            (None, None, false, Add::InPlace),
        ] {
            check(&Case { act_in, act_out, bias, add, ..Case::new(3, 40, 320, nf4) });
        }
    }
}

#[test]
fn a_lora_adds_to_the_sums() {
    for nf4 in [false, true] {
        for (m, rank) in [(1, 8), (2, 64), (3, 136), (8, 264)] {
            check(&Case { rank, act_out: GemvActivation::Silu, ..Case::new(m, 37, 128, nf4) });
        }
    }
}

#[test]
fn pitches() {
    for add in [Add::None, Add::Rows, Add::InPlace] {
        check(&Case { pitch: 264, weight_pitch: 272, out_pitch: 50, add, ..Case::new(3, 40, 256, false) });
        check(&Case { pitch: 257, weight_pitch: 259, out_pitch: 41, add, ..Case::new(3, 40, 256, false) });
        check(&Case { pitch: 256, weight_pitch: 256, out_pitch: 41, add, ..Case::new(3, 40, 251, false) });
        check(&Case { pitch: 257, out_pitch: 41, add, ..Case::new(3, 40, 256, true) });
    }
}

#[test]
fn reads_what_the_quantizer_writes() {
    let (n, k) = (33, 256);
    let bench = Bench::with_bytes(emulator(), 4 << 20);
    let mut rng = Rng(5);
    let (mut weights, x) = (rng.f32s(n * k, 0.3), rng.f32s(k, 1.0));
    // Every block has another scale, far from those of its neighbors.
    for block in weights.chunks_mut(64) {
        let scale = (rng.uniform() * 3.0).exp2();
        block.iter_mut().for_each(|w| *w *= scale);
    }
    let src = bench.upload(&weights);
    let codes = bench.alloc::<u8>(Nf4Layout::Rows.codes_len(n, k));
    let absmax = bench.alloc::<f32>(Nf4Layout::Rows.absmax_len(n, k));
    let quantize = Nf4Quantize {
        src: Nf4Source::F32(&src),
        pitch: k,
        rows: n,
        k,
        first_row: 0,
        n,
        layout: Nf4Layout::Rows,
        codes: &codes,
        absmax: &absmax,
        nonfinite: &bench.alloc(1),
    };
    quantize.launch(&bench.device, COMPUTE).unwrap();
    let (view, out) = (bench.upload(&x), bench.alloc::<f32>(n));
    good(&view, GemvWeight::Nf4 { codes: &codes, absmax: &absmax }, &out, n, k)
        .launch(&bench.device, COMPUTE)
        .unwrap();
    // What the codes mean, not what the quantizer was given: nothing but sums' rounding is left.
    let (codes, absmax) = nf4::quantize(&weights);
    let seen: Vec<f64> =
        codes.iter().enumerate().map(|(i, code)| nf4::dequantize(*code, absmax[i / 64]).to_f64()).collect();
    let want: Vec<f32> = seen
        .chunks(k)
        .map(|row| row.iter().zip(&x).map(|(w, x)| w * f64::from(*x)).sum::<f64>() as f32)
        .collect();
    let error = rel_l2(&bench.download(&out), &want);
    assert!(error < 1e-6, "{error}");
}

fn good<'a>(x: &'a View<f32>, weight: GemvWeight<'a>, out: &'a View<f32>, n: usize, k: usize) -> Gemv<'a> {
    Gemv {
        x,
        pitch: k,
        m: 1,
        n,
        k,
        weight,
        low_rank: None,
        bias: None,
        act_in: GemvActivation::None,
        act_out: GemvActivation::None,
        add: None,
        out,
        out_pitch: n,
    }
}

#[test]
fn the_same_bits_twice_and_under_every_schedule() {
    for nf4 in [false, true] {
        let case = Case { act_in: GemvActivation::Silu, ..Case::new(3, 70, 1152, nf4) };
        let inputs = inputs(&case);
        let want = run(emulator(), &case, &inputs);
        for device in [emulator(), random_emulator(1, 1), random_emulator(2, 2), random_emulator(3, 2)] {
            assert_eq!(run(device, &case, &inputs), want);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_how_many_there_are() {
    for nf4 in [false, true] {
        let case = Case::new(8, 33, 1152, nf4);
        let inputs = inputs(&case);
        let all = run(emulator(), &case, &inputs);
        for m in [1, 2, 3, 7] {
            let fewer = run(emulator(), &Case { m, ..case.clone() }, &inputs);
            assert_eq!(fewer[..], all[..m * 33], "{m} rows");
        }
    }
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, out) = (bench.alloc::<f32>(8 * 128), bench.alloc::<f32>(8 * 32));
    let (weight, codes, absmax) =
        (bench.alloc::<bf16>(32 * 128), bench.alloc::<u8>(32 * 64 + 1), bench.alloc::<f32>(32 * 2));
    let bf16_weight = GemvWeight::Bf16 { weight: &weight, pitch: 128 };
    let nf4_weight = GemvWeight::Nf4 { codes: &codes, absmax: &absmax };
    let bf16_good = || Gemv { m: 8, ..good(&x, bf16_weight, &out, 32, 128) };
    let nf4_good = || Gemv { m: 8, ..good(&x, nf4_weight, &out, 32, 128) };
    bf16_good().launch(&bench.device, COMPUTE).unwrap();
    nf4_good().launch(&bench.device, COMPUTE).unwrap();

    let (short_x, short_out) = (x.slice(0, 8 * 128 - 1).unwrap(), out.slice(0, 8 * 32 - 1).unwrap());
    let short_weight = weight.slice(0, 32 * 128 - 1).unwrap();
    let (short_codes, odd_codes) = (codes.slice(0, 32 * 64 - 1).unwrap(), codes.slice(1, 32 * 64).unwrap());
    let (short_absmax, short_bias) = (absmax.slice(0, 63).unwrap(), out.slice(0, 31).unwrap());
    for bad in [
        Gemv { x: &short_x, ..bf16_good() },
        Gemv { out: &short_out, ..bf16_good() },
        Gemv { bias: Some(&short_bias), ..bf16_good() },
        Gemv { add: Some(GemvAddend { rows: &short_bias, pitch: 0 }), ..bf16_good() },
        Gemv { add: Some(GemvAddend { rows: &short_out, pitch: 32 }), ..bf16_good() },
        Gemv { add: Some(GemvAddend { rows: &out, pitch: 31 }), ..bf16_good() },
        Gemv { pitch: 127, ..bf16_good() },
        Gemv { out_pitch: 31, ..bf16_good() },
        Gemv { k: 0, ..bf16_good() },
        Gemv { weight: GemvWeight::Bf16 { weight: &short_weight, pitch: 128 }, ..bf16_good() },
        Gemv { weight: GemvWeight::Bf16 { weight: &weight, pitch: 127 }, ..bf16_good() },
        Gemv { weight: GemvWeight::Nf4 { codes: &short_codes, absmax: &absmax }, ..nf4_good() },
        Gemv { weight: GemvWeight::Nf4 { codes: &odd_codes, absmax: &absmax }, ..nf4_good() },
        Gemv { weight: GemvWeight::Nf4 { codes: &codes, absmax: &short_absmax }, ..nf4_good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    for bad in [Gemv { m: 0, ..bf16_good() }, Gemv { m: 9, ..bf16_good() }, Gemv { k: 100, ..nf4_good() }] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Unsupported(_))), "{bad:?}");
    }
}
