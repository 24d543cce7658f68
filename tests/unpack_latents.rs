//! `unpack_latents` against the definition, bit for bit.

mod common;
use common::*;
use half::bf16;
use schnell::kernels::unpack_latents::UnpackLatents;

#[test]
fn equals_the_definition_bit_for_bit() {
    let shapes = [
        (2, 2, 1, 2),
        (2, 2, 16, 16),
        (4, 6, 3, 8),
        (6, 4, 4, 8),
        (2, 64, 16, 16),
        (64, 2, 16, 24),
        (10, 10, 5, 6),
    ];
    for (height, width, channels, pitch) in shapes {
        let mut rng = Rng((height * width * pitch) as u64);
        let tokens = rng.f32s(height * width * channels, 4.0);
        let (scaling, shift) = (0.3611f32, 0.1159f32);
        let mut want = vec![bf16::ZERO; height * width * pitch];
        for y in 0..height {
            for x in 0..width {
                for c in 0..channels {
                    let token = y / 2 * (width / 2) + x / 2;
                    let value = tokens[token * 4 * channels + 4 * c + y % 2 * 2 + x % 2];
                    want[(y * width + x) * pitch + c] = bf16::from_f32(value / scaling + shift);
                }
            }
        }
        for device in [emulator(), emulator(), random_emulator(7, 2)] {
            let bench = Bench::with_bytes(device, 1 << 20);
            let (tokens, out) = (bench.upload(&tokens), bench.alloc::<bf16>(want.len()));
            UnpackLatents { tokens: &tokens, height, width, channels, scaling, shift, out: &out, pitch }
                .launch(&bench.device, COMPUTE)
                .unwrap();
            let what = format!("{height} x {width} x {channels}, pitch {pitch}");
            assert_same(&what, &bench.download(&out), &want);
        }
    }
}

/// Multiplying by the reciprocal differs from dividing about once in a hundred thousand latents; these are such.
#[test]
fn divides() {
    let (scaling, shift) = (0.3611f32, 0.1159f32);
    let mut rng = Rng(1);
    let mut tokens = Vec::new();
    while tokens.len() < 64 {
        let value = rng.uniform() * 4.0;
        if bf16::from_f32(value / scaling + shift) != bf16::from_f32(value * (1.0 / scaling) + shift) {
            tokens.push(value);
        }
    }
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (view, out) = (bench.upload(&tokens), bench.alloc::<bf16>(64));
    UnpackLatents { tokens: &view, height: 2, width: 2, channels: 16, scaling, shift, out: &out, pitch: 16 }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    let got = bench.download(&out);
    for (i, value) in tokens.iter().enumerate() {
        let (c, pixel) = (i / 4, i % 4);
        assert_eq!(got[pixel * 16 + c], bf16::from_f32(value / scaling + shift));
    }
}

#[test]
fn refusals() {
    let bench = Bench::with_bytes(emulator(), 1 << 20);
    let (tokens, out) = (bench.alloc::<f32>(4 * 4 * 16), bench.alloc::<bf16>(4 * 4 * 16 + 1));
    let good = || UnpackLatents {
        tokens: &tokens,
        height: 4,
        width: 4,
        channels: 16,
        scaling: 1.0,
        shift: 0.0,
        out: &out,
        pitch: 16,
    };
    good().launch(&bench.device, COMPUTE).unwrap();
    let (short_tokens, short_out) = (tokens.slice(0, 255).unwrap(), out.slice(0, 255).unwrap());
    let odd_out = out.slice(1, 256).unwrap();
    for bad in [
        UnpackLatents { tokens: &short_tokens, ..good() },
        UnpackLatents { out: &short_out, ..good() },
        UnpackLatents { height: 3, ..good() },
        UnpackLatents { width: 3, ..good() },
        UnpackLatents { pitch: 15, ..good() },
    ] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Internal(_))), "{bad:?}");
    }
    for bad in [UnpackLatents { pitch: 17, height: 2, ..good() }, UnpackLatents { out: &odd_out, ..good() }] {
        assert!(matches!(bad.launch(&bench.device, COMPUTE), Err(schnell::Error::Unsupported(_))), "{bad:?}");
    }
}
