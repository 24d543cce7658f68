//! `schnell bench latency`: what it counts, what it compares, and what it refuses before it has drawn anything.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use command::{Ran, Sandbox};
use serde_json::Value;

fn bench(sandbox: &Sandbox, args: &[&str]) -> Ran {
    let common =
        ["bench", "latency", "--device", "emulator", "--width", "64", "--height", "64", "--steps", "1"];
    let rest = ["--t5-length", "16", "--iterations", "3", "--warm-up", "1"];
    sandbox.run(common.iter().chain(&rest).chain(args))
}

fn json(sandbox: &Sandbox, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(sandbox.path(name)).unwrap()).unwrap()
}

#[test]
fn pictures_are_timed_and_compared() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("prompts"), "a red circle\na blue square\n").unwrap();
    let all = ["--prompts", "prompts", "--json", "before.json", "--histogram", "h.svg", "--max-p99", "1000s"];
    let ran = bench(&sandbox, &all);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for expected in [
        "3 pictures of 64 x 64, 1 steps, nf4, on emulator",
        "P99.9",
        "\nclip ",
        "\nstep 0 ",
        "\nvae ",
        "\npicture ",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}: {}", ran.stdout);
    }
    assert!(ran.stderr.contains("is within --max-p99 of 1000000.0 ms"), "{}", ran.stderr);
    let svg = std::fs::read_to_string(sandbox.path("h.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("P99.9") && svg.contains("3 pictures on emulator"));
    let mut before = json(&sandbox, "before.json");
    assert_eq!(before["picture_ms"].as_array().unwrap().len(), 3);
    assert_eq!(before["of"]["prompts"].as_array().unwrap().len(), 2);
    // Encoders run for each picture, though prompts come again; and of the picture's time its stages are nearly all.
    let of_stages = before["stages"].as_array().unwrap();
    let ms = |times: &Value| times.as_array().unwrap().iter().map(|ms| ms.as_f64().unwrap()).sum::<f64>();
    let clip = of_stages.iter().find(|stage| stage["stage"] == "clip").unwrap();
    assert_eq!(clip["ms"].as_array().unwrap().len(), 3);
    let (stages, pictures) =
        (of_stages.iter().map(|stage| ms(&stage["ms"])).sum::<f64>(), ms(&before["picture_ms"]));
    assert!((0.9..=1.0).contains(&(stages / pictures)), "{stages} of {pictures}");

    // Times of the past that are a tenth: everything is slower. Ten times as long: everything is faster.
    for (factor, code, said) in [(0.1, 1, "slower than before"), (10.0, 0, "faster than before")] {
        let scaled = |ms: &Value| Value::from(ms.as_f64().unwrap() * factor);
        let mut other = before.clone();
        other["picture_ms"] = before["picture_ms"].as_array().unwrap().iter().map(scaled).collect();
        std::fs::write(sandbox.path("other.json"), other.to_string()).unwrap();
        let ran = bench(&sandbox, &["--prompts", "prompts", "--compare", "other.json", "--json", "-"]);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["picture_ms"].is_array());
    }
    let late = bench(&sandbox, &["--max-p99", "1ms"]);
    assert_eq!(late.code, 1, "{}", late.stderr);
    assert!(late.stderr.contains("above --max-p99 of 1.0 ms"), "{}", late.stderr);

    before["of"]["steps"] = 4.into();
    std::fs::write(sandbox.path("steps.json"), before.to_string()).unwrap();
    std::fs::write(sandbox.path("broken.json"), "{\"of\": 1}").unwrap();
    std::fs::write(sandbox.path("none"), "\n\n").unwrap();
    before["picture_ms"] = Value::Array(Vec::new());
    std::fs::write(sandbox.path("empty.json"), before.to_string()).unwrap();
    let refused: [(&[&str], i32, &str); 8] = [
        (&["--prompts", "prompts", "--compare", "steps.json"], 2, "its steps was 4, now it is 1"),
        (&["--compare", "broken.json"], 2, "not what `schnell bench latency --json` writes"),
        (&["--compare", "empty.json"], 2, "times above 0 are expected"),
        (&["--compare", "before.json", "--json", "before.json"], 2, "not the file of --compare"),
        (&["--compare", "nowhere.json"], 7, "nowhere.json"),
        (&["--prompts", "none"], 2, "the file has no prompt"),
        (&["--histogram", "h.png"], 2, "name a file that ends in .svg"),
        (&["--tolerance", "NaN", "--compare", "before.json"], 2, "--tolerance takes per cent"),
    ];
    for (args, code, said) in refused {
        let ran = bench(&sandbox, args);
        assert_eq!(ran.code, code, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{args:?}: {}", ran.stderr);
        assert!(!ran.stdout.contains("picture"), "{args:?}: it drew");
    }
    assert_eq!(
        json(&sandbox, "before.json")["picture_ms"].as_array().unwrap().len(),
        3,
        "it was written over"
    );
}

/// Every kind of kernel, verified and timed; what does not exist is refused with what does.
#[test]
fn kernels_are_timed_alone() {
    let sandbox = Sandbox::new();
    let common = ["bench", "kernels", "--device", "emulator", "--iterations", "3"];
    let ran = sandbox.run(common.iter().chain(&["--json", "k.json"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("say nothing of a GPU's"), "{}", ran.stderr);
    let report = json(&sandbox, "k.json");
    assert_eq!(report["device"], "emulator");
    let rows = report["kernels"].as_array().unwrap();
    for kind in [
        "nf4_gemm",
        "nf4_half_gemm",
        "bf16_gemm",
        "attention",
        "conv2d",
        "nf4_gemv",
        "Q4_K_gemm",
        "layer_norm_mod",
    ] {
        let row = rows.iter().find(|row| row["kernel"].as_str().unwrap().starts_with(&format!("{kind} ")));
        let row = row.unwrap_or_else(|| panic!("{kind} is not timed"));
        assert_eq!(row["ms"].as_array().unwrap().len(), 3, "{kind}");
        assert!(ran.stdout.contains(row["kernel"].as_str().unwrap()), "{}", ran.stdout);
        assert!(row["floor_ms"].is_null(), "an emulator has no published rates");
    }
    let ran = sandbox.run(common.iter().chain(&["--only", "attention", "--json", "-"]));
    assert_eq!((ran.code, ran.stdout.matches("\"kernel\"").count()), (0, 1), "{}", ran.stderr);
    let ran = sandbox.run(common.iter().chain(&["--only", "warp drive"]));
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("there are nf4_gemm 256x512x512"), "{}", ran.stderr);
}
