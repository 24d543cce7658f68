//! Products with NF4 weights for `gemm_cases`, whatever machine they are on. Include it beside `gemm_cases` and `nf4`.

use schnell::device::View;
use schnell::kernels::gemm::Problem;
use schnell::kernels::nf4_gemm::Nf4Weight;

use super::common::*;
use super::gemm_cases::{self, Weights};
use super::nf4;

/// Values whose NF4 dequantization is known: quantizing them gives these codes. Every block has another scale, far from
/// those of its neighbors: a wrong absmax is a wrong result.
pub fn weights(rng: &mut Rng, n: usize, k: usize) -> Weights {
    let mut raw = rng.f32s(n * k, 0.2);
    for block in raw.chunks_mut(64) {
        let scale = (rng.uniform() * 3.0).exp2();
        block.iter_mut().for_each(|w| *w *= scale);
    }
    let (codes, absmax) = nf4::quantize(&raw);
    let seen =
        codes.iter().enumerate().map(|(i, code)| nf4::dequantize(*code, absmax[i / 64]).to_f32()).collect();
    Weights { raw, seen }
}

pub fn launch(bench: &Bench, problems: &[Problem<'_>], weights: &[Weights]) -> bool {
    let packed: Vec<(View<u8>, View<f32>)> = problems
        .iter()
        .zip(weights)
        .map(|(p, w)| {
            let (codes, absmax) = nf4::pack(&w.raw, p.n, p.k);
            (bench.upload(&codes), bench.upload(&absmax))
        })
        .collect();
    let problems: Vec<_> = problems
        .iter()
        .zip(&packed)
        .map(|(p, (codes, absmax))| (p.clone(), Nf4Weight { codes, absmax }))
        .collect();
    gemm_cases::launch(bench, &problems)
}
