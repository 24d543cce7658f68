//! What a user may ask for: flags, prompts, noise, and places to write to.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::command::fifo;
use crate::json::odd_text;
use crate::judge::{Case, Must};
use crate::models;
use crate::world::{Dice, World, join};

// ---- flags ------------------------------------------------------------------------------------------------

const NUMBERS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "15",
    "16",
    "17",
    "8192",
    "8208",
    "4294967296",
    "9223372036854775807",
    "18446744073709551600",
    "18446744073709551615",
    "18446744073709551616",
    "1e9",
    "0x10",
    "NaN",
    "inf",
    "-inf",
    "1.5",
    "",
    " 16",
    "+16",
    "١٦",
    "1_000",
];
const BUDGETS: [&str; 18] = [
    "0",
    "1",
    "-1",
    "1KiB",
    "1 KiB",
    "0.1B",
    "1e3GiB",
    "nanGiB",
    "infGiB",
    ".",
    ".5GiB",
    "5.GiB",
    "1.2.3GiB",
    "99999999999999999999999GiB",
    "1TiB",
    "GiB",
    "1gib",
    "1GiB1",
];
const PLANNED: [&str; 4] = ["--width", "--height", "--steps", "--t5-length"];
const DRAWN: [&str; 8] = [
    "--seed",
    "--true-cfg-scale",
    "--guidance",
    "--grid",
    "--device",
    "--noise",
    "--timesteps",
    "--prompt-2",
];

fn number(dice: &mut Dice) -> String {
    match dice.below(4) {
        0 => dice.bits().to_string(),
        1 => odd_text(dice).replace('\0', "\u{1}"),
        _ => dice.of(&NUMBERS).to_string(),
    }
}

/// A plan with odd numbers.
pub fn plan_flags(dice: &mut Dice, _: &World) -> Case {
    let model = *dice.of(&["demo", "../model", "../none", "a/b", "", "../model/vae", "/dev/null", "x/y/z"]);
    let mut args = vec!["plan".to_string(), format!("--model={model}")];
    for _ in 0..=dice.below(3) {
        let (flag, value) = match dice.below(6) {
            0 => ("--budget", dice.of(&BUDGETS).to_string()),
            1 => ("--quantize", dice.of(&["nf4", "none", "NF4", "", "fp4"]).to_string()),
            _ => (*dice.of(&PLANNED), number(dice)),
        };
        // Given twice a flag is refused, which is of no interest.
        if !args.iter().any(|arg| arg.starts_with(flag)) {
            args.push(format!("{flag}={value}"));
        }
    }
    Case { what: "flags of plan".to_string(), args, must: Must::End, outputs: Vec::new() }
}

/// A picture that nothing asks a lot of: the budget, or the size, ends it.
pub fn draw_flags(dice: &mut Dice, _: &World) -> Case {
    let mut case = Case::picture(Must::End, "flags of generate".to_string());
    if !dice.one_in(6) {
        case.args.push("--budget=1KiB".to_string());
        case.must = Must::Refuse;
    }
    for _ in 0..=dice.below(2) {
        let flag = *dice.of(&DRAWN);
        let value = match flag {
            "--device" => {
                dice.of(&["auto", "cuda:0", "cuda:99999999999999999999", "cuda:-1", "gpu", ""]).to_string()
            }
            "--grid" => {
                dice.of(&["1x1", "0x0", "1x", "x", "17x1", "-1x1", "1x1x1", "99999999999x1"]).to_string()
            }
            "--noise" => {
                dice.of(&["f32", "bf16", "bf16-legacy", "F32", "none", "/dev/zero", ".", ""]).to_string()
            }
            "--timesteps" => dice.of(&["exact", "bf16", "", "f32"]).to_string(),
            "--prompt-2" => odd_text(dice).replace('\0', "\u{1}"),
            _ => number(dice),
        };
        let default = case.args.iter().position(|arg| arg == flag);
        if let Some(at) = default {
            case.args.drain(at..at + 2);
        }
        if !case.args.iter().any(|arg| arg.starts_with(flag)) {
            case.args.push(format!("{flag}={value}"));
        }
    }
    case
}

// ---- prompts ----------------------------------------------------------------------------------------------

/// A prompt on the command line.
pub fn prompt(dice: &mut Dice, _: &World) -> Case {
    let pieces = [
        "</s>",
        "<|endoftext|>",
        "<extra_id_0>",
        "\u{2581}",
        "a",
        " ",
        "\u{301}",
        "猫",
        "\u{200d}",
        "\n",
        "\u{1b}[",
    ];
    let prompt = match dice.below(5) {
        0 => odd_text(dice).replace('\0', "\u{1}"),
        1 => " \t\n\u{3000}".repeat(dice.below(3)),
        2 => {
            // An argument has at most 128 KiB.
            let piece = dice.of(&pieces);
            piece.repeat(1 + dice.below(120_000 / piece.len()))
        }
        3 => String::from_utf8_lossy(&dice.bytes(100)).replace('\0', ""),
        _ => (0..50).map(|_| *dice.of(&pieces)).collect(),
    };
    let what = format!("prompt {}", crate::start(&prompt));
    let mut case = Case::picture(Must::End, what);
    case.args.remove(1);
    case.args.extend(["--".to_string(), prompt]);
    case
}

/// A file of prompts, of what other systems and programs make.
pub fn prompts(dice: &mut Dice, world: &World) -> Case {
    let file = world.work("prompts.txt");
    let utf16: Vec<u8> = "a cat".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let mut must = Must::Refuse;
    let (content, what) = match dice.below(9) {
        0 => ([b"\xfe\xff", &utf16[..]].concat(), "UTF-16"),
        1 => (b"caf\xe9\n".to_vec(), "Latin-1"),
        2 => (b"a\0b".to_vec(), "NUL"),
        3 => (Vec::new(), "nothing"),
        4 => (b"\xef\xbb\xbf \r\n\t\r\n\n".to_vec(), "blank lines"),
        5 => (b"a\nb\nc\n".to_vec(), "more than cells"),
        6 => (vec![b'x'; (1 << 20) + 1], "one of a megabyte"),
        7 => {
            must = Must::End;
            let len = dice.below(4000);
            (dice.bytes(len), "noise")
        }
        _ => (b"a".to_vec(), "no regular file"),
    };
    if what == "no regular file" {
        match dice.below(5) {
            0 => fifo(&file),
            1 => symlink("/dev/zero", &file).unwrap(),
            2 => symlink("gone", &file).unwrap(),
            3 => std::fs::create_dir(&file).unwrap(),
            _ => std::fs::File::create(&file).unwrap().set_len(1 << 36).unwrap(),
        }
    } else {
        std::fs::write(&file, content).unwrap();
    }
    let mut case =
        Case::with(must, format!("prompts: {what}"), &["--prompts", "prompts.txt", "--grid", "2x1"]);
    case.args.remove(1);
    case
}

/// A file of noise.
pub fn noise(dice: &mut Dice, world: &World) -> Case {
    let header = json!({"noise": {"dtype": "F32", "shape": [1, 1, 64], "data_offsets": [0, 256]}});
    let mut header = header;
    let mut data: Vec<u8> = (0..64).flat_map(|i| (i as f32 / 64.0).to_le_bytes()).collect();
    let mut must = Must::Refuse;
    let what = match dice.below(8) {
        0 => {
            let value = *dice.of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            let at = 4 * dice.below(64);
            data[at..at + 4].copy_from_slice(&value.to_le_bytes());
            "not finite"
        }
        1 => {
            header["noise"]["shape"] =
                dice.of(&[json!([64]), json!([1, 64, 1]), json!([64, 1, 1]), json!([])]).clone();
            "another shape"
        }
        2 => {
            header["noise"]["dtype"] =
                dice.of(&[json!("I32"), json!("U32"), json!("BF16"), json!("F64")]).clone();
            "another dtype"
        }
        3 => {
            header["more"] = json!({"dtype": "F32", "shape": [0], "data_offsets": [256, 256]});
            "two tensors"
        }
        4 => {
            data.truncate(dice.below(256));
            "cut off"
        }
        5 => {
            let huge = 1_u64 << (33 + dice.below(20));
            header["noise"]["shape"] = json!([1, huge / 256, 64]);
            header["noise"]["data_offsets"] = json!([0, huge]);
            "huge"
        }
        6 => {
            let value = *dice.of(&[f32::MAX, 1e30, f32::from_bits(1), -0.0]);
            data = [value.to_le_bytes(); 64].concat();
            must = Must::End;
            "huge or tiny numbers"
        }
        _ => {
            must = Must::End;
            "sound"
        }
    };
    let bytes = join(header.to_string().as_bytes(), &data);
    std::fs::write(world.work("noise.safetensors"), bytes).unwrap();
    let mut case = Case::with(must, format!("noise: {what}"), &["--noise", "noise.safetensors"]);
    if dice.one_in(10) {
        // The command's other input is damaged as well: one message all the same.
        case.what = format!("{} and {}", case.what, models::in_place_of_a_file(dice, world).what);
        case.must = if must == Must::Refuse { Must::Refuse } else { Must::End };
    }
    case
}

// ---- places to write to -----------------------------------------------------------------------------------

/// Makes a place that an output is to go to; what may change there, and whether it can be written.
fn place(dice: &mut Dice, world: &World, ending: &str) -> (String, Vec<String>, Must) {
    let name = format!("place.{ending}");
    let path = world.work(&name);
    let (work, must) = (|name: &str| vec![format!("work/{name}")], Must::Refuse);
    match dice.below(14) {
        0 => {
            let target = format!("target.{ending}");
            std::fs::write(world.work(&target), "old").unwrap();
            symlink(&target, &path).unwrap();
            (name, work(&target), Must::End)
        }
        1 => {
            std::fs::create_dir(world.work("store")).unwrap();
            let to = format!("store/new.{ending}");
            symlink(&to, &path).unwrap();
            (name, work(&to), Must::End)
        }
        2 => {
            symlink(&name, &path).unwrap();
            (name, vec![], must)
        }
        3 => {
            std::fs::create_dir(&path).unwrap();
            (name, vec![], must)
        }
        4 => {
            fifo(&path);
            (name, vec![], must)
        }
        5 => ("/dev/full".to_string(), vec![], must),
        6 => ("/dev/null".to_string(), vec![], Must::End),
        7 => (format!("none/{name}"), vec![], must),
        8 => (String::new(), vec![], must),
        9 => {
            let name = format!("{}.{ending}", "n".repeat(230 + dice.below(40)));
            let outputs = work(&name);
            (name, outputs, Must::End)
        }
        10 => (format!("../model/vae/new.{ending}"), vec![], must),
        11 => {
            let file = dice.of(&world.base.files).clone();
            // By a link with the right ending, too.
            if dice.one_in(2) {
                return (format!("../model/{file}"), vec![], must);
            }
            symlink(world.model(&file), &path).unwrap();
            (name, vec![], must)
        }
        12 => {
            std::fs::write(&path, "old").unwrap();
            let outputs = work(&name);
            (name, outputs, Must::End)
        }
        _ => {
            let name = format!("\u{1b}[31m\u{202e}{}.{ending}", dice.below(10));
            let outputs = work(&name);
            (name, outputs, Must::End)
        }
    }
}

/// The picture, the timings, or both go to odd places.
pub fn outputs(dice: &mut Dice, world: &World) -> Case {
    let flag = *dice.of(&["--output", "--timings"]);
    let ending = if flag == "--output" { *dice.of(&["png", "PNG", "jpg", "jpeg", "webp"]) } else { "json" };
    let (path, outputs, must) = place(dice, world, ending);
    let mut case = Case::picture(must, format!("{flag} {path}"));
    // Timings come last: the picture is there even if they cannot be written.
    if flag == "--output" {
        case.outputs = outputs;
    } else {
        case.outputs.extend(outputs);
    }
    case.args.push(format!("{flag}={path}"));
    if dice.one_in(4) {
        let other = if flag == "--output" { "--timings" } else { "--output" };
        case.args.push(format!("{other}={path}"));
        case.what = format!("{} twice", case.what);
        // A device may be written twice.
        let is_device = path == "/dev/null";
        case.must = if is_device { Must::End } else { Must::Refuse };
        if flag == "--timings" && !is_device {
            case.outputs.retain(|output| output != "work/out.png");
        }
    }
    case
}

/// A folder for the stages.
pub fn dump(dice: &mut Dice, world: &World) -> Case {
    let (mut must, mut outputs) = (Must::Refuse, Vec::new());
    let dir = match dice.below(8) {
        0 => {
            std::fs::write(world.work("dump"), "a file").unwrap();
            "dump"
        }
        1 => {
            std::fs::create_dir(world.work("dump")).unwrap();
            std::fs::write(world.work("dump/latents_9.safetensors"), "of another run").unwrap();
            "dump"
        }
        2 => {
            std::fs::create_dir_all(world.work("dump/vae_out.safetensors")).unwrap();
            "dump"
        }
        3 => {
            std::fs::create_dir(world.work("dump")).unwrap();
            fifo(&world.work("dump/noise.safetensors"));
            "dump"
        }
        4 => {
            symlink("gone", world.work("dump")).unwrap();
            must = Must::End;
            outputs = vec!["work/gone".to_string(), "work/dump".to_string()];
            "dump"
        }
        5 => "../model/vae",
        6 => "prompts.txt/x",
        _ => {
            must = Must::End;
            outputs = vec!["work/dump".to_string()];
            "dump/in/it"
        }
    };
    std::fs::write(world.work("prompts.txt"), "a file").unwrap();
    let mut case = Case::with(must, format!("--dump {dir}"), &["--dump", dir]);
    case.outputs.extend(outputs);
    case
}
