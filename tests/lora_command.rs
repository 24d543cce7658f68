//! `--lora` of every command that takes it: it draws what the library does, a changed strength is other work, and the file is never
//! written over.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;
#[path = "common/loras.rs"]
mod loras;
#[path = "common/rng.rs"]
mod rng;

use command::{Ran, Sandbox, bytes, pixels};
use rng::Rng;
use schnell::{Lora, Model, Pipeline, Quantize, Request};

const FLAGS: [&str; 12] = [
    "--device",
    "emulator",
    "--t5-length",
    "16",
    "--width",
    "64",
    "--height",
    "64",
    "--steps",
    "1",
    "--seed",
    "3",
];

/// With a LoRA of all matrices in `style.safetensors`.
fn sandbox() -> Sandbox {
    let (sandbox, model) = (Sandbox::new(), Model::demo().unwrap());
    let changes = loras::changes(model.config(), (4, 1.0), 1, |_, _| true);
    loras::write(&sandbox.path(""), "style.safetensors", &changes);
    sandbox
}

fn run(sandbox: &Sandbox, command: &[&str], more: &[&str]) -> Ran {
    sandbox.run([command, &FLAGS[..], more].concat())
}

#[test]
fn it_draws_what_the_library_does_and_says_so() {
    let sandbox = sandbox();
    let model = Model::demo().unwrap();
    let lora = Lora::open(sandbox.path("style.safetensors"), model.config()).unwrap();
    let model = model.with_loras(&[(lora, -0.5)]).unwrap();
    let shape = model.shape(64, 64).steps(1).t5_length(16);
    let device = schnell::Device::emulator(Default::default());
    let builder = Pipeline::builder(&model).quantize(Quantize::Nf4).warm_up([shape]).device(&device);
    let want = builder.load().unwrap().generate(&Request::new("a star").seed(3)).unwrap().rgb;
    let ran =
        run(&sandbox, &["generate", "a star", "--output", "star.png"], &["--lora", "style.safetensors:-0.5"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let file = bytes(&sandbox.path("star.png"));
    assert!(pixels(&sandbox.path("star.png")).1 == want, "another picture");
    let said = String::from_utf8_lossy(&file).into_owned();
    assert!(said.contains("style.safetensors:-0.5 "), "the picture does not name it");
    let planned = sandbox.run(["plan", "--lora", "style.safetensors"]);
    assert!(planned.code == 0 && planned.stdout.contains("room for LoRAs"), "{}", planned.stdout);
}

#[test]
fn what_measures_and_what_draws_many_takes_it_too() {
    let sandbox = sandbox();
    for what in ["latency", "vram"] {
        let args = ["bench", what, "--device", "emulator", "-n", "1", "--t5-length", "16", "--width", "64"];
        let more = ["--height", "64", "--steps", "1", "--lora", "style.safetensors:0.5"];
        let ran = sandbox.run([&args[..], &more].concat());
        assert_eq!(ran.code, 0, "{what}: {}", ran.stderr);
    }
    std::fs::write(sandbox.path("batch"), "a star\n").unwrap();
    let batch = |lora: &[&str]| {
        let ran = run(&sandbox, &["generate", "--batch", "batch", "--output", "out.png"], lora);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (ran.stderr, pixels(&sandbox.path("out-0001.png")).1)
    };
    let mut seen = Vec::new();
    for lora in [&[][..], &["--lora", "style.safetensors"], &["--lora", "style.safetensors:0.25"]] {
        let (said, drawn) = batch(lora);
        assert!(said.contains("1 pictures drawn"), "of other LoRAs, and not drawn: {said}");
        assert!(!seen.contains(&drawn), "{lora:?} is without effect");
        seen.push(drawn);
        let (said, _) = batch(lora);
        assert!(said.contains("are there already"), "{said}");
    }
}

/// A picture is drawn again with the LoRAs that it says, and with no others.
#[test]
fn pictures_are_reproduced_with_their_loras() {
    let sandbox = sandbox();
    let style = ["--lora", "style.safetensors:0.5"];
    let ran = run(&sandbox, &["generate", "a star", "--output", "star.png"], &style);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let again =
        |more: &[&str]| sandbox.run([&["reproduce", "star.png", "--device", "emulator"][..], more].concat());
    let same = again(&style);
    assert!(same.code == 0 && same.stderr.contains("the same, to the bit"), "{}", same.stderr);
    for more in [&[][..], &["--lora", "style.safetensors"], &[style, style].concat()] {
        let other = again(more);
        assert!(
            other.code == 1 && other.stderr.contains("LoRAs: style.safetensors:0.5 "),
            "{}",
            other.stderr
        );
    }
}

#[test]
fn the_file_is_never_written_over() {
    let sandbox = sandbox();
    let before = bytes(&sandbox.path("style.safetensors"));
    std::fs::write(sandbox.path("batch"), "a star\n").unwrap();
    let (style, lora) = ("style.safetensors", ["--lora", "style.safetensors"]);
    let bench = |what| vec!["bench", what, "--device", "emulator", "-n", "1", "--json", style];
    for args in [
        [&["generate", "a star", "--output", "star.png", "--timings", style], &FLAGS[..]].concat(),
        [&["generate", "--batch", "batch", "--output", "star.png", "--manifest", style], &FLAGS[..]].concat(),
        bench("latency"),
        bench("vram"),
    ] {
        let ran = sandbox.run([&args[..], &lora].concat());
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(bytes(&sandbox.path(style)) == before, "{args:?}");
        assert!(ran.stderr.contains("style.safetensors"), "{args:?}: {}", ran.stderr);
    }
    for (lora, why) in [
        ("style.safetensors:strong", "no strength such as 0.8"),
        ("style.safetensors:inf", "no strength such as 0.8"),
        ("none.safetensors", "none.safetensors"),
    ] {
        let ran = run(&sandbox, &["generate", "a star", "--output", "star.png"], &["--lora", lora]);
        assert!(ran.code != 0 && ran.stderr.contains(why), "{lora}: {}", ran.stderr);
        assert!(!sandbox.path("star.png").exists());
    }
}
