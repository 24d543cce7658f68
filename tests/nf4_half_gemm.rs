//! `nf4_half_gemm` against candle's matrix product over dequantized weights, and bit for bit against a plain loop of its own
//! arithmetic.

mod common;
#[path = "common/gemm_cases.rs"]
mod gemm_cases;
#[path = "common/nf4.rs"]
mod nf4;
use common::*;
use gemm_cases::Weights;
use half::{bf16, f16};
use schnell::device::{Device, View};
use schnell::kernels::gemm::{Activation, Epilogue, Gemm, Problem};
use schnell::kernels::nf4_gemm::Nf4Weight;
use schnell::kernels::nf4_half_gemm::Nf4HalfWeight;
use schnell::kernels::scale_rows::ScaleRows;

/// Of the machines that the shared cases are for.
const ARCH: u32 = 80;

fn half_of(code: u8) -> f16 {
    f16::from_f32(nf4::CODES[code as usize])
}

/// As those of `nf4_gemm`, whose blocks differ in their scales; what the kernel sees is fp16(code) * absmax.
fn weights(rng: &mut Rng, n: usize, k: usize) -> Weights {
    let mut raw = rng.f32s(n * k, 0.2);
    for block in raw.chunks_mut(64) {
        let scale = (rng.uniform() * 3.0).exp2();
        block.iter_mut().for_each(|w| *w *= scale);
    }
    let (codes, absmax) = nf4::quantize(&raw);
    let seen = codes.iter().enumerate().map(|(i, code)| half_of(*code).to_f32() * absmax[i / 64]).collect();
    Weights { raw, seen }
}

/// Makes copies of the tokens fp16, then launches.
fn launch(bench: &Bench, problems: &[Problem<'_>], weights: &[Weights]) -> bool {
    let packed: Vec<(View<u8>, View<f32>)> = problems
        .iter()
        .zip(weights)
        .map(|(p, w)| {
            let (codes, absmax) = nf4::pack(&w.raw, p.n, p.k);
            (bench.upload(&codes), bench.upload(&absmax))
        })
        .collect();
    let tokens: Vec<(View<bf16>, View<f32>)> = problems.iter().map(|p| scaled(bench, p)).collect();
    let problems: Vec<_> = problems
        .iter()
        .zip(&packed)
        .zip(&tokens)
        .map(|((p, (codes, absmax)), (x, x_scale))| {
            (Problem { x, ..p.clone() }, Nf4HalfWeight { weight: Nf4Weight { codes, absmax }, x_scale })
        })
        .collect();
    gemm_cases::launch(bench, &problems)
}

fn scaled(bench: &Bench, p: &Problem<'_>) -> (View<bf16>, View<f32>) {
    let (x, scale) = (bench.upload(&bench.download(p.x)), bench.alloc(p.m));
    ScaleRows { x: &x, pitch: p.x_pitch, rows: p.m, width: p.k, scale: &scale }
        .launch(&bench.device, COMPUTE)
        .unwrap();
    (x, scale)
}

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
    for seed in seeds(10) {
        assert_eq!(gemm_cases::segments(&launch, &weights, gemm_cases::random_machine(16, seed), 128), want);
    }
}

/// f32 results of `x`, whose rows hold what they please, on one tile.
fn product(device: Device, x: &[bf16], weights: &Weights, [m, n, k]: [usize; 3]) -> Vec<f32> {
    let bench = Bench::new(device);
    let (x, out) = (bench.upload(x), bench.alloc::<f32>(m * n));
    let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::StoreF32(&out));
    launch(&bench, &[problem], std::slice::from_ref(weights));
    bench.download(&out)
}

/// The same by the definition: sums of 16 in f32, rounded to fp16 after each, four of them to a block, blocks in f32.
fn by_definition(x: &[bf16], weights: &Weights, [m, n, k]: [usize; 3]) -> Vec<f32> {
    let (codes, absmax) = nf4::quantize(&weights.raw);
    let mut out = Vec::new();
    for row in 0..m {
        let x = &x[row * k..(row + 1) * k];
        let largest = x.iter().fold(0f32, |most, v| most.max(v.to_f32().abs()));
        let scale = if largest > 0.0 { 2f32.powf((largest.log2().floor() - 7.0).max(-126.0)) } else { 1.0 };
        for feature in 0..n {
            let mut sum = 0f32;
            for block in 0..k / 64 {
                let mut of_block = f16::ZERO;
                for step in 0..4 {
                    let first = block * 64 + step * 16;
                    let products = (first..first + 16).map(|i| {
                        f16::from_f32(x[i].to_f32() / scale).to_f32()
                            * half_of(codes[feature * k + i]).to_f32()
                    });
                    of_block = f16::from_f32(products.fold(of_block.to_f32(), |sum, product| sum + product));
                }
                sum = of_block.to_f32().mul_add(absmax[(feature * k) / 64 + block], sum);
            }
            out.push(sum * scale);
        }
    }
    out
}

#[test]
fn every_bit_is_that_of_the_definition() {
    let shape @ [m, n, k] = [40, 72, 320];
    let mut rng = Rng(77);
    let (x, weights) = (rng.bf16s(m * k, 1.0), weights(&mut rng, n, k));
    let want: Vec<u32> = by_definition(&x, &weights, shape).into_iter().map(f32::to_bits).collect();
    let got: Vec<u32> = product(emulator(), &x, &weights, shape).into_iter().map(f32::to_bits).collect();
    assert_same("x . w^T", &got, &want);
}

/// Tokens for which sums of unscaled fp16 would overflow, vanish or lose what is small.
#[test]
fn no_input_overflows_and_small_tokens_are_not_lost() {
    let shape @ [m, n, k] = [8, 64, 128];
    let mut rng = Rng(78);
    // All weights alike and as large as they can be, so that every product of a row has one sign.
    let ones = Weights { raw: vec![1.0; n * k], seen: vec![1.0; n * k] };
    for (what, value) in [("large", 2.0e36f32), ("usual", 1.0), ("small", 1e-30), ("near denormal", 1e-36)] {
        let x = vec![bf16::from_f32(value); m * k];
        let want = vec![x[0].to_f32() * k as f32; m * n];
        let got = product(emulator(), &x, &ones, shape);
        assert!(rel_l2(&got, &want) < 1e-6, "{what}: {} for {}", got[0], want[0]);
    }
    // The largest finite number, once in a row and in all of it: of the latter, sums are not finite in f32 either.
    let mut x = vec![bf16::ZERO; m * k];
    for row in 0..m {
        x[row * k + 7 * row] = if row % 2 == 0 { bf16::MAX } else { bf16::MIN };
    }
    let got = product(emulator(), &x, &ones, shape);
    for (i, got) in got.iter().enumerate() {
        assert_eq!(*got, if i / n % 2 == 0 { bf16::MAX } else { bf16::MIN }.to_f32(), "element {i}");
    }
    let (x, w) = (rng.bf16s(m * k, 1.0), weights(&mut rng, n, k));
    let zeros = product(emulator(), &vec![bf16::ZERO; m * k], &w, shape);
    assert!(zeros.iter().all(|v| v.to_bits() == 0), "zeros give zeros");
    // One channel 3000 times the others, as in FLUX's residual stream; and a token of bf16's denormal numbers.
    let mut outlier = x.clone();
    outlier.chunks_mut(k).for_each(|row| row[5] = bf16::from_f32(3000.0));
    let denormal: Vec<bf16> = x.iter().map(|v| bf16::from_f32(v.to_f32() * 1e-38)).collect();
    for (what, x) in [("outlier", outlier), ("denormal", denormal)] {
        let want = linear(&to_f32(&x), &w.seen, None, shape);
        let got = product(emulator(), &x, &w, shape);
        // Within a block fp16 keeps 11 bits of the largest sum, the outlier's, where bf16 results keep 8.
        assert_close(what, &got, &want, &rounded(&want));
    }
}

/// A token that is not finite makes its own results so, and no other's.
#[test]
fn what_is_not_finite_shows() {
    let shape @ [m, n, k] = [5, 16, 64];
    let mut rng = Rng(79);
    let (mut x, w) = (rng.bf16s(m * k, 1.0), weights(&mut rng, n, k));
    for bad in [bf16::INFINITY, bf16::NAN] {
        x[3 * k + 9] = bad;
        let got = product(emulator(), &x, &w, shape);
        for (i, v) in got.iter().enumerate() {
            assert_eq!(v.is_finite(), i / n != 3, "element {i} is {v} beside {bad}");
        }
    }
}

#[test]
fn refuses_what_it_cannot_take() {
    let bench = Bench::new(emulator());
    let (x, out) = (bench.alloc::<bf16>(16 * 128), bench.alloc::<f32>(16 * 64));
    let (codes, absmax, x_scale) =
        (bench.alloc::<u8>(64 * 64), bench.alloc::<f32>(128), bench.alloc::<f32>(16));
    let run = |[m, n, k]: [usize; 3], weight: Nf4HalfWeight<'_>| {
        let problem = Problem::simple(&x, [m, n, k], None, Activation::None, Epilogue::StoreF32(&out));
        Gemm { problems: &[(problem, weight)], workspace: None }
            .launch(&bench.device, COMPUTE)
            .unwrap_err()
            .to_string()
    };
    let weight = Nf4Weight { codes: &codes, absmax: &absmax };
    let all = Nf4HalfWeight { weight, x_scale: &x_scale };
    assert!(run([16, 64, 96], all).contains("k = 96 is not a multiple of 64"));
    let few = Nf4HalfWeight { weight: Nf4Weight { codes: &codes.slice(0, 4095).unwrap(), ..weight }, ..all };
    assert!(run([16, 64, 128], few).contains("`codes` has 4095"));
    let few = Nf4HalfWeight { weight: Nf4Weight { absmax: &absmax.slice(0, 127).unwrap(), ..weight }, ..all };
    assert!(run([16, 64, 128], few).contains("`absmax` has 127"));
    let few = Nf4HalfWeight { x_scale: &x_scale.slice(0, 15).unwrap(), ..all };
    assert!(run([16, 64, 128], few).contains("`x_scale` has 15"));
}
