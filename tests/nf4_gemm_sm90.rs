//! `nf4_gemm_sm90` on the emulator that poses as a Hopper, as `nf4_gemm` against candle's matrix product.

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
use schnell::device::{Device, EmulatorOptions};
use schnell::kernels::gemm::{Activation, Epilogue, Problem};
use schnell::kernels::{nf4_gemm, nf4_gemm_sm90};

/// Of the machines that the shared cases are for.
const ARCH: u32 = 90;

#[test]
fn agrees_with_candle_at_tile_edges_and_tails() {
    let shapes = [
        [1, 128, 64],    // one row, one k-step: an odd one
        [256, 128, 128], // exactly one tile, a pair of k-steps
        [255, 127, 320], // more k-steps than stages
        [257, 129, 192],
        [300, 64, 256], // half a tile of features
        [33, 8, 64],
    ];
    for shape in shapes {
        gemm_cases::plain_store(&launch, &weights, emulator_of(ARCH), shape);
    }
}

#[test]
fn agrees_with_candle_at_flux_widths_one_dimension_at_a_time() {
    for shape in [[4, 3072, 64], [4, 128, 3072], [3, 128, 15360], [1024, 128, 64]] {
        gemm_cases::plain_store(&launch, &weights, emulator_of(ARCH), shape);
    }
}

#[test]
fn norm_rope_store_and_gelu_segments_share_a_launch() {
    gemm_cases::segments(&launch, &weights, emulator_of(ARCH), 128);
}

#[test]
fn every_epilogue_and_activation() {
    gemm_cases::epilogues(&launch, &weights, 16, 192);
}

#[test]
fn tiles_split_along_k_have_every_epilogue() {
    gemm_cases::split_epilogues(&launch, &weights, 2048);
}

#[test]
fn two_problems_share_the_waves_that_are_split() {
    gemm_cases::split(&launch, &weights, 1, 2176);
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
    let want = gemm_cases::segments(&launch, &weights, emulator_of(ARCH), 128);
    for seed in seeds(10) {
        assert_eq!(gemm_cases::segments(&launch, &weights, gemm_cases::random_machine(16, seed), 128), want);
    }
}

/// Tokens that are rows of the identity take out the weights, one by one.
#[test]
fn weights_are_those_of_the_other_kernel_to_the_bit() {
    let (n, k) = (136, 192);
    let weights = weights(&mut Rng(3), n, k);
    let identity: Vec<bf16> = (0..k * k).map(|i| bf16::from_f32(f32::from(i % (k + 1) == 0))).collect();
    let of = |arch| {
        let bench = Bench::new(emulator_of(arch));
        let (x, out) = (bench.upload(&identity), bench.alloc::<f32>(k * n));
        let problem = Problem::simple(&x, [k, n, k], None, Activation::None, Epilogue::StoreF32(&out));
        launch(&bench, &[problem], std::slice::from_ref(&weights));
        let kernel =
            if arch == ARCH { &nf4_gemm_sm90::NF4_GEMM_RESIDUAL } else { &nf4_gemm::NF4_GEMM_RESIDUAL };
        assert!(bench.device.launched().contains(&kernel.name()));
        bench.download(&out)
    };
    let got = of(ARCH);
    for (i, value) in got.iter().enumerate() {
        assert_eq!(value.to_bits(), weights.seen[i % n * k + i / n].to_bits(), "weight {i}");
    }
    assert_eq!(got, of(80));
}

/// What has compute capability 9.0 alone.
#[test]
fn others_take_the_kernel_of_all() {
    for arch in [80, 86, 89, 120] {
        let bench = Bench::new(Device::emulator(EmulatorOptions { arch, ..EmulatorOptions::default() }));
        let (x, out) = (bench.upload(&[bf16::ONE; 64]), bench.alloc::<bf16>(8));
        let problem = Problem::simple(&x, [1, 8, 64], None, Activation::None, Epilogue::Store(&out));
        launch(&bench, &[problem], &[weights(&mut Rng(1), 8, 64)]);
        assert_eq!(bench.device.launched(), [nf4_gemm::NF4_GEMM_STORE.name()]);
    }
}
