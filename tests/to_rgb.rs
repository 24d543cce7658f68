//! `to_rgb` against the formula, bit for bit.

mod common;
use common::*;
use schnell::kernels::to_rgb::{RgbOut, ToRgb};

fn unit(x: f32) -> f32 {
    let unit = x * 0.5 + 0.5;
    if unit.is_nan() { 0.0 } else { unit.clamp(0.0, 1.0) }
}

fn byte(x: f32) -> u8 {
    (unit(x) * 255.0).round_ties_even() as u8
}

/// Color by color.
fn planar<T: Copy>(rgb: &[T]) -> Vec<T> {
    (0..3).flat_map(|c| rgb.chunks(3).map(move |pixel| pixel[c])).collect()
}

/// In order and under a random schedule, which must agree; and so must all that can become of pixels.
fn run(x: &[f32], pitch: usize, pixels: usize) -> (Vec<u8>, Vec<f32>) {
    let results: Vec<(Vec<u8>, Vec<f32>)> = [emulator(), random_emulator(7, 2)]
        .into_iter()
        .map(|device| {
            let bench = Bench::with_bytes(device, 4 << 20);
            let x = bench.upload(x);
            let launch = |out| ToRgb { x: &x, pitch, pixels, out }.launch(&bench.device, COMPUTE).unwrap();
            let (bytes, floats) = (bench.alloc::<u8>(pixels * 3), bench.alloc::<f32>(pixels * 3));
            launch(RgbOut::U8(&bytes));
            launch(RgbOut::F32(&floats));
            let (rgb, units) = (bench.download(&bytes), bench.download(&floats));
            launch(RgbOut::U8Planar(&bytes));
            launch(RgbOut::F32Planar(&floats));
            assert_eq!(bench.download(&bytes), planar(&rgb));
            assert_eq!(bench.download(&floats), planar(&units));
            (rgb, units)
        })
        .collect();
    assert!(results.iter().all(|r| *r == results[0]));
    results[0].clone()
}

#[test]
fn equals_the_formula_bit_for_bit() {
    for (pixels, pitch) in [(1, 3), (85, 3), (86, 4), (1000, 8), (4096, 3)] {
        let x = Rng(pixels as u64).f32s(pixels * pitch, 1.2);
        let of = |x: &[f32]| -> Vec<f32> { x.chunks(pitch).flat_map(|p| p[..3].to_vec()).collect() };
        let (bytes, units) = run(&x, pitch, pixels);
        assert_eq!(bytes, of(&x).into_iter().map(byte).collect::<Vec<_>>(), "{pixels} pixels, pitch {pitch}");
        assert_eq!(units, of(&x).into_iter().map(unit).collect::<Vec<_>>(), "{pixels} pixels, pitch {pitch}");
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
    let (bytes, units) = run(&x, 3, 4);
    assert_eq!(bytes, [0, 255, 0, 0, 255, 128, 255, 0, 128, 255, 255, 0]);
    assert_eq!(units[..10], [0.0, 1.0, 0.0, 0.0, 1.0, 0.5, 1.0, 0.0, 0.5, 1.0]);
    // 0.5 x + 0.5 = i / 510 for odd i: halfway between two bytes, or as near as f32 comes.
    let x: Vec<f32> = (0..510).map(|i| i as f32 / 255.0 - 1.0).collect();
    let want: Vec<u8> = x.iter().map(|v| byte(*v)).collect();
    assert_eq!(run(&x, 3, 170).0, want);
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, out) = (bench.alloc::<f32>(8 * 9 + 3), bench.alloc::<u8>(30));
    let floats = bench.alloc::<f32>(30);
    let good = || ToRgb { x: &x, pitch: 8, pixels: 10, out: RgbOut::U8(&out) };
    good().launch(&bench.device, COMPUTE).unwrap();
    ToRgb { out: RgbOut::F32(&floats), ..good() }.launch(&bench.device, COMPUTE).unwrap();
    ToRgb { pixels: 0, ..good() }.launch(&bench.device, COMPUTE).unwrap();
    let (short_x, short_out) = (x.slice(0, 8 * 9 + 2).unwrap(), out.slice(0, 29).unwrap());
    let short_floats = floats.slice(0, 29).unwrap();
    for bad in [
        ToRgb { x: &short_x, ..good() },
        ToRgb { out: RgbOut::U8(&short_out), ..good() },
        ToRgb { out: RgbOut::U8Planar(&short_out), ..good() },
        ToRgb { out: RgbOut::F32(&short_floats), ..good() },
        ToRgb { out: RgbOut::F32Planar(&short_floats), ..good() },
        ToRgb { pitch: 2, ..good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
}
