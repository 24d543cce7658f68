//! LoRA files that are damaged.

use std::sync::LazyLock;

use half::f16;
use schnell::weights::{Dtype, Part};

use crate::checkpoint::{self, Tensors, le};
use crate::command::DEMO;
use crate::judge::{Case, Must};
use crate::world::{Dice, World};

/// Names and sizes of the transformer's matrices.
static MATRICES: LazyLock<Vec<(String, usize, usize)>> = LazyLock::new(|| {
    let model = schnell::Model::open(DEMO.path()).unwrap();
    let needed = Part::Transformer.needed(model.config()).unwrap().into_iter();
    let matrices = needed.filter(|needed| needed.shape.len() == 2);
    matrices
        .map(|needed| (needed.name.trim_end_matches(".weight").to_string(), needed.shape[0], needed.shape[1]))
        .collect()
});

const FILE: &str = "lora.safetensors";

fn half(values: usize) -> Vec<u8> {
    le(&vec![f16::from_f32(0.01); values])
}

/// Of three matrices, of rank 4, with an alpha each.
fn sound(dice: &mut Dice) -> (Tensors, String, [usize; 2]) {
    let mut tensors = Tensors::new();
    let mut last = Default::default();
    for _ in 0..3 {
        let (name, n, k) = dice.of(&MATRICES).clone();
        let stem = format!("transformer.{name}");
        tensors.insert(format!("{stem}.lora_A.weight"), (Dtype::F16, vec![4, k], half(4 * k)));
        tensors.insert(format!("{stem}.lora_B.weight"), (Dtype::F16, vec![n, 4], half(n * 4)));
        tensors.insert(format!("{stem}.alpha"), (Dtype::F16, vec![], half(1)));
        last = (stem, [n, k]);
    }
    (tensors, last.0, last.1)
}

/// Without strength a sound one changes nothing.
fn strength(dice: &mut Dice, must: Must) -> &'static str {
    let any = ["", ":0", ":0.5", ":-1"];
    if must == Must::Draw { ":0" } else { any[dice.below(any.len())] }
}

/// `lora_A` or `lora_B` of one matrix has another shape or type.
fn reshape(dice: &mut Dice, tensors: &mut Tensors, stem: &str, [n, k]: [usize; 2]) -> (Must, String) {
    let (a, b) = (format!("{stem}.lora_A.weight"), format!("{stem}.lora_B.weight"));
    let mut must = Must::Refuse;
    let what = match dice.below(5) {
        0 => {
            let rank = *dice.of(&[1, 3, 5, 64]);
            tensors.insert(b, (Dtype::F16, vec![n, rank], half(n * rank)));
            format!("ranks 4 and {rank}")
        }
        1 => {
            let wide = *dice.of(&[k + 1, k - 1, 2 * k, 1]);
            tensors.insert(a, (Dtype::F16, vec![4, wide], half(4 * wide)));
            format!("{wide} columns for {k}")
        }
        2 => {
            let shape = dice
                .of(&[vec![], vec![4 * k], vec![4, k, 1], vec![2, 2, k], vec![0, k], vec![4, k, 1, 1]])
                .clone();
            // 1x1 convolutions are matrices.
            must = if shape.len() == 4 { Must::End } else { Must::Refuse };
            tensors.insert(a, (Dtype::F16, shape.clone(), half(shape.iter().product())));
            format!("of shape {shape:?}")
        }
        3 => {
            let dtype = *dice.of(&[Dtype::U8, Dtype::I16, Dtype::I64, Dtype::F64, Dtype::BOOL]);
            must = if dtype == Dtype::F64 { Must::End } else { Must::Refuse };
            tensors.insert(a, (dtype, vec![4, k], vec![1; 4 * k * dtype.bitsize() / 8]));
            format!("in {dtype}")
        }
        _ => {
            let rank = *dice.of(&[128, 129, 1000, 4096]);
            tensors.insert(a, (Dtype::F16, vec![rank, k], half(rank * k)));
            tensors.insert(b, (Dtype::F16, vec![n, rank], half(n * rank)));
            must = Must::End;
            format!("of rank {rank}")
        }
    };
    (must, what)
}

/// Something of one matrix, or beside it, is another or not there.
fn replace(dice: &mut Dice, tensors: &mut Tensors, stem: &str) -> (Must, String) {
    let (a, b) = (format!("{stem}.lora_A.weight"), format!("{stem}.lora_B.weight"));
    let mut must = Must::Refuse;
    let what = match dice.below(5) {
        0 => {
            let alpha = *dice.of(&[
                f32::NAN,
                f32::INFINITY,
                f32::NEG_INFINITY,
                0.0,
                -1.0,
                f32::MAX,
                f32::MIN_POSITIVE,
            ]);
            must = if alpha.is_finite() { Must::End } else { Must::Refuse };
            tensors.insert(format!("{stem}.alpha"), (Dtype::F32, vec![], le(&[alpha])));
            format!("an alpha of {alpha}")
        }
        1 => {
            let gone = dice.of(&[a, b]).clone();
            tensors.remove(&gone);
            format!("{gone} is missing")
        }
        2 => {
            let ending = *dice.of(&[
                "lokr_w1",
                "hada_w1_a",
                "lora_magnitude_vector",
                "oft_blocks",
                "diff",
                "lora_mid.weight",
            ]);
            tensors.insert(format!("{stem}.{ending}"), (Dtype::F16, vec![4, 4], half(16)));
            format!("{ending} beside it")
        }
        3 => {
            let (tensor, at) = (tensors.get_mut(dice.of(&[a, b])).unwrap(), dice.below(4));
            tensor.2[2 * at..2 * at + 2].copy_from_slice(&dice.of(&[f16::NAN, f16::INFINITY]).to_le_bytes());
            format!("number {at} is not finite")
        }
        _ => {
            let name = *dice.of(&[
                "transformer.no_block.0",
                "unet.down",
                "",
                "text_encoder_2.encoder.block.0",
                "a.b.c.d.e.f.g",
            ]);
            let rows = |shape: [usize; 2]| (Dtype::F16, shape.to_vec(), half(shape[0] * shape[1]));
            tensors.insert(format!("{name}.lora_A.weight"), rows([4, 8]));
            tensors.insert(format!("{name}.lora_B.weight"), rows([8, 4]));
            must = Must::End;
            format!("of {name:?}, too")
        }
    };
    (must, what)
}

/// One tensor is another, or the file's bytes are, or the flag.
pub fn lora(dice: &mut Dice, world: &World) -> Case {
    let (mut tensors, stem, sizes) = sound(dice);
    let mut flag = None;
    let (must, what) = match dice.below(12) {
        0..=4 => reshape(dice, &mut tensors, &stem, sizes),
        5 => {
            let text = dice.of(&[":nan", ":inf", ":", ":x", ":1e39", ":--1", "::1", ":0x1"]);
            flag = Some(format!("{FILE}{text}"));
            (Must::Refuse, format!("strength {text}"))
        }
        6 => (Must::Draw, "sound".to_string()),
        _ => replace(dice, &mut tensors, &stem),
    };
    checkpoint::save(&world.work(FILE), &tensors);
    if must == Must::End && dice.one_in(4) {
        // Its bytes, too.
        let mut bytes = std::fs::read(world.work(FILE)).unwrap();
        let at = dice.below(bytes.len().min(600));
        if dice.one_in(2) {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << dice.below(8);
        }
        std::fs::write(world.work(FILE), bytes).unwrap();
    }
    let strength = strength(dice, must);
    let flag = flag.unwrap_or(format!("{FILE}{strength}"));
    Case::with(must, format!("{FILE}{strength}: {what}"), &["--lora", &flag])
}
