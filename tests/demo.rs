//! The bundled model draws what the prompt says: held-out prompts, drawn by the command, judged by their pixels
//! (models/demo/evaluate.py, plain Python). The full list and its scores are in models/demo/README.md.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::{Command, Stdio};

mod common;
use common::psnr;

/// Every 15th of the 240 held-out prompts is drawn here.
const EVERY: usize = 15;
const DRAWN: usize = 240 / EVERY;

fn evaluate(args: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("python3")
        .arg("models/demo/evaluate.py")
        .args(args)
        .args(["--every", &EVERY.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn pixels(path: &Path) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(Cursor::new(std::fs::read(path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}

fn schnell(dir: &Path, args: &[&str]) {
    let ran = Command::new(env!("CARGO_BIN_EXE_schnell"))
        .args(["generate", "--device", "emulator"])
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// `models/demo/agree.py` also compares every stage.
#[test]
fn pictures_agree_with_diffusers_in_f32() {
    let reference = Path::new("models/demo/reference");
    let prompts = std::fs::read_to_string(reference.join("prompts.txt")).unwrap();
    assert_eq!(prompts.lines().count(), 5);
    let dir = tempfile::tempdir().unwrap();
    for (n, prompt) in prompts.lines().enumerate() {
        let seed = n.to_string();
        schnell(dir.path(), &[prompt, "--seed", &seed]);
        let (width, height, got) = pixels(&dir.path().join("out.png"));
        assert_eq!((width, height), (128, 128));
        let want = pixels(&reference.join(format!("{n}.png"))).2;
        let psnr = psnr(&got, &want);
        assert!(psnr >= 35.0, "{prompt}: {psnr:.1} dB");
    }
}

#[test]
fn held_out_prompts_are_drawn_right() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = evaluate(&["prompts"], &[]);
    assert_eq!(prompts.lines().count(), DRAWN);
    std::fs::write(dir.path().join("prompts.txt"), &prompts).unwrap();
    schnell(dir.path(), &["--grid", "4x4", "--prompts", "prompts.txt", "--output", "sheet.png"]);
    let (width, height, pixels) = pixels(&dir.path().join("sheet.png"));
    let size = format!("{width}x{height}");
    let scores = evaluate(&["scores", "--json", "--raw", &size], &pixels);
    let scores: BTreeMap<String, f64> = serde_json::from_str(&scores).unwrap();
    eprintln!("{scores:?}");
    // The demo's bars, less the one or two pictures by which a sample of sixteen may miss them.
    for (question, least) in [
        ("all: background", 15.0 / 16.0),
        ("all: color", 14.0 / 16.0),
        ("all: shape", 13.0 / 16.0),
        ("all: position", 13.0 / 16.0),
        ("two: both", 3.0 / 6.0),
    ] {
        assert!(scores[question] >= least, "{question}: {scores:?}");
    }
}
