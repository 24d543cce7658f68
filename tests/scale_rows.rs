//! `scale_rows` against a plain loop: exact, whatever the rows hold.

mod common;
use common::*;
use half::{bf16, f16};
use schnell::device::{Device, View};
use schnell::kernels::scale_rows::ScaleRows;

/// Rows of every kind: usual ones, the largest and smallest numbers, one outlier, zeros.
fn rows(num: usize, width: usize) -> Vec<bf16> {
    let mut rng = Rng((num * 100_000 + width) as u64);
    let mut x = Vec::new();
    for row in 0..num {
        let mut values = rng.bf16s(width, 1.0);
        let at = rng.bits() as usize % width;
        match row % 8 {
            0 => {}
            1 => values[at] = bf16::MAX,
            2 => values[at] = bf16::MIN,
            3 => values.iter_mut().for_each(|v| *v = bf16::from_f32(v.to_f32() * 1e-38)),
            4 => values.fill(bf16::ZERO),
            5 => values
                .iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v = bf16::from_bits((i as u16 % 3) | (v.to_bits() & 0x8000))),
            6 => values.iter_mut().for_each(|v| *v = bf16::from_f32(v.to_f32() * 1e38)),
            _ => values[at] = bf16::from_f32(3000.0),
        }
        x.extend(values);
    }
    x
}

/// What becomes of a row, and its scale: from the definition, in f64.
fn reference(row: &[bf16]) -> (Vec<f16>, f32) {
    let most = row.iter().map(|v| f64::from(v.to_f32()).abs()).filter(|v| v.is_finite()).fold(0.0, f64::max);
    // From 2^-119 on, below which f32 has no normal number for scale or inverse.
    let exponent = if most > 0.0 { most.log2().floor().max(-119.0) } else { -119.0 };
    let scale = (exponent - 7.0).exp2();
    (row.iter().map(|v| f16::from_f64(f64::from(v.to_f32()) / scale)).collect(), scale as f32)
}

fn run(device: Device, x: &[bf16], [rows, width, pitch]: [usize; 3]) -> (Vec<f16>, Vec<f32>) {
    let bench = Bench::with_bytes(device, 4 << 20);
    let mut padded = vec![bf16::from_bits(u16::MAX); rows * pitch];
    for r in 0..rows {
        padded[r * pitch..r * pitch + width].copy_from_slice(&x[r * width..(r + 1) * width]);
    }
    end_rows(&mut padded, pitch, width, bf16::from_bits(u16::MAX));
    let (x, scale) = (bench.upload(&padded), bench.alloc::<f32>(rows));
    ScaleRows { x: &x, pitch, rows, width, scale: &scale }.launch(&bench.device, COMPUTE).unwrap();
    let halves = without_gaps(&bench.download(&x), pitch, width);
    (halves.into_iter().map(|v| f16::from_bits(v.to_bits())).collect(), bench.download(&scale))
}

#[test]
fn rows_are_scaled_exactly_and_stay_within_256() {
    let shapes = [
        [1, 8, 8],
        [9, 64, 72],
        [8, 3072, 3072],
        [9, 2056, 2064],
        [8, 16384, 16384],
        [8, 16392, 16400],
        [3, 40000, 40008],
    ];
    for [num, width, pitch] in shapes {
        let x = rows(num, width);
        let (got, scales) = run(emulator(), &x, [num, width, pitch]);
        for (row, (x, got)) in x.chunks(width).zip(got.chunks(width)).enumerate() {
            let what = format!("row {row} of {num} x {width}");
            let (want, scale) = reference(x);
            assert_eq!(scales[row], scale, "{what}: its scale");
            let bits = |halves: &[f16]| halves.iter().map(|v| v.to_bits()).collect::<Vec<u16>>();
            assert_same(&what, &bits(got), &bits(&want));
            assert!(got.iter().all(|v| v.to_f32().abs() < 256.0), "{what} is not within 256");
            // Nothing but numbers far below the row's largest has lost anything.
            let largest = x.iter().fold(0f32, |most, v| most.max(v.to_f32().abs()));
            for (x, got) in x.iter().zip(got) {
                let back = f64::from(got.to_f32()) * f64::from(scale);
                let is_small = x.to_f32().abs() < largest * 2f32.powi(-22) || largest < 2f32.powi(-119);
                assert!(back == f64::from(x.to_f32()) || is_small, "{what}: {x} is {back} now");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so_and_leaves_other_rows_alone() {
    for bad in [bf16::INFINITY, bf16::NEG_INFINITY, bf16::NAN] {
        let (num, width) = (3, 64);
        let mut x = rows(1, num * width);
        x[width + 17] = bad;
        let (got, scales) = run(emulator(), &x, [num, width, width]);
        for (i, got) in got.iter().enumerate() {
            assert_eq!(got.is_finite(), i != width + 17, "number {i} beside {bad}");
        }
        assert_eq!(got[width + 17].is_nan(), bad.is_nan());
        assert!(scales.iter().all(|scale| scale.is_normal()), "{scales:?}");
    }
}

#[test]
fn schedules_do_not_change_a_bit() {
    let x = rows(5, 3080);
    let bits = |(halves, scales): (Vec<f16>, Vec<f32>)| {
        (halves.iter().map(|v| v.to_bits()).collect::<Vec<u16>>(), scales)
    };
    let want = bits(run(emulator(), &x, [5, 3080, 3080]));
    for seed in 0..10 {
        assert_eq!(bits(run(random_emulator(seed, 2), &x, [5, 3080, 3080])), want, "seed {seed}");
    }
}

#[test]
fn refuses_what_it_cannot_take() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, scale) = (bench.alloc::<bf16>(64 * 8), bench.alloc::<f32>(8));
    let run = |x: &View<bf16>, rows, width, pitch, scale: &View<f32>| {
        let said = ScaleRows { x, pitch, rows, width, scale }.launch(&bench.device, COMPUTE);
        said.unwrap_err().to_string()
    };
    assert!(run(&x, 8, 60, 64, &scale).contains("8 rows of 60, 64 apart"));
    assert!(run(&x, 8, 56, 60, &scale).contains("8 rows of 56, 60 apart"));
    assert!(run(&x, 0, 64, 64, &scale).contains("0 rows"));
    assert!(run(&x, 8, 0, 64, &scale).contains("rows of 0"));
    assert!(run(&x, 4, 72, 64, &scale).contains("`pitch` = 64"));
    assert!(run(&x, 9, 64, 64, &scale).contains("`x` has 512"));
    assert!(run(&x, 8, 64, 64, &scale.slice(0, 7).unwrap()).contains("`scale` has 7"));
    assert!(run(&x.slice(4, 448).unwrap(), 7, 64, 64, &scale).contains("16-byte aligned"));
}
