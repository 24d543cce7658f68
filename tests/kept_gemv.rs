//! `gemv` with weights in the few bits of their file, against a plain loop in f64 over what the host makes of them.

mod common;
#[path = "common/kept.rs"]
mod kept;
use common::*;
use half::bf16;
use kept::{Stored, width};
use schnell::device::{Device, View};
use schnell::kernels::gemv::{Gemv, GemvActivation, GemvAddend, GemvWeight};
use schnell::kernels::kept::{Format, KeptLayout};

fn gemv<'a>(x: &'a View<f32>, weight: GemvWeight<'a>, out: &'a View<f32>, shape: [usize; 3]) -> Gemv<'a> {
    let [m, n, k] = shape;
    Gemv {
        x,
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
        out,
        out_pitch: n,
    }
}

/// `out[m, n]`, with SiLU of what comes in, a bias, and a row that is added to all.
fn run(device: Device, format: Format, shape: [usize; 3]) -> (Vec<f32>, Vec<f64>) {
    let [m, n, k] = shape;
    let mut rng = Rng((m * 1_000_000 + n * 1000 + k) as u64);
    let stored = Stored::random(&mut rng, format, n, k);
    let (x, bias, add) = (rng.f32s(m * k, 2.0), rng.f32s(n, 1.0), rng.f32s(n, 1.0));
    let bench = Bench::with_bytes(device, 8 << 20);
    let bytes = bench.upload(&stored.kept(KeptLayout::Rows, n, k));
    let (x_view, bias_view, add_view) = (bench.upload(&x), bench.upload(&bias), bench.upload(&add));
    let out = bench.alloc::<f32>(m * n);
    Gemv {
        bias: Some(&bias_view),
        act_in: GemvActivation::Silu,
        add: Some(GemvAddend { rows: &add_view, pitch: 0 }),
        ..gemv(&x_view, GemvWeight::Kept { format, bytes: &bytes }, &out, shape)
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    let means: Vec<f64> = stored.means().into_iter().map(bf16::to_f64).collect();
    let silu = |x: f32| f64::from(x) / (1.0 + f64::from(-x).exp());
    let mut want = Vec::new();
    for x in x.chunks(k) {
        let x: Vec<f64> = x.iter().map(|x| silu(*x)).collect();
        for (i, row) in means.chunks(k).enumerate() {
            let sum: f64 = row.iter().zip(&x).map(|(w, x)| w * x).sum();
            want.push(sum + f64::from(bias[i]) + f64::from(add[i]));
        }
    }
    (bench.download(&out), want)
}

#[track_caller]
fn check(format: Format, shape: [usize; 3]) {
    let (got, want) = run(emulator(), format, shape);
    let scale = want.iter().fold(1f64, |most, want| most.max(want.abs()));
    let off = got.iter().zip(&want).fold(0f64, |most, (got, want)| most.max((f64::from(*got) - want).abs()));
    // The sums' rounding. A single wrong weight is more.
    assert!(off <= 2e-5 * scale, "{format} {shape:?}: off by {off:.3e} of {scale}");
}

#[test]
fn every_number_of_rows() {
    for format in Format::ALL {
        for m in 1..=8 {
            check(format, [m, 37, width(format, 192)]);
        }
    }
}

#[test]
fn every_number_of_features() {
    for format in Format::ALL {
        for n in [1, 3, 4, 5, 31, 32, 33, 64] {
            check(format, [2, n, width(format, 128)]);
        }
    }
    check(Format::Q6K, [1, 18432, 256]);
}

#[test]
fn every_depth() {
    for format in Format::ALL {
        for k in [64, 128, 960, 1024, 1088, 2048, 3072, 10240] {
            check(format, [2, 5, width(format, k)]);
        }
    }
}

/// Rows that are unit vectors bring out every weight as it is multiplied.
#[test]
fn every_weight_is_what_the_file_means_in_bf16() {
    for format in Format::ALL {
        let scales: &[f32] = if format.is_fp8() { &[1.0, 1e-38, 3e-41, 127.99] } else { &[1.0] };
        for &scale in scales {
            let (n, k) = (40, 256);
            let stored = Stored::extreme(format, n, k, scale);
            let means = stored.means();
            let bench = Bench::with_bytes(emulator(), 8 << 20);
            let bytes = bench.upload(&stored.kept(KeptLayout::Rows, n, k));
            for first in (0..k).step_by(8) {
                let mut units = vec![0f32; 8 * k];
                (0..8).for_each(|i| units[i * k + first + i] = 1.0);
                let (x, out) = (bench.upload(&units), bench.alloc::<f32>(8 * n));
                gemv(&x, GemvWeight::Kept { format, bytes: &bytes }, &out, [8, n, k])
                    .launch(&bench.device, COMPUTE)
                    .unwrap();
                for (i, got) in bench.download(&out).into_iter().enumerate() {
                    let want = means[i % n * k + first + i / n].to_f32();
                    assert_eq!(got, want, "{format}, scale {scale}: row {}, k {}", i % n, first + i / n);
                }
            }
        }
    }
}

#[test]
fn the_same_bits_twice_and_under_every_schedule() {
    for format in Format::ALL {
        let shape = [3, 70, width(format, 1152)];
        let (want, _) = run(emulator(), format, shape);
        for device in [emulator(), random_emulator(1, 1), random_emulator(2, 2), random_emulator(3, 2)] {
            assert_eq!(run(device, format, shape).0, want, "{format}");
        }
    }
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, out) = (bench.alloc::<f32>(256), bench.alloc::<f32>(32));
    let bytes = bench.alloc::<u8>(Format::Q8_0.kept_len(KeptLayout::Rows, 32, 128));
    let run = |format, k, bytes: &View<u8>| {
        gemv(&x, GemvWeight::Kept { format, bytes }, &out, [1, 32, k]).launch(&bench.device, COMPUTE)
    };
    run(Format::Q8_0, 128, &bytes).unwrap();
    let refused = |format, k, bytes: &View<u8>| run(format, k, bytes).unwrap_err();
    assert!(matches!(refused(Format::Q8_0, 96, &bytes), schnell::Error::Unsupported(_)));
    assert!(matches!(refused(Format::Q2K, 128, &bytes), schnell::Error::Unsupported(_)));
    let (short, odd) = (bytes.slice(0, bytes.len() - 1).unwrap(), bytes.slice(1, bytes.len() - 1).unwrap());
    assert!(matches!(refused(Format::Q8_0, 128, &short), schnell::Error::Internal(_)));
    assert!(matches!(refused(Format::Q4_0, 128, &odd), schnell::Error::Internal(_)));
}
