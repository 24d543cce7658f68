//! `schnell generate --batch`: pictures of a file, what the manifest says of them, going on after an interruption, and lines that are
//! refused before any work.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use command::{Ran, Sandbox, bytes, pixels};
use serde_json::Value;

const FLAGS: [&str; 10] =
    ["--device", "emulator", "--t5-length", "16", "--width", "64", "--height", "64", "--steps", "1"];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "--batch", "batch", "--output", "out/cat.png"], &FLAGS[..], more].concat()
}

fn run(sandbox: &Sandbox, more: &[&str]) -> Ran {
    sandbox.run(args(more))
}

fn sandbox(batch: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("out")).unwrap();
    std::fs::write(sandbox.path("batch"), batch).unwrap();
    sandbox
}

fn manifest(sandbox: &Sandbox) -> Vec<Value> {
    let text = std::fs::read_to_string(sandbox.path("out/cat.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn pictures(sandbox: &Sandbox) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(sandbox.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn pictures_of_a_file_are_those_that_single_runs_draw() {
    let batch = "a red circle\n\n{\"prompt\": \"a blue square\", \"seed\": 7, \"width\": 80, \"output\": \"square.png\"}\r\n\
                 {\"prompt\": \"a star\", \"negative_prompt\": \"green\", \"true_cfg_scale\": 2.0, \"steps\": 2}";
    let sandbox = sandbox(batch);
    let ran = run(&sandbox, &["--seed", "3"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("3 pictures drawn, 0 failed; out/cat.jsonl says of what"), "{}", ran.stderr);
    assert_eq!(pictures(&sandbox), ["cat-0001.png", "cat-0004.png", "cat.jsonl", "square.png"]);
    let entries = manifest(&sandbox);
    let singles: [(usize, &str, &[&str]); 3] = [
        (1, "cat-0001.png", &["a red circle", "--seed", "3", "--width", "64", "--steps", "1"]),
        (3, "square.png", &["a blue square", "--seed", "7", "--width", "80", "--steps", "1"]),
        (
            4,
            "cat-0004.png",
            &[
                "a star",
                "--seed",
                "3",
                "--width",
                "64",
                "--steps",
                "2",
                "--negative-prompt",
                "green",
                "--true-cfg-scale",
                "2",
            ],
        ),
    ];
    assert_eq!(entries.len(), singles.len());
    for (entry, (line, file, single)) in entries.iter().zip(singles) {
        let common =
            ["--device", "emulator", "--t5-length", "16", "--height", "64", "--output", "single.png"];
        let ran = sandbox.run([&["generate"], single, &common].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let (alone, of_batch) = (bytes(&sandbox.path("single.png")), bytes(&sandbox.path("out").join(file)));
        assert!(alone == of_batch, "{file} is not what a single run draws");
        assert_eq!((&entry["line"], &entry["file"]), (&line.into(), &file.into()));
        assert_eq!(entry["file_sha256"], sha256(&alone));
        assert_eq!(entry["pixels_sha256"], sha256(&pixels(&sandbox.path("single.png")).1));
        assert_eq!(entry["request"]["prompt"], single[0]);
        assert!(entry["timings"]["total_ms"].as_f64().unwrap() > 0.0 && entry["error"].is_null());
    }
}

#[test]
fn what_is_there_is_not_drawn_again() {
    let sandbox = sandbox("a red circle\na blue square\na star\n");
    let identity = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        let found = sandbox.path("out").join(name).metadata().unwrap();
        (found.ino(), found.mtime_nsec())
    };
    assert_eq!(run(&sandbox, &[]).code, 0);
    let names = ["cat-0001.png", "cat-0002.png", "cat-0003.png"];
    let before = names.map(identity);
    let (first, whole) = (manifest(&sandbox), names.map(|name| bytes(&sandbox.path("out").join(name))));
    let ran = run(&sandbox, &[]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("all 3 pictures are there already"), "{}", ran.stderr);
    assert_eq!(names.map(identity), before);

    // One is damaged, one is of another prompt now.
    std::fs::write(sandbox.path("out/cat-0001.png"), &whole[0][..100]).unwrap();
    std::fs::write(sandbox.path("batch"), "a red circle\na blue ring\na star\n").unwrap();
    let ran = run(&sandbox, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("1 of 3 pictures are there already"), "{}", ran.stderr);
    assert!(ran.stderr.contains("2 pictures drawn"), "{}", ran.stderr);
    assert_eq!(identity(names[2]), before[2], "it was drawn again");
    assert!(
        bytes(&sandbox.path("out/cat-0001.png")) == whole[0]
            && bytes(&sandbox.path("out/cat-0002.png")) != whole[1]
    );
    let now = manifest(&sandbox);
    assert_eq!((now.len(), &now[0]["pixels_sha256"]), (3, &first[0]["pixels_sha256"]));
    assert_eq!(now[1]["request"]["prompt"], "a blue ring");
    // Another seed is another picture of each.
    let ran = run(&sandbox, &["--seed", "1"]);
    assert!(ran.stderr.contains("3 pictures drawn"), "{}", ran.stderr);
    // A manifest of something else is nobody's to write over.
    std::fs::write(sandbox.path("out/cat.jsonl"), "{\"a\": 1}\n").unwrap();
    let ran = run(&sandbox, &[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("line 1: not what --batch writes"), "{}", ran.stderr);
}

#[test]
fn an_interrupted_batch_leaves_whole_files_and_goes_on() {
    let sandbox = sandbox(&"a red circle\n".repeat(40));
    let mut child = sandbox.command(args(&[])).stderr(std::process::Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let several =
        || std::fs::read_to_string(sandbox.path("out/cat.jsonl")).is_ok_and(|text| text.lines().count() >= 3);
    while !several() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no picture came");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    // Not SIGINT, which shells let what they run in the background ignore.
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    let entries = manifest(&sandbox);
    assert!((3..40).contains(&entries.len()), "{} pictures", entries.len());
    for entry in &entries {
        let file = bytes(&sandbox.path("out").join(entry["file"].as_str().unwrap()));
        assert_eq!(entry["file_sha256"], sha256(&file));
    }
    // The manifest, its pictures, and the one that came after its last writing at most; nothing half.
    let names = pictures(&sandbox);
    assert!(names.iter().all(|name| name.starts_with("cat")), "{names:?}");
    assert!(names.len() <= entries.len() + 2, "{names:?}");
    std::fs::write(sandbox.path("batch"), "a red circle\n".repeat(entries.len() + 1)).unwrap();
    let ran = run(&sandbox, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("1 pictures drawn, 0 failed"), "{}", ran.stderr);
}

#[test]
fn a_wrong_line_is_told_before_anything_is_drawn() {
    let good = "a red circle\n";
    let line = |text: &str| format!("{good}{text}\n");
    let shapes: String = (1..=9).map(|n| format!("{{\"prompt\": \"a\", \"steps\": {n}}}\n")).collect();
    let cases = [
        (line("{\"prompt\": \"a\", \"sede\": 1}"), 2, "batch: line 2: unknown field `sede`"),
        (line("{\"prompt\": \"a\", \"seed\": -1}"), 2, "line 2: invalid value"),
        (line("{a cat}"), 2, "a prompt that begins with { is written as JSON"),
        (line("{\"seed\": 1}"), 2, "line 2: missing field `prompt`"),
        (line("{\"prompt\": \" \"}"), 2, "line 2: the prompt is empty"),
        (line("{\"prompt\": \"a\", \"width\": 65}"), 2, "line 2: width 65 is not a multiple of 16"),
        (
            line("{\"prompt\": \"a\", \"output\": \"../x.png\"}"),
            2,
            "line 2: output ../x.png: name a file in the folder of --output",
        ),
        (line("{\"prompt\": \"a\", \"output\": \"/x.png\"}"), 2, "line 2: output /x.png"),
        (line("{\"prompt\": \"a\", \"output\": \"x.bmp\"}"), 2, "line 2: out/x.bmp: pictures are PNG"),
        (
            line("{\"prompt\": \"a\", \"output\": \"cat-0001.png\"}"),
            2,
            "line 2: cat-0001.png is the picture of line 1, too",
        ),
        (
            line(&format!("{{\"prompt\": \"{}\", \"output\": \"x.jpg\"}}", "x".repeat(70_000))),
            2,
            "bytes of notes",
        ),
        (line("{}\n{}\n{}"), 2, "(2 more lines are wrong, too)"),
        ("\n\n".to_string(), 2, "0 prompts; expected 1 to 10000"),
        ("a\n".repeat(10_001), 2, "10001 prompts; expected 1 to 10000"),
        (shapes, 2, "pictures of 9 shapes"),
    ];
    for (batch, code, said) in cases {
        let sandbox = sandbox(&batch);
        let ran = run(&sandbox, &[]);
        assert_eq!(ran.code, code, "{said}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
        assert!(pictures(&sandbox).is_empty(), "{said}: something was written");
    }
    let sandbox = sandbox(good);
    for (more, said) in [
        (&["--seed", "random"][..], "name a number with --seed"),
        (&["--manifest", "batch"], "line 1: not what --batch writes"),
        (&["--manifest", "out/cat-0001.png"], "out/cat-0001.png is a picture of the batch"),
        (&["--dump", "d"], "--dump"),
        (&["--grid", "2x2"], "--grid"),
    ] {
        let ran = run(&sandbox, more);
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
        assert!(pictures(&sandbox).is_empty(), "{more:?}: something was written");
    }
}

/// A picture that cannot be drawn costs no other.
#[test]
fn a_picture_that_fails_is_in_the_manifest_and_the_others_are_drawn() {
    // Tokenizers refuse a prompt of more than so many bytes.
    let sandbox = sandbox(&format!("a red circle\n{}\na star\n", "x".repeat(2 << 20)));
    let ran = run(&sandbox, &[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("2 pictures drawn, 1 failed"), "{}", ran.stderr);
    let entries = manifest(&sandbox);
    assert_eq!(entries.len(), 3);
    assert!(
        entries[1]["error"].as_str().unwrap().contains("expected at most")
            && entries[1]["pixels_sha256"].is_null()
    );
    assert_eq!(pictures(&sandbox), ["cat-0001.png", "cat-0003.png", "cat.jsonl"]);
    // It is tried again; the others are not.
    let ran = run(&sandbox, &[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("2 of 3 pictures are there already"), "{}", ran.stderr);
}
