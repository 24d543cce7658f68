//! `to_rgb` against the formula, bit for bit.

mod common;
use common::*;
use schnell::kernels::to_rgb::ToRgb;

fn byte(x: f32) -> u8 {
    let unit = x * 0.5 + 0.5;
    let unit = if unit.is_nan() { 0.0 } else { unit.clamp(0.0, 1.0) };
    (unit * 255.0).round_ties_even() as u8
}

/// In order and under a random schedule, which must agree.
fn run(x: &[f32], pitch: usize, pixels: usize) -> Vec<u8> {
    let results: Vec<Vec<u8>> = [emulator(), random_emulator(7, 2)]
        .into_iter()
        .map(|device| {
            let bench = Bench::with_bytes(device, 4 << 20);
            let (x, out) = (bench.upload(x), bench.alloc::<u8>(pixels * 3));
            ToRgb { x: &x, pitch, pixels, out: &out }.launch(&bench.device, COMPUTE).unwrap();
            bench.download(&out)
        })
        .collect();
    assert!(results.iter().all(|r| *r == results[0]));
    results[0].clone()
}

#[test]
fn equals_the_formula_bit_for_bit() {
    for (pixels, pitch) in [(1, 3), (85, 3), (86, 4), (1000, 8), (4096, 3)] {
        let x = Rng(pixels as u64).f32s(pixels * pitch, 1.2);
        let want: Vec<u8> = x.chunks(pitch).flat_map(|p| p[..3].iter().map(|v| byte(*v))).collect();
        assert_eq!(run(&x, pitch, pixels), want, "{pixels} pixels, pitch {pitch}");
    }
}

#[test]
fn extremes_ties_and_values_that_are_no_numbers() {
    let x = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -1.0,
        1.0,
        0.0,
        1e30,
        -1e30,
        -0.0,
        f32::MAX,
        0.9999,
        -f32::NAN,
    ];
    assert_eq!(run(&x, 3, 4), [0, 255, 0, 0, 255, 128, 255, 0, 128, 255, 255, 0]);
    // 0.5 x + 0.5 = i / 510 for odd i: halfway between two bytes, or as near as f32 comes.
    let x: Vec<f32> = (0..510).map(|i| i as f32 / 255.0 - 1.0).collect();
    let want: Vec<u8> = x.iter().map(|v| byte(*v)).collect();
    assert_eq!(run(&x, 3, 170), want);
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, out) = (bench.alloc::<f32>(8 * 9 + 3), bench.alloc::<u8>(30));
    let good = || ToRgb { x: &x, pitch: 8, pixels: 10, out: &out };
    good().launch(&bench.device, COMPUTE).unwrap();
    ToRgb { pixels: 0, ..good() }.launch(&bench.device, COMPUTE).unwrap();
    let (short_x, short_out) = (x.slice(0, 8 * 9 + 2).unwrap(), out.slice(0, 29).unwrap());
    for bad in
        [ToRgb { x: &short_x, ..good() }, ToRgb { out: &short_out, ..good() }, ToRgb { pitch: 2, ..good() }]
    {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
}
