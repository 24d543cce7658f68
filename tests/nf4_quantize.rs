//! `nf4_quantize` against a plain quantizer, bit for bit, in both layouts.

mod common;
#[path = "common/nf4.rs"]
mod nf4;
use common::*;
use half::bf16;
use nf4::{quantize, thresholds};
use schnell::device::Device;
use schnell::kernels::nf4_quantize::{Nf4Layout, Nf4Quantize, Nf4Source, fragment_offset};

struct Case {
    rows: usize,
    k: usize,
    pitch: usize,
    first_row: usize,
    n: usize,
    layout: Nf4Layout,
    from_bf16: bool,
}

/// The whole destination, poisoned where nothing was written.
fn run(device: Device, case: &Case, weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let bench = Bench::with_bytes(device, 4 << 20);
    let f32s = bench.upload(weights);
    let bf16s = bench.upload(&weights.iter().map(|w| bf16::from_f32(*w)).collect::<Vec<_>>());
    let codes = bench.alloc::<u8>(case.layout.codes_len(case.n, case.k));
    let absmax = bench.alloc::<f32>(case.layout.absmax_len(case.n, case.k));
    let nonfinite = bench.upload(&[0u32]);
    Nf4Quantize {
        src: if case.from_bf16 { Nf4Source::Bf16(&bf16s) } else { Nf4Source::F32(&f32s) },
        pitch: case.pitch,
        rows: case.rows,
        k: case.k,
        first_row: case.first_row,
        n: case.n,
        layout: case.layout,
        codes: &codes,
        absmax: &absmax,
        nonfinite: &nonfinite,
    }
    .launch(&bench.device, COMPUTE)
    .unwrap();
    let rows = || weights.chunks(case.pitch).map(|row| &row[..case.k]);
    let found = rows().flatten().filter(|w| !w.is_finite()).count();
    assert_eq!(bench.download(&nonfinite), [found as u32]);
    (bench.download(&codes), bench.download(&absmax))
}

fn inputs(case: &Case) -> Vec<f32> {
    let mut rng = Rng((case.rows * case.k) as u64);
    let mut weights = rng.f32s(case.rows * case.pitch, 0.1);
    if case.from_bf16 {
        weights.iter_mut().for_each(|w| *w = round_bf16(*w));
    }
    weights
}

fn check(case: &Case) {
    let weights = inputs(case);
    let (got_codes, got_absmax) = run(emulator(), case, &weights);
    let dense: Vec<f32> = weights.chunks(case.pitch).flat_map(|row| row[..case.k].to_vec()).collect();
    let (codes, absmax) = quantize(&dense);
    let padded = case.n.next_multiple_of(64);
    let mut want_codes = vec![0xffu8; case.layout.codes_len(case.n, case.k)];
    let mut want_absmax = vec![f32::from_bits(u32::MAX); case.layout.absmax_len(case.n, case.k)];
    for row in 0..case.rows {
        let n = case.first_row + row;
        for k in (0..case.k).step_by(2) {
            let at = match case.layout {
                Nf4Layout::Rows => n * case.k / 2 + k / 2,
                Nf4Layout::Fragments => fragment_offset(n, k, case.k),
            };
            want_codes[at] = codes[row * case.k + k] << 4 | codes[row * case.k + k + 1];
        }
        for block in 0..case.k / 64 {
            let at = match case.layout {
                Nf4Layout::Rows => n * (case.k / 64) + block,
                Nf4Layout::Fragments => block * padded + n,
            };
            want_absmax[at] = absmax[row * (case.k / 64) + block];
        }
    }
    assert_same("codes", &got_codes, &want_codes);
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&got_absmax), bits(&want_absmax));
}

#[test]
fn both_layouts_and_sources() {
    for layout in [Nf4Layout::Rows, Nf4Layout::Fragments] {
        for from_bf16 in [false, true] {
            check(&Case { rows: 1, k: 64, pitch: 64, first_row: 0, n: 1, layout, from_bf16 });
            check(&Case { rows: 64, k: 128, pitch: 128, first_row: 0, n: 64, layout, from_bf16 });
            check(&Case { rows: 70, k: 192, pitch: 200, first_row: 37, n: 130, layout, from_bf16 });
            check(&Case { rows: 3, k: 3072, pitch: 3072, first_row: 63, n: 66, layout, from_bf16 });
        }
    }
}

/// Whatever they are: also codes and absmax that no quantizer would give back.
#[test]
fn codes_that_are_there_already_stay_what_they_are() {
    for layout in [Nf4Layout::Rows, Nf4Layout::Fragments] {
        let (rows, k, pitch, first_row, n) = (70, 192, 256, 37, 130);
        let bench = Bench::with_bytes(emulator(), 4 << 20);
        let mut rng = Rng(7);
        let stored: Vec<u8> = (0..rows * pitch / 2).map(|_| (rng.bits() >> 32) as u8).collect();
        let mut scales = rng.f32s(rows * k / 64, 0.1);
        scales[..4].copy_from_slice(&[0.0, f32::from_bits(1), -0.0, f32::MAX]);
        let codes = bench.alloc::<u8>(layout.codes_len(n, k));
        let absmax = bench.alloc::<f32>(layout.absmax_len(n, k));
        let nonfinite = bench.upload(&[0u32]);
        let (src_codes, src_absmax) = (bench.upload(&stored), bench.upload(&scales));
        let src = Nf4Source::Nf4(&src_codes, &src_absmax);
        Nf4Quantize {
            src,
            pitch,
            rows,
            k,
            first_row,
            n,
            layout,
            codes: &codes,
            absmax: &absmax,
            nonfinite: &nonfinite,
        }
        .launch(&bench.device, COMPUTE)
        .unwrap();
        let mut want_codes = vec![0xffu8; layout.codes_len(n, k)];
        let mut want_absmax = vec![u32::MAX; layout.absmax_len(n, k)];
        for row in 0..rows {
            let to = first_row + row;
            for byte in 0..k / 2 {
                let at = match layout {
                    Nf4Layout::Rows => to * k / 2 + byte,
                    Nf4Layout::Fragments => fragment_offset(to, 2 * byte, k),
                };
                want_codes[at] = stored[row * pitch / 2 + byte];
            }
            for block in 0..k / 64 {
                let at = match layout {
                    Nf4Layout::Rows => to * (k / 64) + block,
                    Nf4Layout::Fragments => block * n.next_multiple_of(64) + to,
                };
                want_absmax[at] = scales[row * (k / 64) + block].to_bits();
            }
        }
        assert_same("codes", &bench.download(&codes), &want_codes);
        let got: Vec<u32> = bench.download(&absmax).iter().map(|v| v.to_bits()).collect();
        assert_eq!(got, want_absmax, "{layout:?}");
        assert_eq!(bench.download(&nonfinite), [0]);
    }
}

#[test]
fn the_golden_block_of_bitsandbytes() {
    let weights: Vec<f32> = (0..64).map(|i| ((37 * i % 64) as f32 - 31.5) / 32.0).collect();
    let case =
        Case { rows: 1, k: 64, pitch: 64, first_row: 0, n: 1, layout: Nf4Layout::Rows, from_bf16: false };
    let (codes, absmax) = run(emulator(), &case, &weights);
    let hex: String = codes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "091c3e60a2d4f81b2e5f91c3e60a1d4f71b2e5f81c3e60a1d4e70b2d4f81c2e5");
    assert_eq!(absmax, [0.984375]);
}

#[test]
fn values_on_a_threshold_take_the_lower_code() {
    // absmax 1, so that the normalized weight is the weight.
    let mut weights = vec![1.0f32];
    let mut want = vec![15u8];
    for (code, threshold) in thresholds().into_iter().enumerate() {
        let next = |t: f32, up: bool| {
            f32::from_bits(t.to_bits().wrapping_add(if (t > 0.0) == up { 1 } else { u32::MAX }))
        };
        weights.extend([next(threshold, false), threshold, next(threshold, true)]);
        want.extend([code as u8, code as u8, code as u8 + 1]);
    }
    weights.resize(64, 0.0);
    want.resize(64, 7);
    let case =
        Case { rows: 1, k: 64, pitch: 64, first_row: 0, n: 1, layout: Nf4Layout::Rows, from_bf16: false };
    let (codes, absmax) = run(emulator(), &case, &weights);
    let got: Vec<u8> = codes.iter().flat_map(|b| [b >> 4, b & 15]).collect();
    assert_eq!(got, want);
    assert_eq!(absmax, [1.0]);
}

#[test]
fn a_block_of_zeros_has_code_seven_and_no_absmax() {
    let mut weights = vec![0.0f32; 192];
    weights[64..128].copy_from_slice(&Rng(1).f32s(64, 1.0));
    weights[1] = -0.0;
    let case =
        Case { rows: 1, k: 192, pitch: 192, first_row: 0, n: 1, layout: Nf4Layout::Rows, from_bf16: false };
    let (codes, absmax) = run(emulator(), &case, &weights);
    assert!(codes[..32].iter().chain(&codes[64..]).all(|b| *b == 0x77));
    assert_eq!((absmax[0].to_bits(), absmax[2].to_bits()), (0, 0));
    assert!(absmax[1] > 0.0);
}

#[test]
fn fragments_are_what_the_gemm_reads() {
    // Every byte once, and the first lane's first 16 bytes spelled out.
    let (n, k) = (128, 192);
    let mut seen = vec![false; n * k / 2];
    for row in 0..n {
        for column in (0..k).step_by(2) {
            let at = fragment_offset(row, column, k);
            assert!(!std::mem::replace(&mut seen[at], true), "({row}, {column}) shares a byte");
        }
    }
    assert!(seen.iter().all(|s| *s));
    let want = [(0, 0), (1, 0), (0, 8), (1, 8), (0, 16), (1, 16), (0, 24), (1, 24)];
    for (byte, (row, column)) in want.into_iter().enumerate() {
        assert_eq!(fragment_offset(row, column, k), byte);
    }
    // Lane 4 g + t: features 8 g.., columns 2 t..; tile i: features 2 i..
    assert_eq!(fragment_offset(8, 0, k), 4 * 16);
    assert_eq!(fragment_offset(0, 2, k), 16);
    assert_eq!(fragment_offset(2, 0, k), 512);
    assert_eq!(fragment_offset(0, 64, k), 2048);
    assert_eq!(fragment_offset(64, 0, k), 3 * 2048);
}

#[test]
fn the_same_bits_under_every_schedule() {
    let case = Case {
        rows: 9,
        k: 128,
        pitch: 128,
        first_row: 5,
        n: 20,
        layout: Nf4Layout::Fragments,
        from_bf16: true,
    };
    let weights = inputs(&case);
    let bits = |(codes, absmax): (Vec<u8>, Vec<f32>)| {
        (codes, absmax.iter().map(|a| a.to_bits()).collect::<Vec<_>>())
    };
    let want = bits(run(emulator(), &case, &weights));
    for device in [emulator(), random_emulator(1, 1), random_emulator(2, 2), random_emulator(3, 2)] {
        assert_eq!(bits(run(device, &case, &weights)), want);
    }
}

#[test]
fn what_is_not_finite_is_counted() {
    for from_bf16 in [false, true] {
        for layout in [Nf4Layout::Rows, Nf4Layout::Fragments] {
            let case = Case { rows: 3, k: 192, pitch: 192, first_row: 0, n: 3, layout, from_bf16 };
            let mut weights = inputs(&case);
            // Neighbors of a pair, the ends of blocks, a whole block; `run` counts them.
            for at in [0, 1, 63, 64, 3 * 192 - 1] {
                weights[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][at % 3];
            }
            weights[256..320].fill(f32::NAN);
            run(emulator(), &case, &weights);
        }
    }
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let src = bench.alloc::<f32>(4 * 128);
    let src_bf16 = bench.alloc::<bf16>(4 * 128 - 1);
    let (codes, absmax) = (bench.alloc::<u8>(64 * 64), bench.alloc::<f32>(2 * 64));
    let (nonfinite, nothing) = (bench.alloc::<u32>(1), bench.alloc::<u32>(0));
    let good = || Nf4Quantize {
        src: Nf4Source::F32(&src),
        pitch: 128,
        rows: 4,
        k: 128,
        first_row: 3,
        n: 7,
        layout: Nf4Layout::Fragments,
        codes: &codes,
        absmax: &absmax,
        nonfinite: &nonfinite,
    };
    good().launch(&bench.device, COMPUTE).unwrap();
    let short_src = src.slice(0, 4 * 128 - 1).unwrap();
    let (short_codes, short_absmax) = (codes.slice(0, 64 * 64 - 1).unwrap(), absmax.slice(0, 127).unwrap());
    for bad in [
        Nf4Quantize { src: Nf4Source::F32(&short_src), ..good() },
        Nf4Quantize { src: Nf4Source::Bf16(&src_bf16), ..good() },
        Nf4Quantize { codes: &short_codes, ..good() },
        Nf4Quantize { absmax: &short_absmax, ..good() },
        Nf4Quantize { nonfinite: &nothing, ..good() },
        Nf4Quantize { pitch: 127, ..good() },
        Nf4Quantize { first_row: 4, ..good() },
        Nf4Quantize { first_row: usize::MAX, ..good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    for k in [0, 32, 100] {
        let bad = Nf4Quantize { k, ..good() };
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Unsupported(_))), "{bad:?}");
    }
}
