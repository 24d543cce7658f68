//! Every primitive of `kernels/gpu.cuh`: see [`crate::kernels::probe`].

use half::{bf16, f16};

use super::{Case, Lab, Output, Values, case, random_bits, random_f32s};
use crate::Result;
use crate::abi;
use crate::device::{StreamId, View};
use crate::kernels::probe::Primitive;

pub(super) fn cases() -> Vec<Case> {
    let name = |primitive: Primitive| primitive.kernel().map_or("probe", |kernel| kernel.name);
    let plain = Primitive::ALL
        .into_iter()
        .map(|primitive| case("probe", name(primitive), move |lab| probe(lab, primitive)));
    let products =
        Primitive::ALL.into_iter().filter(|p| matches!(p, Primitive::Mma(..) | Primitive::MmaHalf(..)));
    let rounding = products.map(|primitive| {
        case("probe", format!("{}_rounding", name(primitive)), move |lab| probe_mma_rounding(lab, primitive))
    });
    // Rounding differs from the plain products in values alone: no schedule or sanitizer sees anything new.
    plain.map(|case| Case { small: true, ..case }).chain(rounding).collect()
}

/// Runs a primitive on these words; returns its words.
fn run_probe(lab: &Lab, primitive: Primitive, input: &[u32]) -> Result<View<u32>> {
    let input = lab.upload(input)?;
    let output = lab.alloc::<u32>(primitive.num_outputs(input.len()))?;
    // Their first word is added to.
    match primitive {
        Primitive::Index => lab.device().fill(StreamId::Compute, &output, 0)?,
        Primitive::Count => lab.device().fill(StreamId::Compute, &output, 0xff)?,
        _ => {}
    }
    primitive.launch(lab.device(), StreamId::Compute, &input, &output)?;
    Ok(output)
}

fn probe(lab: &Lab, primitive: Primitive) -> Result<Vec<Output>> {
    match primitive {
        Primitive::Math => probe_math(lab),
        Primitive::Mma(..) => {
            // Whole numbers up to 255: sums are exact, so every machine must agree, in whatever order it adds.
            let small = |word: u32| {
                let value = |bits: u32| bf16::from_f32(bits as f32 - 127.0).to_bits() as u32;
                value(word & 0xff) | value(word >> 8 & 0xff) << 16
            };
            let words = mma_words(primitive, small, |word| ((word >> 20) as f32).to_bits());
            Ok(vec![lab.bits("acc", &run_probe(lab, primitive, &words)?)?])
        }
        Primitive::MmaHalf(..) => {
            // Whole numbers up to 7, and 255 to begin with: sums are exact in fp16, too.
            let pair = |word: u32, mask: u32| {
                let value = |bits: u32| f16::from_f32(bits as f32 - (mask / 2) as f32).to_bits() as u32;
                value(word & mask) | value(word >> 16 & mask) << 16
            };
            let words = mma_words(primitive, |word| pair(word, 15), |word| pair(word, 511));
            Ok(vec![lab.bits("acc", &run_probe(lab, primitive, &words)?)?])
        }
        Primitive::Warp => {
            // Integers, then floats of one size, whose sums have one fixed tree.
            let mut words = random_bits(5, 64);
            words.extend(random_f32s(6, 64, 100.0).into_iter().map(f32::to_bits));
            Ok(vec![lab.bits("words", &run_probe(lab, primitive, &words)?)?])
        }
        _ => {
            let words = random_bits(7, primitive.num_inputs().unwrap_or(0));
            Ok(vec![lab.bits("words", &run_probe(lab, primitive, &words)?)?])
        }
    }
}

/// The words of an mma probe: per warp two kinds, pairs of operands and then accumulators.
fn mma_words(primitive: Primitive, pair: impl Fn(u32) -> u32, acc: impl Fn(u32) -> u32) -> Vec<u32> {
    let (mt, nt, words) = match primitive {
        Primitive::Mma(mt, nt) => (mt, nt, 4),
        Primitive::MmaHalf(mt, nt) => (mt, nt, 2),
        _ => return Vec::new(),
    };
    let num_pairs = abi::PROBE_MMA_STEPS as usize * (4 * mt + 2 * nt) * 32;
    let per_warp = num_pairs + words * mt * nt * 32;
    let random = random_bits(8, primitive.num_inputs().unwrap_or(0));
    let words = random.iter().enumerate();
    words.map(|(i, &word)| if i % per_warp < num_pairs { pair(word) } else { acc(word) }).collect()
}

/// Fractions: tensor cores add a k-step's products in an order of their own, and truncate where the emulator rounds.
/// Allowed is 2^-18: 32 truncations of f32, one per product.
fn probe_mma_rounding(lab: &Lab, primitive: Primitive) -> Result<Vec<Output>> {
    let fraction = |bits: u32| (bits & 0xffff) as f32 / 32768.0 - 1.0;
    if matches!(primitive, Primitive::MmaHalf(..)) {
        let pair = |word: u32| {
            let value = |bits: u32| f16::from_f32(fraction(bits)).to_bits() as u32;
            value(word) | value(word >> 16) << 16
        };
        let acc = lab.download(&run_probe(lab, primitive, &mma_words(primitive, pair, pair))?)?;
        let halves = acc.iter().flat_map(|word| [*word as u16, (word >> 16) as u16]);
        let values = halves.map(|bits| f16::from_bits(bits).to_f32()).collect::<Vec<f32>>();
        // Each of two steps is rounded to 11 bits: where a sum lies near the middle, to the other side.
        let acc = lab.upload(&values)?;
        return Ok(vec![lab.close("acc", &acc, 2e-3, 4e-3)?]);
    }
    let pair = |word: u32| {
        let value = |bits: u32| bf16::from_f32(fraction(bits)).to_bits() as u32;
        value(word) | value(word >> 16) << 16
    };
    let words = mma_words(primitive, pair, |word| fraction(word).to_bits());
    let acc = run_probe(lab, primitive, &words)?.cast::<f32>()?;
    Ok(vec![lab.close("acc", &acc, 4e-6, 4e-6)?])
}

fn probe_math(lab: &Lab) -> Result<Vec<Output>> {
    const NAMES: [&str; abi::PROBE_MATH_WORDS as usize] = [
        "mul",
        "add",
        "fma",
        "reciprocal",
        "rsqrt",
        "round_even",
        "pack_bf16x2",
        "float_to_bf16",
        "bf16_to_float",
        "bf16_lo",
        "bf16_hi",
        "bits",
        "pack_half2",
        "half_lo",
        "half_hi",
        "permute_bytes",
        "exp2",
        "exp",
        "tanh",
        "silu",
        "quick_gelu",
        "gelu_tanh",
        "gelu_erf",
        "divide",
    ];
    // Every sign, zeros, ties of the rounding to bf16, denormals, infinities, NaN; then the usual, then anything.
    let mut x: Vec<u32> =
        [0, 0x3f80_0000, 0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x7f7f_8000, 0x7f7f_ffff]
            .into_iter()
            .chain([
                1,
                0x007f_ffff,
                0x0080_0000,
                0x7f80_0000,
                0x7fc0_0000,
                0x7f80_0001,
                0x4020_0000,
                0x3fc0_0000,
            ])
            .flat_map(|bits: u32| [bits, bits | 0x8000_0000])
            .collect();
    x.extend(random_f32s(9, 4000, 20.0).into_iter().map(f32::to_bits));
    let num_usual = x.len();
    x.extend(random_bits(10, 4000));
    let n = x.len();
    let rotated = |by: usize| x.iter().cycle().skip(by).take(n).copied();
    let input: Vec<u32> = x.iter().copied().chain(rotated(7)).chain(rotated(19)).collect();
    let words = lab.download(&run_probe(lab, Primitive::Math, &input)?)?;
    let column = |k: usize| words.iter().skip(k).step_by(NAMES.len());
    let outputs = NAMES.iter().enumerate().map(|(k, name)| {
        let floats =
            |count: usize| column(k).take(count).map(|&word| f32::from_bits(word)).collect::<Vec<f32>>();
        let values = match *name {
            "pack_bf16x2" | "float_to_bf16" | "pack_half2" | "permute_bytes" => {
                Values::Bytes(column(k).flat_map(|w| w.to_le_bytes()).collect())
            }
            _ if k < Primitive::EXACT_MATH_WORDS => Values::Ulps { values: floats(n), ulps: 0, floor: 0.0 },
            // ex2.approx flushes denormals.
            "exp2" => Values::Ulps { values: floats(n), ulps: 4, floor: f32::MIN_POSITIVE },
            "exp" | "tanh" => Values::Ulps { values: floats(n), ulps: 6, floor: f32::MIN_POSITIVE },
            // The divisor, 1 + exp, has its own error.
            "divide" => Values::Ulps { values: floats(num_usual), ulps: 12, floor: f32::MIN_POSITIVE },
            // 1 + tanh(x) loses all digits where it nears zero: what is left is a rounding of 1, times |x| <= 20.
            _ => Values::Ulps { values: floats(num_usual), ulps: 16, floor: 20.0 * 4.0 * f32::EPSILON },
        };
        Output { name: name.to_string(), values }
    });
    Ok(outputs.collect())
}
