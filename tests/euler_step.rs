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
        // Of three steps, the last.
        let (dts, step) = (bench.upload(&[1.0, 2.0, dt]), bench.upload(&[2i32]));
        let euler = EulerStep {
            latents: &latents,
            velocity: &velocity,
            negative: None,
            latents_bf16: &latents_bf16,
            dt: &dts,
            step: &step,
        };
        euler.launch(&bench.device, COMPUTE).unwrap();
        let want: Vec<f32> = x.iter().zip(&v).map(|(x, v)| x + dt * v).collect();
        assert_same("latents", &bench.download(&latents), &want);
        let rounded: Vec<bf16> = want.iter().map(|w| bf16::from_f32(*w)).collect();
        assert_same("latents_bf16", &bench.download(&latents_bf16), &rounded);

        let n = rng.f32s(count, 2.0);
        let negative = bench.upload(&n);
        let scale = bench.upload(&[2.5f32]);
        EulerStep { negative: Some((&negative, &scale)), ..euler }.launch(&bench.device, COMPUTE).unwrap();
        let want: Vec<f32> = (0..count).map(|i| want[i] + dt * (n[i] + 2.5 * (v[i] - n[i]))).collect();
        assert_same("latents", &bench.download(&latents), &want);
    }
}

#[test]
fn refuses_views_that_are_too_short() {
    let bench = Bench::new(emulator());
    let (latents, velocity, short) = (bench.alloc::<f32>(8), bench.alloc::<f32>(8), bench.alloc::<bf16>(7));
    let (dt, step, rounded) = (bench.alloc::<f32>(1), bench.alloc::<i32>(1), bench.alloc::<bf16>(8));
    let good = EulerStep {
        latents: &latents,
        velocity: &velocity,
        negative: None,
        latents_bf16: &rounded,
        dt: &dt,
        step: &step,
    };
    let (no_dt, no_step) = (dt.slice(0, 0).unwrap(), step.slice(0, 0).unwrap());
    for bad in [
        EulerStep { latents_bf16: &short, ..good },
        EulerStep { dt: &no_dt, ..good },
        EulerStep { step: &no_step, ..good },
        EulerStep { negative: Some((&velocity, &no_dt)), ..good },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))));
    }
}
