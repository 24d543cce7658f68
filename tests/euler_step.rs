//! `euler_step` against the two-rounding formula, bit for bit.

mod common;
use common::*;
use half::bf16;
use schnell::kernels::euler_step::EulerStep;

#[test]
fn equals_the_formula_bit_for_bit() {
    for count in [1, 255, 256, 257, 4096] {
        let bench = Bench::new(emulator());
        let mut rng = Rng(count as u64);
        let (x, v) = (rng.f32s(count, 3.0), rng.f32s(count, 2.0));
        let latents = bench.upload(&x);
        let velocity = bench.upload(&v);
        let latents_bf16 = bench.alloc::<bf16>(count);
        let dt = -0.3f32;
        let step = EulerStep {
            latents: &latents,
            velocity: &velocity,
            negative: None,
            latents_bf16: &latents_bf16,
            dt,
        };
        step.launch(&bench.device, COMPUTE).unwrap();
        let want: Vec<f32> = x.iter().zip(&v).map(|(x, v)| x + dt * v).collect();
        assert_same("latents", &bench.download(&latents), &want);
        let rounded: Vec<bf16> = want.iter().map(|w| bf16::from_f32(*w)).collect();
        assert_same("latents_bf16", &bench.download(&latents_bf16), &rounded);

        let n = rng.f32s(count, 2.0);
        let negative = bench.upload(&n);
        EulerStep { negative: Some((&negative, 2.5)), ..step }.launch(&bench.device, COMPUTE).unwrap();
        let want: Vec<f32> = (0..count).map(|i| want[i] + dt * (n[i] + 2.5 * (v[i] - n[i]))).collect();
        assert_same("latents", &bench.download(&latents), &want);
    }
}

#[test]
fn refuses_views_of_different_lengths() {
    let bench = Bench::new(emulator());
    let (latents, velocity, short) = (bench.alloc::<f32>(8), bench.alloc::<f32>(8), bench.alloc::<bf16>(7));
    let step =
        EulerStep { latents: &latents, velocity: &velocity, negative: None, latents_bf16: &short, dt: -1.0 };
    assert!(matches!(step.launch(&bench.device, COMPUTE), Err(schnell::Error::Input(_))));
}
