//! Every primitive of `kernels/gpu_sm90.cuh`: see [`crate::kernels::probe_sm90`].

use half::bf16;

use super::{Case, Lab, Output, case, random_bits};
use crate::Result;
use crate::abi;
use crate::device::{StreamId, View};
use crate::kernels::probe_sm90::Primitive;

pub(super) fn cases() -> Vec<Case> {
    let name = |primitive: Primitive| primitive.kernel().map_or("probe_sm90", |kernel| kernel.name);
    let exact = Primitive::ALL
        .into_iter()
        .map(|primitive| case("probe", name(primitive), move |lab| probe(lab, primitive)));
    let products = Primitive::ALL.into_iter().filter(|primitive| primitive.num_columns() > 0);
    let rounding = products.map(|primitive| {
        case("probe", format!("{}_rounding", name(primitive)), move |lab| probe_rounding(lab, primitive))
    });
    let exact = exact.map(|case| Case { small: true, ..case });
    exact.chain(rounding).map(|case| Case { hopper: true, ..case }).collect()
}

fn run(lab: &Lab, primitive: Primitive, input: &[u32]) -> Result<View<u32>> {
    let input = lab.upload(input)?;
    let output = lab.alloc::<u32>(primitive.num_outputs())?;
    primitive.launch(lab.device(), StreamId::Compute, &input, &output)?;
    Ok(output)
}

fn probe(lab: &Lab, primitive: Primitive) -> Result<Vec<Output>> {
    let mut words = random_bits(11, primitive.num_inputs());
    if primitive == Primitive::Copies {
        // Inside, across each edge and corner, and above.
        let places: [[i32; 2]; abi::PROBE_SM90_BOXES as usize] =
            [[0, 0], [32, 16], [-16, -3], [96, 33], [16, -16], [-48, 5]];
        let first = words.len() - 2 * places.len();
        for (word, place) in words[first..].iter_mut().zip(places.concat()) {
            *word = place as u32;
        }
    } else if primitive.num_columns() > 0 {
        // Whole numbers up to 127: sums are exact, in whatever order a machine adds.
        words = words.into_iter().map(|word| pair(word, |bits| (bits & 0xff) as f32 - 127.0)).collect();
    }
    Ok(vec![lab.bits("words", &run(lab, primitive, &words)?)?])
}

/// As the rounding cases of `mma` in `probe.rs`; the accumulators of the second consumer begin at up to 255.
fn probe_rounding(lab: &Lab, primitive: Primitive) -> Result<Vec<Output>> {
    let words = random_bits(12, primitive.num_inputs());
    let words: Vec<u32> =
        words.into_iter().map(|word| pair(word, |bits| (bits & 0xffff) as f32 / 32768.0 - 1.0)).collect();
    let acc = run(lab, primitive, &words)?.cast::<f32>()?;
    Ok(vec![lab.close("acc", &acc, 4e-6, 4e-6)?])
}

fn pair(word: u32, value: impl Fn(u32) -> f32) -> u32 {
    let bits = |bits: u32| bf16::from_f32(value(bits)).to_bits() as u32;
    bits(word) | bits(word >> 16) << 16
}
