//! Products with weights in the few bits of their file, against candle's over what the host makes of them.

mod common;
#[path = "common/gemm_cases.rs"]
mod gemm_cases;
#[path = "common/kept.rs"]
mod kept;
use common::*;
use gemm_cases::Weights;
use half::bf16;
use kept::{Stored, width};
use schnell::device::View;
use schnell::kernels::gemm::{Activation, Epilogue, Problem};
use schnell::kernels::kept::{Format, KeptLayout};
use schnell::kernels::kept_gemm::{KeptGemm, KeptWeight};

/// Of the machines that the shared cases are for.
const ARCH: u32 = 80;

/// One of each number of bits, and of each kind of scales.
const SOME: [Format; 6] = [Format::F8E4M3, Format::Q8_0, Format::Q6K, Format::Q5_1, Format::Q4K, Format::Q2K];

/// Runs `test` with what makes weights of a format, and what multiplies with them.
fn with(
    format: Format,
    test: impl Fn(gemm_cases::Launch<'_>, &dyn Fn(&mut Rng, usize, usize) -> Weights, &dyn Fn(usize) -> usize),
) {
    let make = |rng: &mut Rng, n: usize, k: usize| {
        let stored = Stored::random(rng, format, n, k);
        let seen = stored.means().into_iter().map(bf16::to_f32).collect();
        // Bytes as numbers, and the scale of fp8 behind them.
        let raw = stored.bytes.iter().map(|byte| f32::from(*byte)).chain([stored.scale]).collect();
        Weights { raw, seen }
    };
    let launch = |bench: &Bench, problems: &[Problem<'_>], weights: &[Weights]| {
        let views: Vec<View<u8>> = problems
            .iter()
            .zip(weights)
            .map(|(p, w)| {
                let (scale, bytes) = w.raw.split_last().unwrap();
                let bytes = bytes.iter().map(|byte| *byte as u8).collect();
                bench.upload(&Stored { format, bytes, scale: *scale }.kept(KeptLayout::Panels, p.n, p.k))
            })
            .collect();
        let problems: Vec<_> =
            problems.iter().zip(&views).map(|(p, bytes)| (p.clone(), KeptWeight { format, bytes })).collect();
        gemm_cases::launch(bench, &problems)
    };
    test(&launch, &make, &|k| width(format, k));
}

#[test]
fn agrees_with_candle_at_tile_edges_and_tails() {
    let shapes = [
        [1, 128, 64],    // one row; one k-step, or four
        [128, 128, 128], // exactly one tile
        [127, 127, 192],
        [129, 129, 320],
        [256, 64, 64], // half a tile of features
        [33, 8, 64],
        [300, 200, 128],
    ];
    for format in Format::ALL {
        with(format, |launch, make, width| {
            for [m, n, k] in shapes {
                gemm_cases::plain_store(launch, make, emulator(), [m, n, width(k)]);
            }
        });
    }
}

#[test]
fn agrees_with_candle_at_flux_widths_one_dimension_at_a_time() {
    for format in SOME {
        with(format, |launch, make, width| {
            for [m, n, k] in [[4, 3072, 64], [4, 128, 3072], [3, 128, 15360], [2, 21504, 64]] {
                gemm_cases::plain_store(launch, make, emulator(), [m, n, width(k)]);
            }
        });
    }
}

/// Rows that are unit vectors bring out every weight as it is multiplied.
#[test]
fn every_weight_is_what_the_file_means_in_bf16() {
    for format in Format::ALL {
        // Of fp8 scales so small that results are subnormal, and the largest.
        let scales: &[f32] = if format.is_fp8() { &[1.0, 1e-38, 3e-41, 127.99] } else { &[1.0] };
        for &scale in scales {
            let (n, k) = (136, 512);
            let stored = Stored::extreme(format, n, k, scale);
            let bench = Bench::new(emulator());
            let mut units = vec![bf16::ZERO; k * k];
            (0..k).for_each(|i| units[i * k + i] = bf16::ONE);
            let (x, bytes) = (bench.upload(&units), bench.upload(&stored.kept(KeptLayout::Panels, n, k)));
            let out = bench.alloc::<f32>(k * n);
            let problem = Problem::simple(&x, [k, n, k], None, Activation::None, Epilogue::StoreF32(&out));
            gemm_cases::launch(&bench, &[(problem, KeptWeight { format, bytes: &bytes })]);
            let (got, means) = (bench.download(&out), stored.means());
            let mut kinds = std::collections::BTreeSet::new();
            for (i, got) in got.iter().enumerate() {
                let (feature, at) = (i % n, i / n);
                let want = means[feature * k + at].to_f32();
                assert_eq!(*got, want, "{format}, scale {scale}: feature {feature}, k {at}");
                kinds.insert(want.to_bits());
            }
            assert!(kinds.len() > 40, "{format}: {} numbers", kinds.len());
        }
    }
}

#[test]
fn norm_rope_store_and_gelu_segments_share_a_launch() {
    for format in Format::ALL {
        with(format, |launch, make, width| {
            gemm_cases::segments(launch, make, emulator(), width(128));
        });
    }
}

#[test]
fn every_epilogue_and_activation() {
    for format in Format::ALL {
        with(format, |launch, make, width| gemm_cases::epilogues(launch, make, 16, width(192)));
    }
}

#[test]
fn tiles_split_along_k_have_every_epilogue() {
    for format in [Format::Q8_0, Format::Q5K] {
        with(format, |launch, make, _| gemm_cases::split_epilogues(launch, make, 1024));
    }
}

#[test]
fn two_problems_share_the_waves_that_are_split() {
    for format in [Format::F8E5M2, Format::Q3K, Format::Q4_1] {
        with(format, |launch, make, width| gemm_cases::split(launch, make, 2, width(1088)));
    }
}

#[test]
fn one_tile_on_machines_of_all_sizes() {
    for format in [Format::Q6K, Format::Q4_0] {
        with(format, |launch, make, _| gemm_cases::machines_of_all_sizes(launch, make, 2048));
    }
}

#[test]
fn a_lora_adds_its_parts() {
    for format in Format::ALL {
        with(format, |launch, make, width| gemm_cases::low_rank(launch, make, width(64)));
    }
}

#[test]
fn two_problems_in_one_launch_equal_two_launches() {
    // Of 64 columns each, as those cases have them.
    for format in [Format::F8E4M3, Format::Q8_0, Format::Q5_0, Format::Q4_1] {
        with(format, |launch, make, _| gemm_cases::grouped(launch, make));
    }
}

#[test]
fn schedules_and_thread_counts_do_not_change_a_bit() {
    for format in SOME {
        with(format, |launch, make, width| {
            let want = gemm_cases::segments(launch, make, emulator(), width(128));
            for seed in seeds(6) {
                let device = gemm_cases::random_machine(16, seed);
                assert_eq!(gemm_cases::segments(launch, make, device, width(128)), want, "{format}");
            }
        });
    }
}

#[test]
fn refuses_what_it_cannot_take() {
    let bench = Bench::new(emulator());
    let (x, out) = (bench.alloc::<bf16>(128 * 512), bench.alloc::<bf16>(256 * 256));
    let bytes = bench.alloc::<u8>(Format::Q8_0.kept_len(KeptLayout::Panels, 128, 128));
    let run = |format, shape, bytes: &View<u8>| {
        let problem = Problem::simple(&x, shape, None, Activation::None, Epilogue::Store(&out));
        let problems = [(problem, KeptWeight { format, bytes })];
        KeptGemm { problems: &problems, workspace: None }.launch(&bench.device, COMPUTE)
    };
    let refused = |format, shape, bytes: &View<u8>| run(format, shape, bytes).unwrap_err().to_string();
    run(Format::Q8_0, [16, 128, 128], &bytes).unwrap();
    assert!(refused(Format::Q8_0, [16, 128, 96], &bytes).contains("not a multiple of 64"));
    assert!(refused(Format::Q4K, [16, 128, 128], &bytes).contains("not a multiple of 256"));
    assert!(refused(Format::Q8_0, [16, 129, 128], &bytes).contains("`weight`"));
    let odd = bytes.slice(1, bytes.len() - 1).unwrap();
    assert!(refused(Format::Q4_0, [16, 128, 128], &odd).contains("aligned"));
    let problem = || Problem::simple(&x, [16, 64, 64], None, Activation::None, Epilogue::Store(&out));
    let two = [Format::Q8_0, Format::F8E4M3].map(|format| (problem(), KeptWeight { format, bytes: &bytes }));
    let both = KeptGemm { problems: &two, workspace: None }.launch(&bench.device, COMPUTE);
    assert!(both.unwrap_err().to_string().contains("several formats"));
}

/// Blocks of the package `gguf`, and what it computes of them (`tests/golden/make_gguf.py`).
#[test]
fn weights_are_what_the_package_computes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf.gguf");
    let file = schnell::weights::gguf::Gguf::open(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for format in Format::ALL.into_iter().filter(|format| !format.is_fp8()) {
        let stored = &file.tensors[&format.to_string()];
        let (n, k) = (stored.shape[0], stored.shape[1]);
        let blocks = &bytes[stored.offset as usize..][..stored.stored_bytes() as usize];
        let kept = Stored { format, bytes: blocks.to_vec(), scale: 1.0 }.kept(KeptLayout::Panels, n, k);
        let bench = Bench::new(emulator());
        let mut units = vec![bf16::ZERO; k * k];
        (0..k).for_each(|i| units[i * k + i] = bf16::ONE);
        let (x, view, out) = (bench.upload(&units), bench.upload(&kept), bench.alloc::<f32>(k * n));
        let problem = Problem::simple(&x, [k, n, k], None, Activation::None, Epilogue::StoreF32(&out));
        gemm_cases::launch(&bench, &[(problem, KeptWeight { format, bytes: &view })]);
        let values = file.tensors[&format!("{format}.values")].read_f32().unwrap();
        for (i, got) in bench.download(&out).into_iter().enumerate() {
            let want = bf16::from_f32(values[i % n * k + i / n]).to_f32();
            assert_eq!(got, want, "{format}: feature {}, k {}", i % n, i / n);
        }
    }
}
