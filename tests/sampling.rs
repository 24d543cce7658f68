//! Sampling against PyTorch, numpy, diffusers and transformers: recorded values, and the plain formula where there
//! is one.

use std::path::Path;

use schnell::Error;
use schnell::config::{PipelineConfig, SchedulerConfig};
use schnell::sampling::sigmas::dynamic_mu;
use schnell::sampling::{
    Generator, NoiseKind, TimeRounding, guidance_embedding, noise, pack, rope_tables, schnell_sigmas, sigmas,
    t5_bucket, timestep_embedding, unpack,
};
use schnell::weights::SafeTensors;

// ---- sigmas ----------------------------------------------------------------------------------------------

#[test]
fn schnell_sigmas_are_even() {
    assert_eq!(schnell_sigmas(1), [1.0, 0.0]);
    assert_eq!(schnell_sigmas(2), [1.0, 0.5, 0.0]);
    assert_eq!(schnell_sigmas(4), [1.0, 0.75, 0.5, 0.25, 0.0]);
    assert_eq!(schnell_sigmas(8), [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]);
}

/// CRC of the f32 bytes of `numpy.linspace(1, 1 / N, N).astype(float32)` for N = 1..=50, one after another.
#[test]
fn schnell_sigmas_equal_numpy_to_the_bit() {
    let all: Vec<f32> = (1..=50)
        .flat_map(|steps| {
            let sigmas = schnell_sigmas(steps);
            assert_eq!(sigmas.len(), steps + 1);
            assert_eq!(sigmas[steps], 0.0);
            sigmas[..steps].to_vec()
        })
        .collect();
    assert_eq!(all.len(), 1275);
    assert_eq!(crc32(&f32_bytes(&all)), 0x4a9faddd);
}

/// The same CRC after diffusers' own shifting of those arrays: statically by 3, dynamically for 1024 tokens.
#[test]
fn shifted_sigmas_equal_numpy_to_the_bit() {
    for (dynamic_shifting, crc) in [(false, 0x414c54ef), (true, 0xdef431d1)] {
        let config = SchedulerConfig { shift: 3.0, dynamic_shifting, ..schnell() };
        let all: Vec<f32> =
            (1..=50).flat_map(|steps| sigmas(&config, steps, 1024).unwrap()[..steps].to_vec()).collect();
        assert_eq!(crc32(&f32_bytes(&all)), crc, "dynamic: {dynamic_shifting}");
    }
}

fn schnell() -> SchedulerConfig {
    PipelineConfig::schnell().scheduler
}

#[test]
fn unshifted_config_gives_schnell_sigmas() {
    for steps in 1..=50 {
        assert_eq!(sigmas(&schnell(), steps, 1024).unwrap(), schnell_sigmas(steps));
    }
}

#[test]
fn static_shift_is_the_formula() {
    let config = SchedulerConfig { shift: 3.0, ..schnell() };
    let got = sigmas(&config, 4, 1024).unwrap();
    assert_eq!(got, [1.0, 0.9, 0.75, 0.5, 0.0]);
}

#[test]
fn dynamic_shift_is_that_of_dev() {
    let config = SchedulerConfig { shift: 3.0, dynamic_shifting: true, ..schnell() };
    for (tokens, mu) in [(256, 0.5), (1024, 0.63), (2304, 0.846667), (4096, 1.15), (8192, 1.843333)] {
        assert!((dynamic_mu(&config, tokens) - mu).abs() < 1e-6, "{tokens} tokens");
    }
    let close = |got: &[f32], expected: &[f32]| {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 2e-7, "{got} for {expected}");
        }
    };
    let four = sigmas(&config, 4, 4096).unwrap();
    assert_eq!(four.len(), 5);
    close(&four, &[1.0, 0.904_530_8, 0.759_510_9, 0.512_844_1, 0.0]);
    let many = sigmas(&config, 28, 4096).unwrap();
    close(&many[..4], &[1.0, 0.988_408_6, 0.976_222_5, 0.963_394_4]);
    close(&many[26..], &[0.195_454_6, 0.104_721, 0.0]);
}

#[test]
fn no_steps_is_an_input_error() {
    assert!(matches!(sigmas(&schnell(), 0, 1024), Err(Error::Input(_))));
}

// ---- noise -----------------------------------------------------------------------------------------------

/// Recorded from PyTorch 2.5 to 2.15 on x86-64: CRC over the little-endian bytes of `torch.randn`, in its own dtype.
#[test]
fn noise_equals_torch_to_the_bit() {
    const SHAPE_1024: [usize; 4] = [1, 16, 128, 128];
    const SHAPE_512: [usize; 4] = [1, 16, 64, 64];
    for (kind, seed, shape, crc) in [
        (NoiseKind::F32, 0, SHAPE_1024, 0xbf901766),
        (NoiseKind::F32, 42, SHAPE_1024, 0x0fa124cc),
        (NoiseKind::F32, 0, SHAPE_512, 0xcd15fd6e),
        (NoiseKind::F32, 42, SHAPE_512, 0xe03f61b3),
        (NoiseKind::Bf16, 0, SHAPE_1024, 0x6b479eea),
        (NoiseKind::Bf16, 42, SHAPE_1024, 0x8d0485d4),
        (NoiseKind::Bf16Legacy, 0, SHAPE_1024, 0x396b89cd),
        (NoiseKind::Bf16Legacy, 42, SHAPE_1024, 0x2013f503),
    ] {
        let values = noise(kind, seed, &shape);
        let bytes = match kind {
            NoiseKind::F32 => f32_bytes(&values),
            NoiseKind::Bf16 | NoiseKind::Bf16Legacy => bf16_bytes(&values),
        };
        assert_eq!(crc32(&bytes), crc, "{kind:?}, seed {seed}, {shape:?}");
    }
}

/// `tests/golden/noise.json`: more seeds and sizes, up to the largest seed.
#[test]
fn noise_equals_the_goldens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/noise.json");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rows = golden["noise"].as_array().unwrap();
    assert!(rows.len() >= 48);
    for row in rows {
        let side = |key: &str| row[key].as_u64().unwrap() as usize / 8;
        let (seed, shape) = (row["seed"].as_u64().unwrap(), [1, 16, side("height"), side("width")]);
        for (kind, name) in
            [(NoiseKind::F32, "f32"), (NoiseKind::Bf16, "bf16"), (NoiseKind::Bf16Legacy, "bf16-legacy")]
        {
            let values = noise(kind, seed, &shape);
            for (got, expected) in values.iter().zip(row[name]["first"].as_array().unwrap()) {
                assert_eq!(*got, expected.as_f64().unwrap() as f32, "{name}, seed {seed}, {shape:?}");
            }
            let bytes = if kind == NoiseKind::F32 { f32_bytes(&values) } else { bf16_bytes(&values) };
            let crc = format!("{:08x}", crc32(&bytes));
            assert_eq!(crc, row[name]["crc32"].as_str().unwrap(), "{name}, seed {seed}, {shape:?}");
        }
    }
}

/// What diffusers fed its transformer: noise packed into tokens, and the sigmas.
#[test]
fn packed_noise_and_sigmas_equal_what_diffusers_used() {
    for pipeline in ["a", "b"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(pipeline);
        let cases: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("cases.json")).unwrap()).unwrap();
        let goldens = SafeTensors::open(&dir.join("goldens.safetensors")).unwrap();
        for case in cases["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let number = |key: &str| case[key].as_u64().unwrap();
            let (height, width) = (number("height") as usize / 8, number("width") as usize / 8);
            let latents = noise(NoiseKind::F32, number("seed"), &[1, 16, height, width]);
            let tokens = pack(&latents, 16, height, width).unwrap();
            let crc = format!("{:08x}", crc32(&f32_bytes(&tokens)));
            assert_eq!(crc, case["noise"]["crc32"].as_str().unwrap(), "{name}");
            // Variants of a case keep only the stages that differ.
            if let Some(sigmas) = goldens.get(&format!("{name}.sigmas")) {
                assert_eq!(schnell_sigmas(number("steps") as usize), sigmas.read_f32().unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn noise_starts_and_ends_as_recorded() {
    let values = noise(NoiseKind::F32, 0, &[1, 16, 128, 128]);
    let bits: Vec<u32> = values[..4].iter().map(|v| v.to_bits()).collect();
    assert_eq!(bits, [0xbf901b85, 0xbf93808a, 0xbe804bd6, 0xbede255d]);
    assert_eq!(values[262_142..], [-1.213_867_7, 0.076_859_92]);
    let values = noise(NoiseKind::F32, 42, &[1, 16, 128, 128]);
    let bits: Vec<u32> = values[..4].iter().map(|v| v.to_bits()).collect();
    assert_eq!(bits, [0x3ff6a529, 0x3fbe5f53, 0x3f669567, 0xc006c0db]);
    assert_eq!(values[262_142..], [-1.762_245_8, -2.329_417_2]);

    assert_eq!(noise(NoiseKind::Bf16, 0, &[64])[..4], [-1.125, -1.15625, -0.25, -0.43359375]);
    assert_eq!(noise(NoiseKind::Bf16, 42, &[64])[..4], [1.9296875, 1.484375, 0.90234375, -2.109375]);
    assert_eq!(noise(NoiseKind::Bf16Legacy, 0, &[64])[..4], [1.4609375, 0.291_015_63, 0.9609375, 1.5703125]);
    assert_eq!(noise(NoiseKind::Bf16Legacy, 42, &[64])[..4], [-0.80859375, -1.53125, 0.40625, 0.171875]);
}

#[test]
fn fewer_than_16_values_take_the_scalar_path() {
    let expected =
        [1.540_996_1, -0.293_428_9, -2.178_789_4, 0.568_431_26, -1.084_522_4, -1.398_595_5, 0.403_346_84f32];
    assert_eq!(noise(NoiseKind::F32, 0, &[7]), expected);
    let rounded = expected.map(|v| half::bf16::from_f32(v).to_f32());
    assert_eq!(noise(NoiseKind::Bf16, 0, &[7]), rounded);
    // The value left over from an odd count comes first the next time.
    let mut generator = Generator::new(0);
    let mut values = generator.randn(NoiseKind::F32, 3);
    values.extend(generator.randn(NoiseKind::F32, 4));
    assert_eq!(values, expected);
}

/// A ragged end is redone over the last 16 values: from the uniforms after all others (f32), or from those right
/// after the last whole block (bf16).
#[test]
fn ragged_ends_are_redone() {
    for kind in [NoiseKind::F32, NoiseKind::Bf16, NoiseKind::Bf16Legacy] {
        let skipped = match kind {
            NoiseKind::F32 | NoiseKind::Bf16Legacy => 20,
            NoiseKind::Bf16 => 16,
        };
        let values = noise(kind, 7, &[20]);
        assert_eq!(values[..4], noise(kind, 7, &[16])[..4], "{kind:?}");
        // The same uniforms at the head of a block: draw `skipped` values, then a block. 20 = 16 + 4, and a scalar
        // pair takes four draws.
        let mut generator = Generator::new(7);
        generator.randn(kind, 16);
        if skipped == 20 {
            generator.randn(kind, 2);
        }
        assert_eq!(values[4..], generator.randn(kind, 16), "{kind:?}");
    }
}

#[test]
fn only_the_low_half_of_the_seed_counts() {
    assert_eq!(noise(NoiseKind::F32, 5, &[64]), noise(NoiseKind::F32, 5 + (1 << 32), &[64]));
    assert_ne!(noise(NoiseKind::F32, 5, &[64]), noise(NoiseKind::F32, 6, &[64]));
}

#[test]
fn draws_continue_the_stream() {
    let mut generator = Generator::new(3);
    let mut values = generator.randn(NoiseKind::F32, 64);
    values.extend(generator.randn(NoiseKind::F32, 32));
    assert_eq!(values, noise(NoiseKind::F32, 3, &[96]));
}

#[test]
fn legacy_noise_never_leaves_its_range() {
    let values = noise(NoiseKind::Bf16Legacy, 1, &[1, 16, 64, 64]);
    assert!(values.iter().all(|v| v.abs() <= 3.33));
    assert!(values.iter().all(|v| v.to_bits() != (-0.0f32).to_bits()), "-0 must have become +0");
}

// ---- latents ---------------------------------------------------------------------------------------------

#[test]
fn pack_puts_squares_into_tokens() {
    let (channels, height, width) = (3, 4, 6);
    let latents: Vec<f32> = (0..channels * height * width).map(|i| i as f32).collect();
    let tokens = pack(&latents, channels, height, width).unwrap();
    for i in 0..height / 2 {
        for j in 0..width / 2 {
            for c in 0..channels {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let token = i * (width / 2) + j;
                    assert_eq!(
                        tokens[token * 4 * channels + c * 4 + dy * 2 + dx],
                        latents[(c * height + 2 * i + dy) * width + 2 * j + dx]
                    );
                }
            }
        }
    }
    assert_eq!(unpack(&tokens, channels, height, width).unwrap(), latents);
}

#[test]
fn pack_refuses_odd_sides_and_wrong_lengths() {
    for (len, channels, height, width) in
        [(3 * 3 * 4, 3, 3, 4), (3 * 4 * 3, 3, 4, 3), (47, 3, 4, 4), (0, usize::MAX, 2, 2)]
    {
        assert!(matches!(pack(&vec![0.0; len], channels, height, width), Err(Error::Input(_))));
        assert!(matches!(unpack(&vec![0.0; len], channels, height, width), Err(Error::Input(_))));
    }
}

// ---- tables ----------------------------------------------------------------------------------------------

/// The formula in f64; f32 angles up to 1000 are off by up to 3e-5.
#[test]
fn timestep_embedding_is_cosines_then_sines() {
    for (sigma, time) in [(1.0, 1000.0), (0.75, 750.0), (0.25, 250.0), (0.0, 0.0f64)] {
        let got = timestep_embedding(sigma, TimeRounding::Exact);
        for j in 0..128 {
            let angle = time * (-(10_000f64.ln()) * j as f64 / 128.0).exp();
            assert!((f64::from(got[j]) - angle.cos()).abs() < 2e-4, "sigma {sigma}, cos {j}");
            assert!((f64::from(got[128 + j]) - angle.sin()).abs() < 2e-4, "sigma {sigma}, sin {j}");
        }
    }
}

#[test]
fn bf16_rounding_turns_750_into_752() {
    let bf16 = |sigma| timestep_embedding(sigma, TimeRounding::Bf16);
    let exact = |sigma| timestep_embedding(sigma, TimeRounding::Exact);
    assert_eq!(bf16(0.75), exact(0.752));
    for sigma in [1.0, 0.5, 0.25] {
        assert_eq!(bf16(sigma), exact(sigma));
    }
    assert_eq!(guidance_embedding(3.5, TimeRounding::Bf16), guidance_embedding(3.504, TimeRounding::Exact));
    assert_eq!(guidance_embedding(0.5, TimeRounding::Exact), exact(0.5));
}

#[test]
fn rope_turns_text_by_nothing_and_image_by_row_and_column() {
    let (axes, text, height, width) = ([16, 56, 56], 3, 4, 5);
    let (cos, sin) = rope_tables(axes, 10_000.0, text, height, width);
    assert_eq!(cos.len(), (text + height * width) * 64);
    assert_eq!(sin.len(), cos.len());
    assert!(cos[..text * 64].iter().all(|&c| c == 1.0));
    assert!(sin[..text * 64].iter().all(|&s| s == 0.0));
    for row in 0..height {
        for column in 0..width {
            let token = text + row * width + column;
            for pair in 0..64 {
                let (position, k, channels) = match pair {
                    0..8 => (0, pair, 16),
                    8..36 => (row, pair - 8, 56),
                    _ => (column, pair - 36, 56),
                };
                let angle = position as f64 * 10_000f64.powf(-2.0 * k as f64 / f64::from(channels));
                assert!((f64::from(cos[token * 64 + pair]) - angle.cos()).abs() < 1e-7);
                assert!((f64::from(sin[token * 64 + pair]) - angle.sin()).abs() < 1e-7);
            }
        }
    }
}

#[test]
fn t5_buckets_start_where_transformers_starts_them() {
    // First distance of each bucket, counted from 0.
    let starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
    for distance in 0..600i64 {
        let expected = starts.iter().rposition(|&start| start <= distance).unwrap();
        assert_eq!(t5_bucket(-distance, 32, 128), expected, "distance {distance} back");
        if distance > 0 {
            assert_eq!(t5_bucket(distance, 32, 128), 16 + expected, "distance {distance} ahead");
        }
    }
    assert_eq!(t5_bucket(i64::MIN, 32, 128), 15);
    assert_eq!(t5_bucket(i64::MAX, 32, 128), 31);
}

// ---- helpers ---------------------------------------------------------------------------------------------

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The upper halves: asserts that the lower ones are empty, so that the values are indeed bf16's.
fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|v| {
            let [low0, low1, high0, high1] = v.to_le_bytes();
            assert_eq!([low0, low1], [0, 0], "{v} is not a bf16");
            [high0, high1]
        })
        .collect()
}

/// CRC-32 as in zip and PNG, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
