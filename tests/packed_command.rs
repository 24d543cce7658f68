//! The packed cache as the command has it: what is wrong with it is said, and no moment at which a run is killed does harm.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/golden.rs"]
mod golden;

use std::time::{Duration, Instant};

use command::Sandbox;
use common::{Rng, identity, only_file};

/// Whatever is wrong with a file: it is said, the picture is right, and the file is made again.
#[test]
fn what_is_stale_foreign_or_damaged_is_made_again() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("model")).unwrap();
    schnell::demo::write(&sandbox.path("model")).unwrap();
    let cache = sandbox.path("cache");
    let draw = |args: &[&str]| {
        let common = ["generate", "a red circle", "--model", "model", "--device", "emulator"];
        let size = ["--width", "64", "--height", "64", "--steps", "1", "--t5-length", "16"];
        let ran = sandbox.run(common.iter().chain(&size).chain(args));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (std::fs::read(sandbox.path("out.png")).unwrap(), ran.stderr)
    };
    let (want, _) = draw(&[]);
    let with_cache = || draw(&["--cache", "cache"]);
    let (got, said) = with_cache();
    assert!(got == want && !said.contains("made again"), "{said}");
    let path = only_file(&cache);
    let whole = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;

    let mut flipped = whole.clone();
    flipped[header + 12_345] ^= 4;
    let mut last = whole.clone();
    *last.last_mut().unwrap() ^= 128;
    let replaced = |from: &str, to: &str| -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
    };
    let digest = path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap();
    let (model, other) = (format!("\"model\":\"{digest}\""), format!("\"model\":\"{:016}\"", 0));
    let (order, older) = (header_value(&whole[8..header], "format"), "schnell 1");
    let older_order = format!("its format is {older}, not {order}");
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("a flipped bit", flipped, "are damaged"),
        ("the last bit", last, "are damaged"),
        ("half", whole[..whole.len() / 2].to_vec(), "truncated"),
        ("nothing", Vec::new(), "not a safetensors file"),
        ("something else", b"GIF89a, or whatever".repeat(9), "safetensors"),
        ("an older order", replaced(&format!("\"{order}\""), &format!("\"{older}\"")), &older_order),
        ("another model", replaced(&model, &other), "its model is 0000000000000000"),
        ("no checksums", replaced("\"files\"", "\"filet\""), "the model's files have changed"),
    ];
    for (what, bytes, why) in cases {
        std::fs::write(&path, bytes).unwrap();
        let (got, said) = with_cache();
        assert!(got == want, "{what}: another picture");
        assert!(said.contains("is made again: ") && said.contains(why), "{what}: {said}");
        assert!(std::fs::read(only_file(&cache)).unwrap() == whole, "{what}");
        let (got, said) = with_cache();
        assert!(got == want && !said.contains("made again"), "{what}, once more: {said}");
    }

    // The model's files are others: the time says so, though the beginning of no tensor does.
    let weights = sandbox.path("model/vae/diffusion_pytorch_model.safetensors");
    let opened = std::fs::File::options().write(true).open(&weights).unwrap();
    opened.set_modified(std::time::SystemTime::now() + Duration::from_secs(5)).unwrap();
    let (got, said) = with_cache();
    assert!(got == want && said.contains("the model's files have changed since"), "{said}");
    let (_, said) = with_cache();
    assert!(!said.contains("made again"), "{said}");

    // Where nothing can be written, what is there is read all the same, and what is not, is said.
    std::fs::write(sandbox.path("file"), "").unwrap();
    let ran = sandbox.run(["generate", "x", "--width", "64", "--height", "64", "--cache", "file"]);
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot create file: "), "{}", ran.stderr);
}

/// What the header of a file says of itself under `key`.
fn header_value(header: &[u8], key: &str) -> String {
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    header["__metadata__"][key].as_str().unwrap().to_string()
}

/// Killed at any moment, whoever comes next finds a whole file or none, and clears what is left of the others.
#[test]
fn killed_at_any_moment_nothing_half_written_is_loaded() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("model")).unwrap();
    schnell::demo::write(&sandbox.path("model")).unwrap();
    let args = [
        "generate",
        "a red circle",
        "--model",
        "model",
        "--device",
        "emulator",
        "--width",
        "64",
        "--height",
        "64",
        "--steps",
        "1",
        "--t5-length",
        "16",
        "--cache",
        "cache",
    ];
    let cache = sandbox.path("cache");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&cache).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut rng = Rng(13);
    let mut left = 0;
    for i in 0..20 {
        let mut child = sandbox.command(args).stderr(std::process::Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        // Half of them while the file is being written, if they come in time.
        while i % 2 == 0
            && !names().iter().any(|name| name.starts_with('.'))
            && begun.elapsed().as_secs() < 20
        {
            if child.try_wait().unwrap().is_some() {
                break;
            }
        }
        let range = if i % 2 == 0 { 20_000 } else { 900_000 };
        std::thread::sleep(Duration::from_micros(rng.bits() % range));
        child.kill().unwrap();
        child.wait().unwrap();
        left += names().iter().filter(|name| name.starts_with('.')).count();
        // Every other time what was made whole goes, so that there is something to make.
        for name in names().iter().filter(|name| !name.starts_with('.')) {
            std::fs::remove_file(cache.join(name)).unwrap();
        }
    }
    assert!(left > 0, "none was killed while it wrote");
    let ran = sandbox.run(args);
    assert!(ran.code == 0 && !ran.stderr.contains("again"), "{}", ran.stderr);
    let made = identity(&only_file(&cache));
    let first = std::fs::read(sandbox.path("out.png")).unwrap();
    let ran = sandbox.run(args);
    assert_eq!((ran.code, identity(&only_file(&cache))), (0, made), "{}", ran.stderr);
    assert!(std::fs::read(sandbox.path("out.png")).unwrap() == first);
}
