//! `schnell reproduce`: pictures are drawn again from what their files say, and whatever differs is told.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use command::*;
use schnell::image::{self, Note, Picture};
use schnell::{ImageFormat, Model, Plan, Quantize};

const EMULATOR: [&str; 2] = ["--device", "emulator"];

fn reproduce(sandbox: &Sandbox, file: &str, more: &[&str]) -> Ran {
    sandbox.run([&["reproduce", file][..], &EMULATOR, more].concat())
}

#[track_caller]
fn is_same(sandbox: &Sandbox, file: &str, more: &[&str]) {
    let ran = reproduce(sandbox, file, more);
    assert!(ran.code == 0 && ran.stderr.contains("the same, to the bit"), "{file}: {}", ran.stderr);
    assert!(!ran.stderr.contains("though"), "{file}: {}", ran.stderr);
}

#[track_caller]
fn differs(sandbox: &Sandbox, file: &str, more: &[&str], words: &str) {
    let ran = reproduce(sandbox, file, more);
    assert!(ran.code == 1 && ran.stderr.contains("differs"), "{file}: {} {}", ran.code, ran.stderr);
    assert!(ran.stderr.contains(words), "{file}: {}", ran.stderr);
}

/// Writes what `change` makes of the picture in `from` into `to`.
fn changed(sandbox: &Sandbox, from: &str, to: &str, change: impl FnOnce(&mut Picture)) {
    let mut picture = image::decode(&bytes(&sandbox.path(from))).unwrap();
    change(&mut picture);
    let notes = picture.notes.iter().map(|(keyword, text)| (&*keyword.clone().leak(), text.clone()));
    let notes: Vec<Note> = notes.collect();
    let rgb = picture.rgb.unwrap();
    let format = ImageFormat::of(to).unwrap();
    let file = image::encode(format, picture.width, picture.height, &rgb, &notes).unwrap();
    std::fs::write(sandbox.path(to), file).unwrap();
}

fn flip(picture: &mut Picture, keyword: &str) {
    let (_, hash) = picture.notes.iter_mut().find(|(known, _)| known == keyword).unwrap();
    // A hexadecimal digit and the one that differs in its lowest bit.
    let digit = u8::from_str_radix(&hash[..1], 16).unwrap() ^ 1;
    hash.replace_range(..1, &format!("{digit:x}"));
}

/// Whatever picture README.md shows was drawn by the bundled model, and is drawn again.
#[test]
fn pictures_of_the_readme_are_reproduced() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let shown = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let pictures: Vec<&str> = shown.filter(|path| ImageFormat::of(path).is_some()).collect();
    assert_eq!(pictures, ["docs/demo.png"]);
    for picture in pictures {
        let ran = reproduce(&Sandbox::new(), text(&root.join(picture)), &[]);
        // Its kernels are told apart by their sources, which may have changed since.
        assert!(ran.code == 0 && ran.stderr.contains("the same, to the bit"), "{picture}: {}", ran.stderr);
    }
}

#[test]
fn every_format_and_setting_comes_back() {
    let sandbox = Sandbox::new();
    for (file, more) in [
        ("a.png", &["--seed", "7", "--prompt-2", "a <ring> & \u{e9}", "--timesteps", "bf16"][..]),
        ("a.jpg", &["--noise", "bf16", "--quantize", "none"]),
        (
            "a.webp",
            &[
                "--negative-prompt",
                "a ring",
                "--true-cfg-scale",
                "1.7",
                "--precision",
                "fast",
                "--steps",
                "2",
            ],
        ),
    ] {
        let ran = sandbox.run(quick(&[&["--output", file], more].concat()));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        is_same(&sandbox, file, &[]);
    }
    std::fs::write(sandbox.path("p.txt"), "a red circle\na blue ring").unwrap();
    let sheet = [
        "generate",
        "--prompts",
        "p.txt",
        "--grid",
        "2x2",
        "--width",
        "64",
        "--height",
        "64",
        "--steps",
        "1",
    ];
    let ran = sandbox.run([&sheet[..], &EMULATOR].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    is_same(&sandbox, "out.png", &[]);
    changed(&sandbox, "out.png", "b.png", |sheet| {
        sheet.notes.iter_mut().for_each(|(_, text)| {
            *text = text.replace("blue", "green");
        })
    });
    differs(&sandbox, "b.png", &[], "latents of picture 2");
}

#[test]
fn one_bit_is_noticed() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(quick(&["--output", "a.png"])).code, 0);
    for (to, at) in [("b.png", 0), ("b.webp", 64 * 64 * 3 - 1)] {
        changed(&sandbox, "a.png", to, |picture| picture.rgb.as_mut().unwrap()[at] ^= 1);
        differs(&sandbox, to, &[], "its pixels are not those");
    }
    changed(&sandbox, "a.png", "c.png", |picture| flip(picture, "latents"));
    differs(&sandbox, "c.png", &[], "  latents: ");
    // In a JPEG the hash of the pixels alone tells.
    changed(&sandbox, "a.png", "d.jpg", |picture| flip(picture, "pixels"));
    differs(&sandbox, "d.jpg", &[], "  pixels: ");
}

#[test]
fn another_model_is_noticed() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(quick(&["--output", "a.png"])).code, 0);
    let model = copy_of_demo();
    is_same(&sandbox, "a.png", &["--model", text(model.path())]);
    let path = model.path().join("transformer/diffusion_pytorch_model.safetensors");
    let mut weights = bytes(&path);
    // The digest looks at the first 4096 bytes of each tensor; what is behind them is noticed by what it draws.
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&weights[8..header]).unwrap();
    let large = names["transformer_blocks.0.attn.to_q.weight"]["data_offsets"].clone();
    let [begin, end] = [0, 1].map(|i| header + large[i].as_u64().unwrap() as usize);
    assert!(end - begin > 2 * 4096);
    for (at, words) in [(begin + 4096, "  latents: "), (begin, "model: ")] {
        // Every other row's numbers with the other sign.
        for byte in weights[at + 1..at + 4096].iter_mut().step_by(2) {
            *byte ^= 0x80;
        }
        std::fs::write(&path, &weights).unwrap();
        differs(&sandbox, "a.png", &["--model", text(model.path())], words);
    }
}

#[test]
fn what_says_too_little_is_refused() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(quick(&["--output", "a.png", "--no-metadata"])).code, 0);
    sandbox.refuses([&["reproduce", "a.png"][..], &EMULATOR].concat(), 2, &["a.png", "no receipt"]);
    let noise = vec![0; 4 * 16 * 64];
    save_tensors(&sandbox.path("n"), &[("noise", schnell::weights::Dtype::F32, vec![1, 16, 64], noise)]);
    assert_eq!(sandbox.run(quick(&["--output", "b.png", "--noise", "n"])).code, 0);
    sandbox.refuses([&["reproduce", "b.png"][..], &EMULATOR].concat(), 2, &["b.png", "noise was given"]);
    std::fs::write(sandbox.path("c.png"), "\u{89}PNG").unwrap();
    sandbox.refuses(["reproduce", "c.png"], 2, &["c.png", "neither a PNG"]);
    sandbox.refuses(["reproduce", "none.png"], 7, &["none.png"]);
    sandbox.refuses(["reproduce", "."], 2, &["a folder"]);
}

/// Where neither memory has room for the weights they stay on disk, in a folder that somebody has to name.
#[test]
fn weights_that_stay_on_disk_need_a_folder() {
    let sandbox = Sandbox::new();
    let model = Model::demo().unwrap();
    let plan =
        Plan::new(model.config(), model.shape(64, 64).steps(1), Quantize::usual(model.config())).unwrap();
    let least = plan.least_bytes().unwrap();
    let (loading, generating) = plan.within(least).unwrap().host_bytes();
    let (least, host) = (least.to_string(), (loading + generating).to_string());
    let budgets = ["--budget", &least, "--host-budget", &host];
    let flags = ["generate", "a ring", "--width", "64", "--height", "64", "--steps", "1"];
    let refused = |ran: Ran| {
        assert!(
            ran.code == 2 && ran.stderr.contains("weights on disk: name a folder"),
            "{} {}",
            ran.code,
            ran.stderr
        );
    };
    refused(sandbox.run([&flags[..], &EMULATOR, &budgets].concat()));
    let ran = sandbox.run([&flags[..], &EMULATOR].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    refused(reproduce(&sandbox, "out.png", &budgets));
    is_same(&sandbox, "out.png", &[&budgets[..], &["--cache", "cache"]].concat());
}
