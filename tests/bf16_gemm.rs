//! `bf16_gemm` against candle's matrix product.

mod common;
#[path = "common/gemm_cases.rs"]
mod gemm_cases;
use common::*;
use gemm_cases::Weights;
use half::bf16;
use schnell::device::View;
use schnell::kernels::bf16_gemm::{Bf16Gemm, Bf16Weight};
use schnell::kernels::gemm::{Activation, Epilogue, IN_PLACE_COLUMNS, LowRank, Problem};

/// Of the machines that the shared cases are for.
const ARCH: u32 = 80;

fn weights(rng: &mut Rng, n: usize, k: usize) -> Weights {
    let raw = to_f32(&rng.bf16s(n * k, 0.2));
    Weights { seen: raw.clone(), raw }
}

fn launch(bench: &Bench, problems: &[Problem<'_>], weights: &[Weights]) -> bool {
    let packed: Vec<(View<bf16>, usize)> = problems
        .iter()
        .zip(weights)
        .map(|(p, w)| {
            let pitch = p.k.next_multiple_of(8);
            // What lies between k and the pitch must not matter.
            let mut rows = vec![bf16::NAN; p.n * pitch];
            for r in 0..p.n {
                for c in 0..p.k {
                    rows[r * pitch + c] = bf16::from_f32(w.raw[r * p.k + c]);
                }
            }
            end_rows(&mut rows, pitch, p.k, bf16::NAN);
            (bench.upload(&rows), pitch)
        })
        .collect();
    let problems: Vec<_> = problems
        .iter()
        .zip(&packed)
        .map(|(p, (values, pitch))| (p.clone(), Bf16Weight { values, pitch: *pitch }))
        .collect();
    gemm_cases::launch(bench, &problems)
}

#[test]
fn agrees_with_candle_at_tile_edges_and_tails() {
    let shapes = [
        [1, 128, 64],
        [128, 128, 128],
        [127, 127, 192],
        [129, 129, 320],
        [5, 37, 37], // nothing aligned
        [77, 8, 8],
        [20, 136, 100],
    ];
    for shape in shapes {
        gemm_cases::plain_store(&launch, &weights, emulator(), shape);
    }
}

#[test]
fn agrees_with_candle_at_real_widths_one_dimension_at_a_time() {
    for shape in [[4, 3072, 64], [4, 128, 10240], [77, 768, 64], [1024, 128, 64]] {
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
    gemm_cases::split_epilogues(&launch, &weights, 1016);
}

#[test]
fn two_problems_share_the_waves_that_are_split() {
    gemm_cases::split(&launch, &weights, 1, 1085);
}

#[test]
fn a_lora_adds_its_parts() {
    gemm_cases::low_rank(&launch, &weights, 64);
}

#[test]
fn one_tile_on_machines_of_all_sizes() {
    gemm_cases::machines_of_all_sizes(&launch, &weights, 2041);
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
    let (x, w) = (bench.alloc::<bf16>(16 * 64), bench.alloc::<bf16>(64 * 64));
    let out = bench.alloc::<bf16>(32 * 128);
    let run = |shape, pitch| {
        let problem = Problem::simple(&x, shape, None, Activation::None, Epilogue::Store(&out));
        let problems = [(problem, Bf16Weight { values: &w, pitch })];
        Bf16Gemm { problems: &problems, workspace: None }.launch(&bench.device, COMPUTE)
    };
    assert!(run([16, 64, 64], 64).is_ok());
    assert!(run([16, 64, 64], 60).unwrap_err().to_string().contains("pitch"));
    assert!(run([16, 65, 64], 64).unwrap_err().to_string().contains("weight"));
    assert!(run([17, 64, 64], 64).unwrap_err().to_string().contains("`x`"));
    assert!(run([16, 64, 60], 64).unwrap_err().to_string().contains("x_pitch"));
}

#[test]
fn loras_that_do_not_fit_are_refused() {
    let bench = Bench::new(emulator());
    let (x, w) = (bench.alloc::<bf16>(16 * 64), bench.alloc::<bf16>(64 * 64));
    let (out, t, up) =
        (bench.alloc::<bf16>(16 * 64), bench.alloc::<bf16>(16 * 32), bench.alloc::<bf16>(64 * 16));
    let good = LowRank { t: &t, t_pitch: 32, up: &up, rank: 16, ends: vec![24, 64] };
    let run = |low_rank| {
        let problem = Problem::simple(&x, [16, 64, 64], None, Activation::None, Epilogue::Store(&out));
        let problem = Problem { low_rank: Some(low_rank), ..problem };
        let problems = [(problem, Bf16Weight { values: &w, pitch: 64 })];
        Bf16Gemm { problems: &problems, workspace: None }.launch(&bench.device, COMPUTE)
    };
    run(good.clone()).unwrap();
    for (low_rank, why) in [
        (LowRank { rank: 12, ..good.clone() }, "rank of 12"),
        (LowRank { rank: 0, ..good.clone() }, "rank of 0"),
        (LowRank { ends: vec![24, 72], ..good.clone() }, "end at [24, 72] of 64"),
        (LowRank { ends: vec![24, 24, 64], ..good.clone() }, "end at [24, 24, 64]"),
        (LowRank { ends: vec![], ..good.clone() }, "end at [] of 64"),
        (LowRank { ends: vec![8, 16, 24, 32, 64], t_pitch: 80, ..good.clone() }, "end at [8, 16"),
        (LowRank { t_pitch: 24, ..good.clone() }, "t_pitch 24 for 32 columns"),
        (LowRank { t_pitch: 36, ..good.clone() }, "t_pitch 36"),
        (LowRank { rank: 24, t_pitch: 48, ..good.clone() }, "`t`"),
        (LowRank { up: &up.slice(0, 1016).unwrap(), ..good.clone() }, "`up`"),
        (LowRank { t: &t.slice(1, 511).unwrap(), ends: vec![64], ..good.clone() }, "aligned"),
    ] {
        let said = run(low_rank).unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
}

/// As the VAE's largest maps become narrower.
#[test]
fn results_of_one_tile_may_take_the_place_of_x() {
    let (m, k) = (300, 256);
    for n in [IN_PLACE_COLUMNS, 40] {
        let mut rng = Rng(n as u64);
        let x = rng.bf16s(m * k, 1.0);
        let weight = rng.bf16s(n * k, 0.2);
        let product = |device, in_place: bool| {
            let bench = Bench::new(device);
            let (x, values) = (bench.upload(&x), bench.upload(&weight));
            let out = if in_place { x.clone() } else { bench.alloc::<bf16>(m * k) };
            let store = Epilogue::Store(&out);
            let mut problem = Problem::simple(&x, [m, n, k], None, Activation::None, store);
            problem.segments[0].pitch = k;
            let weight = Bf16Weight { values: &values, pitch: k };
            Bf16Gemm { problems: &[(problem, weight)], workspace: None }
                .launch(&bench.device, COMPUTE)
                .unwrap();
            let rows = bench.download(&out);
            rows.chunks(k).flat_map(|row| row[..n].to_vec()).collect::<Vec<_>>()
        };
        let want = product(emulator(), false);
        for seed in seeds(8) {
            assert_eq!(product(random_emulator(seed, 1 + seed as usize % 2), true), want);
        }
    }
}
