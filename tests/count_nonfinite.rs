//! `count_nonfinite` against counting.

mod common;
use common::*;
use schnell::kernels::count_nonfinite::CountNonfinite;

#[test]
fn counts_and_adds() {
    for count in [0, 1, 31, 32, 33, 255, 256, 257, 4095, 4096, 4097, 10000] {
        let mut rng = Rng(count as u64);
        let mut x = rng.f32s(count, 3.0);
        for v in &mut x {
            match rng.bits() % 9 {
                0 => *v = f32::NAN,
                1 => *v = f32::INFINITY,
                2 => *v = f32::NEG_INFINITY,
                3 => *v = -f32::NAN,
                4 => *v = f32::MAX,
                5 => *v = f32::MIN_POSITIVE / 2.0,
                _ => {}
            }
        }
        let want = x.iter().filter(|v| !v.is_finite()).count() as u32;
        for device in [emulator(), random_emulator(1, 2), random_emulator(2, 1)] {
            let bench = Bench::with_bytes(device, 1 << 20);
            let (x, counter) = (bench.upload(&x), bench.upload(&[100u32, 7]));
            for _ in 0..2 {
                CountNonfinite::all(&x, &counter).launch(&bench.device, COMPUTE).unwrap();
            }
            assert_eq!(bench.download(&counter), [100 + 2 * want, 7], "{count} elements");
        }
    }
}

#[test]
fn one_bad_value_anywhere_is_found() {
    let count = 4096 + 300;
    for at in [0, 1, 31, 32, 255, 256, 4095, 4096, 4351, 4352, count - 1] {
        let mut x = vec![1.0f32; count];
        x[at] = f32::NAN;
        let bench = Bench::with_bytes(emulator(), 1 << 20);
        let (x, counter) = (bench.upload(&x), bench.upload(&[0u32]));
        CountNonfinite::all(&x, &counter).launch(&bench.device, COMPUTE).unwrap();
        assert_eq!(bench.download(&counter), [1], "at {at}");
    }
}

#[test]
fn refuses_an_empty_counter() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (x, counter) = (bench.alloc::<f32>(8), bench.alloc::<u32>(1).slice(0, 0).unwrap());
    let bad = CountNonfinite::all(&x, &counter);
    assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))));
}

/// The counter that a number in memory names.
#[test]
fn counts_into_the_counter_of_an_index() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let x = bench.upload(&[1.0, f32::NAN, 2.0, f32::INFINITY]);
    let (counter, index) = (bench.upload(&[1u32, 2, 3]), bench.upload(&[1i32]));
    let count = CountNonfinite { index: Some(&index), ..CountNonfinite::all(&x, &counter) };
    count.launch(&bench.device, COMPUTE).unwrap();
    assert_eq!(bench.download(&counter), [1, 4, 3]);
    let none = index.slice(0, 0).unwrap();
    let bad = CountNonfinite { index: Some(&none), ..count };
    assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))));
}
