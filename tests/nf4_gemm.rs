//! `nf4_gemm` against candle's matrix product over dequantized weights.

mod common;
#[path = "common/gemm_cases.rs"]
mod gemm_cases;
#[path = "common/nf4.rs"]
mod nf4;
#[path = "common/nf4_products.rs"]
mod nf4_products;
use common::*;
use half::bf16;
use nf4_products::{launch, weights};
use schnell::kernels::gemm::{Activation, Epilogue, Problem};
use schnell::kernels::nf4_gemm::{Nf4Gemm, Nf4Weight};

/// Of the machines that the shared cases are for.
const ARCH: u32 = 80;

#[test]
fn agrees_with_candle_at_tile_edges_and_tails() {
    let shapes = [
        [1, 128, 64],    // one row, one k-step: fewer than stages
        [128, 128, 128], // exactly one tile, as many k-steps as stages
        [127, 127, 192],
        [129, 129, 320],
        [256, 64, 64], // half a tile of features
        [33, 8, 64],
        [300, 200, 128],
    ];
    for shape in shapes {
        gemm_cases::plain_store(&launch, &weights, emulator(), shape);
    }
}

#[test]
fn agrees_with_candle_at_flux_widths_one_dimension_at_a_time() {
    for shape in [[4, 3072, 64], [4, 128, 3072], [3, 128, 15360], [1024, 128, 64], [2, 21504, 64]] {
        gemm_cases::plain_store(&launch, &weights, emulator(), shape);
    }
}

#[test]
fn norm_rope_store_and_gelu_segments_share_a_launch() {
    gemm_cases::segments(&launch, &weights, emulator(), 128);
}

#[test]
fn every_epilogue_and_activation() {
    gemm_cases::epilogues(&launch, &weights, 16, 192);
}

#[test]
fn tiles_split_along_k_have_every_epilogue() {
    gemm_cases::split_epilogues(&launch, &weights, 1024);
}

#[test]
fn two_problems_share_the_waves_that_are_split() {
    gemm_cases::split(&launch, &weights, 2, 1088);
}

#[test]
fn a_lora_adds_its_parts() {
    gemm_cases::low_rank(&launch, &weights, 64);
}

#[test]
fn one_tile_on_machines_of_all_sizes() {
    gemm_cases::machines_of_all_sizes(&launch, &weights, 2048);
}

#[test]
fn two_problems_in_one_launch_equal_two_launches() {
    gemm_cases::grouped(&launch, &weights);
}

#[test]
fn schedules_and_thread_counts_do_not_change_a_bit() {
    let want = gemm_cases::segments(&launch, &weights, emulator(), 128);
    for seed in seeds(20) {
        assert_eq!(gemm_cases::segments(&launch, &weights, gemm_cases::random_machine(16, seed), 128), want);
    }
}

#[test]
fn refuses_what_it_cannot_take() {
    let bench = Bench::new(emulator());
    let x = bench.alloc::<bf16>(128 * 96);
    let out = bench.alloc::<bf16>(256 * 256);
    let (codes, absmax) = (bench.alloc::<u8>(128 * 64), bench.alloc::<f32>(256));
    let weight = Nf4Weight { codes: &codes, absmax: &absmax };
    let run = |problem: Problem<'_>| {
        Nf4Gemm { problems: &[(problem, weight)], workspace: None }.launch(&bench.device, COMPUTE)
    };
    let simple = |shape| Problem::simple(&x, shape, None, Activation::None, Epilogue::Store(&out));
    assert!(run(simple([16, 64, 96])).unwrap_err().to_string().contains("not a multiple of 64"));
    assert!(run(simple([0, 64, 64])).unwrap_err().to_string().contains("empty product"));
    assert!(run(simple([128, 320, 64])).unwrap_err().to_string().contains("codes"));
    assert!(run(simple([256, 64, 64])).unwrap_err().to_string().contains("`x`"));
    let mut gap = simple([16, 64, 64]);
    gap.segments[0].begin = 8;
    assert!(run(gap).unwrap_err().to_string().contains("does not follow on"));
    let heads = Problem {
        segments: vec![schnell::kernels::gemm::Segment {
            begin: 0,
            end: 64,
            pitch: 64,
            activation: Activation::None,
            epilogue: Epilogue::NormRope { out: &out, weight: &absmax },
        }],
        ..simple([16, 64, 64])
    };
    assert!(run(heads).unwrap_err().to_string().contains("RoPE"));
    assert!(
        Nf4Gemm { problems: &[], workspace: None }
            .launch(&bench.device, COMPUTE)
            .unwrap_err()
            .to_string()
            .contains("0 problems")
    );
}
