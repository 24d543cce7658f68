//! Tokenizers that are damaged, in both of their layouts.

use serde_json::{Value, json};

use crate::json::{mutate, odd_text};
use crate::judge::{Case, Must};
use crate::world::{Dice, World};

/// What may lie beside a vocabulary, and what it is by its name.
const BESIDE: [&str; 3] = ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"];

pub fn settings(dice: &mut Dice, world: &World) -> Case {
    let file = format!("{}/{}", dice.of(&["tokenizer", "tokenizer_2"]), dice.of(&BESIDE));
    let (content, what) = match dice.below(8) {
        0 => (json!({odd_text(dice): dice.bits()}), "an odd token"),
        1 => (json!({"<toy>": dice.below(1200)}), "a token more"),
        2 => (
            json!((0..5000).map(|i| (format!("<{i}>"), json!(i))).collect::<serde_json::Map<_, _>>()),
            "5000 more",
        ),
        3 => (
            json!({"additional_special_tokens": [odd_text(dice), {"content": odd_text(dice)}, 7]}),
            "odd tokens",
        ),
        4 => (json!({"added_tokens_decoder": {odd_text(dice): {"content": odd_text(dice)}}}), "odd ids"),
        5 => (json!({"model_max_length": *dice.of(&[0.0, -1.0, 1e30, 1e39, 0.5, 2.0])}), "an odd length"),
        6 => (json!({"eos_token": odd_text(dice), "pad_token": odd_text(dice)}), "odd special tokens"),
        _ => (json!([odd_text(dice)]), "a list"),
    };
    world.replace(&file, content.to_string().as_bytes());
    Case::picture(Must::End, format!("{file}: {what}: {}", crate::start(&content.to_string())))
}

/// `tokenizer.json` and CLIP's older files.
pub fn vocabulary(dice: &mut Dice, world: &World) -> Case {
    let names = ["/tokenizer.json", "/vocab.json", "/merges.txt"];
    let files: Vec<&String> =
        world.base.files.iter().filter(|file| names.iter().any(|name| file.ends_with(name))).collect();
    let file = dice.of(&files).to_string();
    let text = String::from_utf8(world.read(&file)).unwrap();
    let (bytes, what, must) = if file.ends_with("merges.txt") {
        merges(dice, &text)
    } else if file.ends_with("tokenizer.json") && dice.one_in(2) {
        part(dice, &text)
    } else {
        mutate(dice, &text)
    };
    world.replace(&file, &bytes);
    Case::picture(must, format!("{file}: {what}"))
}

fn merges(dice: &mut Dice, text: &str) -> (Vec<u8>, String, Must) {
    let mut lines: Vec<&str> = text.lines().collect();
    let at = 1 + dice.below(lines.len() - 1);
    let odd = odd_text(dice);
    match dice.below(5) {
        0 => lines[at] = "onlyone",
        1 => lines[at] = "three of them",
        2 => lines[at] = "nowhere nothere",
        3 => lines.insert(at, "\u{0} \u{0}"),
        _ => {
            lines[at] = &odd;
            return (lines.join("\n").into_bytes(), format!("line {at} is odd"), Must::End);
        }
    }
    (lines.join("\n").into_bytes(), format!("line {at} is {:?}", lines[at]), Must::Refuse)
}

/// A part of the tokenizer exchanged for one of another kind: only CLIP's and T5's own are taken.
fn part(dice: &mut Dice, text: &str) -> (Vec<u8>, String, Must) {
    let mut json: Value = serde_json::from_str(text).unwrap();
    let (at, other) = match dice.below(12) {
        0 => ("/model/dropout", json!(0.5)),
        1 => ("/model/type", json!("WordPiece")),
        2 => ("/model/vocab", json!({})),
        3 => ("/normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "aa"})),
        4 => ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="})),
        5 => (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a|b|ab)*c"}, "behavior": "Isolated"}),
        ),
        6 => ("/post_processor", json!({"type": "ByteLevel"})),
        7 => ("/model/continuing_subword_prefix", json!("##########")),
        8 => ("/added_tokens/0/id", json!(1_u64 << 32)),
        9 => ("/added_tokens/0/content", json!("x".repeat(1 << 20))),
        10 => ("/model/byte_fallback", json!(true)),
        _ => ("/model/vocab", json!([["x".repeat(1 << 20), 0.0]])),
    };
    let mut value = &mut json;
    for name in at[1..].split('/') {
        value = match name.parse::<usize>() {
            Ok(i) => &mut value[i],
            Err(_) => &mut value[name],
        };
    }
    *value = other;
    (json.to_string().into_bytes(), format!("{at} of another kind"), Must::Refuse)
}

/// SentencePiece's protobuf.
pub fn spiece(dice: &mut Dice, world: &World) -> Case {
    let file = "tokenizer_2/spiece.model";
    let mut bytes = world.read(file);
    let (what, must) = match dice.below(8) {
        0 => {
            let len = dice.below(bytes.len());
            bytes.truncate(len);
            (format!("cut at {len}"), Must::Refuse)
        }
        1 | 2 => {
            let flips = 1 + dice.below(8);
            for _ in 0..flips {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
            }
            (format!("{flips} bits"), Must::End)
        }
        3 => {
            let start = dice.below(bytes.len());
            let end = (start + 1 + dice.below(64)).min(bytes.len());
            let noise = dice.bytes(end - start);
            bytes[start..end].copy_from_slice(&noise);
            (format!("noise at {start}"), Must::End)
        }
        4 => {
            bytes.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
            ("a piece without end".to_string(), Must::Refuse)
        }
        5 => {
            // Groups, and wire types that there are not.
            bytes.push(*dice.of(&[0x0b, 0x0c, 0x0e, 0x0f, 0x00]));
            ("an odd wire type".to_string(), Must::Refuse)
        }
        6 => {
            let len = 600 + dice.below(10_000);
            let piece = [vec![0x0a], varint(len), vec![b'a'; len]].concat();
            bytes.extend([vec![0x0a], varint(piece.len()), piece].concat());
            (format!("a piece of {len}"), Must::Refuse)
        }
        _ => {
            // A normalizer's character map of noise.
            let len = 1 + dice.below(2000);
            let mut map = (len as u32 / 8 * 4).to_le_bytes().to_vec();
            map.extend(dice.bytes(len));
            let spec = [vec![0x12], varint(map.len()), map].concat();
            bytes.extend([vec![0x1a], varint(spec.len()), spec].concat());
            (format!("a character map of {len}"), Must::End)
        }
    };
    world.replace(file, &bytes);
    Case::picture(must, format!("{file}: {what}"))
}

fn varint(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 128 {
        bytes.push((n % 128) as u8 | 128);
        n /= 128;
    }
    bytes.push(n as u8);
    bytes
}
