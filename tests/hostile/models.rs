//! Models that are damaged: their configs, weights, indices, tokenizers, and what lies there in place of a file.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::command::fifo;
use crate::json::{mutate, odd_text};
use crate::judge::{Case, Must};
use crate::world::{Dice, World, join, split};

// ---- configs ----------------------------------------------------------------------------------------------

const CONFIGS: [&str; 7] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "vae/config.json",
];

pub fn config(dice: &mut Dice, world: &World) -> Case {
    let file = *dice.of(&CONFIGS);
    let (bytes, what, must) = mutate(dice, &String::from_utf8(world.read(file)).unwrap());
    world.replace(file, &bytes);
    let what = format!("{file}: {what}");
    if dice.one_in(4) { Case::picture(must, what) } else { Case::plan(must, what) }
}

/// A number in a config that is not what the weights are.
pub fn contradiction(dice: &mut Dice, world: &World) -> Case {
    let (file, field) = *dice.of(&[
        ("transformer/config.json", "num_attention_heads"),
        ("transformer/config.json", "attention_head_dim"),
        ("transformer/config.json", "num_layers"),
        ("transformer/config.json", "num_single_layers"),
        ("transformer/config.json", "in_channels"),
        ("transformer/config.json", "joint_attention_dim"),
        ("transformer/config.json", "pooled_projection_dim"),
        ("text_encoder/config.json", "hidden_size"),
        ("text_encoder/config.json", "intermediate_size"),
        ("text_encoder/config.json", "num_hidden_layers"),
        ("text_encoder_2/config.json", "d_model"),
        ("text_encoder_2/config.json", "d_ff"),
        ("text_encoder_2/config.json", "num_layers"),
        ("text_encoder_2/config.json", "relative_attention_num_buckets"),
        ("vae/config.json", "latent_channels"),
        ("vae/config.json", "layers_per_block"),
        ("vae/config.json", "norm_num_groups"),
    ]);
    let mut config: Value = serde_json::from_slice(&world.read(file)).unwrap();
    let number = config[field].as_u64().unwrap();
    // More than there is; less may be a model that lost layers, which is said, not refused.
    let other = *dice.of(&[number * 2, number + 1, number * 16, 1 << 20, 1 << 32, u64::MAX, 0]);
    config[field] = json!(other);
    world.replace(file, config.to_string().as_bytes());
    // Groups of normalization are no shape of a tensor.
    let must = if field == "norm_num_groups" { Must::End } else { Must::Refuse };
    Case::picture(must, format!("{file}: {field} {number} is {other}"))
}

// ---- weights ----------------------------------------------------------------------------------------------

/// Bytes of the container, before or behind anything that has a meaning.
pub fn container(dice: &mut Dice, world: &World) -> Case {
    let file = world.base.weights(dice);
    let mut bytes = world.read(&file);
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (what, must) = match dice.below(8) {
        0 => {
            let len = if dice.one_in(2) { dice.below(64) } else { dice.below(bytes.len()) };
            bytes.truncate(len);
            (format!("cut at {len}"), Must::Refuse)
        }
        1 => {
            let more = 1 + dice.below(100);
            bytes.extend(dice.bytes(more));
            (format!("{more} bytes more"), Must::Refuse)
        }
        2 => {
            let lengths = [0, 1, header_bytes - 1, header_bytes + 1, header_bytes * 2, 100_000_001, 1 << 40];
            let lengths = [&lengths[..], &[u64::MAX, 1 << 63, u64::MAX - 7, dice.bits()]].concat();
            let length = *dice.of(&lengths);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            (format!("header of {length}"), Must::Refuse)
        }
        3 | 4 => {
            let (at, bit) = (8 + dice.below(header_bytes as usize), dice.below(8));
            bytes[at] ^= 1 << bit;
            (format!("bit {bit} of the header's byte {at}"), Must::End)
        }
        5 => {
            let start = 8 + dice.below(header_bytes as usize);
            let end = (start + 1 + dice.below(30)).min(bytes.len());
            let noise = dice.bytes(end - start);
            bytes[start..end].copy_from_slice(&noise);
            (format!("noise in the header at {start}"), Must::End)
        }
        6 => {
            // A download that was given its size and then not filled.
            bytes[8 + header_bytes as usize..].fill(0);
            ("no data but zeros".to_string(), Must::Refuse)
        }
        _ => {
            let (at, bit) = (8 + header_bytes as usize, dice.below(8));
            let at = at + dice.below(bytes.len() - at);
            bytes[at] ^= 1 << bit;
            (format!("bit {bit} of the data's byte {at}"), Must::End)
        }
    };
    world.replace(&file, &bytes);
    Case::picture(must, format!("{file}: {what}"))
}

/// A header whose JSON is damaged.
pub fn header(dice: &mut Dice, world: &World) -> Case {
    let file = world.base.weights(dice);
    let (header, data) = split(&world.read(&file));
    let (bytes, what, must) = mutate(dice, &header.to_string());
    world.replace(&file, &join(&bytes, &data));
    // The format begins with a brace, so spaces before it are damage to some readers and none to others.
    let must = if must == Must::Draw { Must::End } else { must };
    Case::picture(must, format!("{file}: header: {what}"))
}

/// A file of weights taken apart, and one of its tensors.
struct Parts {
    file: String,
    header: Value,
    data: Vec<u8>,
    name: String,
    /// Perhaps the same.
    other: String,
}

impl Parts {
    fn of(dice: &mut Dice, world: &World) -> Parts {
        let file = world.base.weights(dice);
        let (header, data) = split(&world.read(&file));
        let names = &world.base.needed[&file];
        let (name, other) = (dice.of(names).clone(), dice.of(names).clone());
        Parts { file, header, data, name, other }
    }

    fn put(self, world: &World, must: Must, what: &str) -> Case {
        world.replace(&self.file, &join(self.header.to_string().as_bytes(), &self.data));
        Case::picture(must, format!("{}: {}: {what}", self.file, self.name))
    }
}

/// One tensor's entry in a header says what the tensor is not.
pub fn entry(dice: &mut Dice, world: &World) -> Case {
    let mut parts = Parts::of(dice, world);
    let entry = &mut parts.header[&parts.name];
    let shape: Vec<u64> = serde_json::from_value(entry["shape"].clone()).unwrap();
    let [begin, end]: [u64; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
    let field = *dice.of(&["dtype", "shape", "shape", "data_offsets", "data_offsets", ""]);
    let odd = match field {
        // None is both a number and as long as what is stored.
        "dtype" => {
            ["BOOL", "F64", "I64", "F8_E4M3", "C64", "bf16", "", "F4", "\u{1b}[31m"].map(Value::from).to_vec()
        }
        "shape" => vec![
            json!([]),
            json!([0]),
            json!([1, 1_u64 << 62, 1_u64 << 62]),
            json!([-1]),
            json!("x"),
            json!([1.5]),
            json!([vec![1; 17], shape.clone()].concat()),
            json!([shape, vec![2]].concat()),
        ],
        "data_offsets" => vec![
            json!([begin, end + 1]),
            json!([begin + 1, end]),
            json!([end, begin]),
            json!([0, 0]),
            json!([begin, u64::MAX]),
            json!([-1, end]),
            json!([begin]),
            json!([begin, end, end]),
            json!([u64::MAX - (end - begin), u64::MAX]),
            Value::Null,
        ],
        _ => vec![json!({"dtype": "F32"}), json!([]), Value::Null, json!("F32")],
    };
    let odd = dice.of(&odd).clone();
    let what = format!("{field} {odd}");
    if field.is_empty() {
        *entry = odd;
    } else {
        entry[field] = odd;
    }
    parts.put(world, Must::Refuse, &what)
}

/// Names that are gone, new, exchanged, or there twice.
pub fn names(dice: &mut Dice, world: &World) -> Case {
    let mut parts = Parts::of(dice, world);
    let (header, name, other) = (&mut parts.header, parts.name.as_str(), parts.other.as_str());
    let entry = header[name].clone();
    let (what, must) = match dice.below(8) {
        0 => {
            // Two tensors share their bytes, and those of one of them are nobody's.
            header[name]["data_offsets"] = header[other]["data_offsets"].clone();
            (format!("the bytes of {other}"), if name == other { Must::Draw } else { Must::Refuse })
        }
        1 => {
            header.as_object_mut().unwrap().remove(name);
            ("gone".to_string(), Must::Refuse)
        }
        2 => {
            header.as_object_mut().unwrap().remove(name);
            header[[&odd_text(dice), "?"].concat()] = entry;
            ("renamed".to_string(), Must::Refuse)
        }
        3 => {
            header[name] = header[other].clone();
            header[other] = entry;
            // Of one shape, nobody can tell.
            let same = header[name]["shape"] == header[other]["shape"];
            (format!("exchanged with {other}"), if same { Must::End } else { Must::Refuse })
        }
        4 => {
            let again = format!("{{{}:{entry},", json!(name));
            let text = header.to_string().replacen('{', &again, 1);
            world.replace(&parts.file, &join(text.as_bytes(), &parts.data));
            return Case::picture(Must::Refuse, format!("{}: {name} twice", parts.file));
        }
        5 => {
            let len = parts.data.len();
            header["something_else.weight"] =
                json!({"dtype": "F32", "shape": [1], "data_offsets": [len, len + 4]});
            parts.data.extend(f32::NAN.to_le_bytes());
            ("a tensor that nothing uses".to_string(), Must::Draw)
        }
        6 => {
            header["__metadata__"] = json!({"format": odd_text(dice), odd_text(dice): "x"});
            ("odd metadata".to_string(), Must::Draw)
        }
        _ => {
            header["__metadata__"] = json!({"format": [1, {"x": null}]});
            ("metadata that is no text".to_string(), Must::Refuse)
        }
    };
    parts.put(world, must, &what)
}

/// Numbers that no sound file holds.
pub fn not_finite(dice: &mut Dice, world: &World) -> Case {
    let file = world.base.weights(dice);
    let (header, mut data) = split(&world.read(&file));
    let name = dice.of(&world.base.needed[&file]).clone();
    let mut name = name.as_str();
    let absmax = format!("{name}.absmax");
    if header[name]["dtype"] == "U8" {
        name = &absmax;
    }
    let [begin, end]: [usize; 2] = serde_json::from_value(header[name]["data_offsets"].clone()).unwrap();
    let which = dice.below(5);
    let value = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)][which];
    let stored: Vec<u8> = match header[name]["dtype"].as_str().unwrap() {
        // The signaling one is infinite in 16 bits, and no more finite for it.
        "BF16" => ((value.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
        "F16" => half::f16::from_f32(value).to_le_bytes().to_vec(),
        "F32" => value.to_le_bytes().to_vec(),
        other => panic!("{file}: {name} is {other}"),
    };
    let count = if dice.one_in(3) { (end - begin) / stored.len() } else { 1 };
    let first = dice.below((end - begin) / stored.len() - count + 1);
    for i in first..first + count {
        data[begin + i * stored.len()..][..stored.len()].copy_from_slice(&stored);
    }
    world.replace(&file, &join(header.to_string().as_bytes(), &data));
    let what = format!("{file}: {count} of {name} from {first} on are {value}");
    let mut case = Case::picture(Must::Refuse, what);
    // As the device's quantizer reads them, which takes longer.
    if dice.one_in(8) {
        case.args.truncate(case.args.len() - 4);
        case.args.extend(["--model", "../model"].map(str::to_string));
    }
    case
}

/// What says how a tensor in 4 bits is to be read.
pub fn quant_state(dice: &mut Dice, world: &World) -> Case {
    let file = "transformer/diffusion_pytorch_model.safetensors";
    let (mut header, mut data) = split(&world.read(file));
    let suffix = ".quant_state.bitsandbytes__nf4";
    let states: Vec<String> =
        header.as_object().unwrap().keys().filter(|name| name.ends_with(suffix)).cloned().collect();
    let state = dice.of(&states).clone();
    let weight = state.strip_suffix(suffix).unwrap();
    let range = |header: &Value, name: &str| -> [usize; 2] {
        serde_json::from_value(header[name]["data_offsets"].clone()).unwrap()
    };
    let (what, must) = match dice.below(8) {
        0..4 => {
            let [begin, end] = range(&header, &state);
            let text = String::from_utf8(data[begin..end].to_vec()).unwrap();
            let (bytes, what, must) = mutate(dice, &text);
            // At the end of the file, where it may have any length; the old bytes become somebody else's.
            header["unused"] = json!({"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]});
            let range = [data.len(), data.len() + bytes.len()];
            header[&state] = json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": range});
            data.extend(bytes);
            (what, must)
        }
        4 => {
            let part = *dice.of(&[".absmax", ".quant_map", suffix]);
            let name = format!("{weight}{part}");
            let entry = header.as_object_mut().unwrap().remove(&name).unwrap();
            header["unused"] = entry;
            (format!("without {part}"), Must::Refuse)
        }
        5 => {
            let [begin, end] = range(&header, &format!("{weight}.quant_map"));
            let at = begin + dice.below(end - begin);
            data[at] ^= 0x41;
            ("another code book".to_string(), Must::Refuse)
        }
        6 => {
            let [begin, end] = range(&header, &format!("{weight}.absmax"));
            let at = begin + 4 * dice.below((end - begin) / 4);
            data[at..at + 4].copy_from_slice(&(-1e-3f32).to_le_bytes());
            ("absmax below zero".to_string(), Must::Refuse)
        }
        _ => {
            let name = format!("{weight}.absmax");
            let [begin, end] = range(&header, &name);
            header[&name]["dtype"] = json!("U8");
            header[&name]["shape"] = json!([end - begin]);
            ("absmax in bytes, without what they mean".to_string(), Must::Refuse)
        }
    };
    world.replace(file, &join(header.to_string().as_bytes(), &data));
    Case::picture(must, format!("{file}: {weight}: {what}"))
}

/// Shards, and the index that places tensors in them.
pub fn index(dice: &mut Dice, world: &World) -> Case {
    let indices: Vec<&String> = world.base.files.iter().filter(|f| f.ends_with(".index.json")).collect();
    let file = dice.of(&indices).to_string();
    let text = String::from_utf8(world.read(&file)).unwrap();
    if dice.one_in(2) {
        let (bytes, what, must) = mutate(dice, &text);
        world.replace(&file, &bytes);
        return Case::picture(must, format!("{file}: {what}"));
    }
    let mut index: Value = serde_json::from_str(&text).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    let needed: Vec<String> = map.keys().filter(|name| !name.contains("shared")).cloned().collect();
    let name = dice.of(&needed).clone();
    let shard = map[&name].as_str().unwrap().to_string();
    let up = format!("../transformer/{shard}");
    let there = world.model(&file).with_file_name(&shard);
    let names = ["", ".", "..", "/", "/dev/zero", "gone.safetensors", "config.json", "\u{0}", "a/b", "\n"];
    let long = "x".repeat(300);
    let odd = [&names[..], &[&up, there.to_str().unwrap(), &long]].concat();
    let to = odd[dice.below(odd.len())];
    let what = match dice.below(3) {
        0 => {
            let path = Path::new(&file).with_file_name(&shard);
            world.remove(path.to_str().unwrap());
            format!("without {shard}")
        }
        1 => {
            map.insert(name.clone(), json!(to));
            format!("{name} in {to:?}")
        }
        _ => {
            map.remove(&name);
            format!("without {name}")
        }
    };
    world.replace(&file, index.to_string().as_bytes());
    Case::picture(Must::Refuse, format!("{file}: {what}"))
}

// ---- what lies in place of a file -------------------------------------------------------------------------

pub fn in_place_of_a_file(dice: &mut Dice, world: &World) -> Case {
    let file = dice.of(&world.base.files).clone();
    let path = world.model(&file);
    let old = world.read(&file);
    world.remove(&file);
    let mut must = Must::Refuse;
    let what = match dice.below(13) {
        0 => {
            fifo(&path);
            "a FIFO"
        }
        1 => {
            symlink(dice.of(&["/dev/zero", "/dev/urandom", "/dev/full", "/dev/tty"]), &path).unwrap();
            "a device"
        }
        2 => {
            symlink("/dev/null", &path).unwrap();
            "nothing without end"
        }
        3 => {
            symlink("gone", &path).unwrap();
            "a link to nothing"
        }
        4 => {
            symlink(path.file_name().unwrap(), &path).unwrap();
            "a link to itself"
        }
        5 => {
            std::fs::create_dir(&path).unwrap();
            "a folder"
        }
        6 => {
            std::fs::File::create(&path).unwrap().set_len(1 << (33 + dice.below(8))).unwrap();
            "holes"
        }
        7 => {
            std::fs::write(&path, b"").unwrap();
            "nothing in it"
        }
        8 => {
            let len = 1 + dice.below(1 << 16);
            std::fs::write(&path, dice.bytes(len)).unwrap();
            "noise"
        }
        9 => {
            let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
            let page = "<!DOCTYPE html><html><head><title>404</title></head></html>\n";
            std::fs::write(&path, dice.of(&[pointer, page])).unwrap();
            "what a download left"
        }
        10 => {
            // Only the tokenizers' settings have defaults.
            must = if file.ends_with("tokenizer_config.json") { Must::End } else { Must::Refuse };
            "no file"
        }
        11 => {
            std::os::unix::net::UnixListener::bind(&path).map(drop).unwrap();
            "a socket"
        }
        _ => {
            std::fs::write(world.root().join("model/blob"), &old).unwrap();
            symlink(world.root().join("model/blob"), &path).unwrap();
            must = Must::Draw;
            "a link to the file"
        }
    };
    Case::picture(must, format!("{file}: {what}"))
}
