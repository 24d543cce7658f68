//! `schnell doctor`: what it finds on a machine without a GPU, of models whole and damaged, and what it says of errors.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use command::{Sandbox, copy_of_demo, text, without_driver};
use serde_json::Value;

/// The findings of `what` as `(state, found, advice)`.
fn of(report: &Value, what: &str) -> Vec<(String, String, String)> {
    let all = report["findings"].as_array().unwrap();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let found = all.iter().filter(|finding| finding["what"] == what);
    found
        .map(|finding| (word(&finding["state"]), word(&finding["found"]), word(&finding["advice"])))
        .collect()
}

#[track_caller]
fn one(report: &Value, what: &str) -> (String, String, String) {
    let found = of(report, what);
    assert_eq!(found.len(), 1, "{what}: {report:#}");
    found[0].clone()
}

fn json(stdout: &str) -> Value {
    serde_json::from_str(stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

#[test]
fn a_machine_without_a_gpu_is_well_enough_for_the_bundled_model() {
    let sandbox = without_driver();
    let ran = sandbox.run(["doctor", "--model", "demo", "--cache", "new/cache", "--json"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let report = json(&ran.stdout);
    assert_eq!(report["problems"], 0);
    let (state, found, advice) = one(&report, "driver");
    assert_eq!(state, "note");
    assert!(
        found.contains("no NVIDIA driver on this machine") && advice.contains("install NVIDIA's driver"),
        "{found} {advice}"
    );
    assert!(one(&report, "card").1.starts_with("emulator, "));
    assert!(one(&report, "kernels").1.contains("entry points"));
    // Every kernel ran, and a short test is said to be one.
    let (state, found, _) = one(&report, "self-test");
    assert!(
        state == "ok" && found.contains("a short one") && found.ends_with("as they should be"),
        "{state} {found}"
    );
    let numbers: Vec<usize> = found.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers.len(), 3, "{found}");
    assert!(numbers[0] > 50 && numbers[1] == numbers[2] && numbers[2] > 50, "{found}");
    assert!(one(&report, "demo").1.contains("digest "));
    assert!(one(&report, "demo, picture").1.contains("running on the emulator"));
    assert!(one(&report, "demo, cache").1.contains("are free on its disk"));
    assert!(sandbox.entries().is_empty(), "it wrote {:?}", sandbox.entries());
}

#[test]
fn what_would_stop_a_picture_is_a_problem() {
    let sandbox = without_driver();
    let quick = |args: &[&str]| sandbox.run([&["doctor", "--no-self-test"], args].concat());
    let ran = quick(&["--device", "cuda:0"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    for said in ["problem  driver", "no NVIDIA driver", "-> install NVIDIA's driver", "1 problem\n"] {
        assert!(ran.stdout.contains(said), "{said}: {}", ran.stdout);
    }
    // All models are looked at, whatever is wrong with one of them.
    let damaged = copy_of_demo();
    std::fs::remove_file(damaged.path().join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let cut = copy_of_demo();
    let clip = cut.path().join("text_encoder/model.safetensors");
    std::fs::write(&clip, &std::fs::read(&clip).unwrap()[..1000]).unwrap();
    let [damaged, cut] = [&damaged, &cut].map(|dir| text(dir.path()).to_string());
    let all = [
        "--json", "--device", "emulator", "--model", &damaged, "--model", &cut, "--model", "no/such",
        "--model", "demo",
    ];
    let ran = quick(&all);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report = json(&ran.stdout);
    assert_eq!(report["problems"], 3, "{report:#}");
    for (name, file) in [(&damaged, "vae"), (&cut, "text_encoder"), (&"no/such".to_string(), "no/such")] {
        let problems: Vec<_> =
            of(&report, name).into_iter().filter(|(state, ..)| state == "problem").collect();
        assert_eq!(problems.len(), 1, "{name}: {report:#}");
        assert!(problems[0].1.contains(file) && !problems[0].2.is_empty(), "{problems:?}");
    }
    // Of a folder that has one it is said what its other parts are.
    assert!(
        of(&report, &cut).iter().any(|(state, found, _)| state == "ok" && found.starts_with("transformer: ")),
        "{report:#}"
    );
    assert_eq!(one(&report, "demo").0, "ok");
    assert_eq!(sandbox.run(["doctor", "--cache", "x"]).code, 2, "of which model?");
}

/// The variants that there are, from the source: the library hides whether the list grew.
fn variants() -> Vec<String> {
    let source = syn::parse_file(&std::fs::read_to_string("src/error.rs").unwrap()).unwrap();
    let error = source.items.iter().find_map(|item| match item {
        syn::Item::Enum(item) if item.ident == "Error" => Some(item),
        _ => None,
    });
    error.unwrap().variants.iter().map(|variant| variant.ident.to_string()).collect()
}

#[test]
fn every_kind_of_error_is_diagnosed() {
    let sandbox = Sandbox::new();
    let texts = [
        ("Input", "error: width 100 is not a multiple of 16 between 16 and 8192; the nearest are 96 and 112"),
        ("Weights", "error: vae/config.json: malformed JSON: EOF while parsing an object at line 1 column 1"),
        (
            "Capacity",
            "the arena on NVIDIA GeForce RTX 3060 needs 9 bytes, but 8 are available; free device memory",
        ),
        ("Unsupported", "this build has no CUDA kernels, because there was no nvcc when it was compiled"),
        (
            "Device",
            "launch kernel nf4_gemm failed on cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
        ),
        (
            "Poisoned",
            "cuda:0 is lost (finish the Compute stream: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure); recover the pipeline, or load it \
             again",
        ),
        ("Stopped", "stopped"),
        (
            "Deadline",
            "the picture would take 900.0 ms, by what was known before step 3, and shall take 800.0 ms; allow more time, fewer steps or a \
             smaller picture",
        ),
        ("NotFinite", "3 numbers of the latents of step 0 are not finite: the weights overflow bf16 or f32"),
        ("Mismatch", "2 outputs differ by more than allowed, or could not be computed"),
        ("Internal", "a fault of schnell that deserves a report: nothing is bound"),
        ("Io", "cannot write out.png: No space left on device (os error 28)"),
        (
            "Network",
            "model.safetensors: timed out; what has arrived is kept: `schnell fetch a/b` goes on from there",
        ),
    ];
    for variant in variants() {
        let (_, text) = texts
            .iter()
            .find(|(known, _)| *known == variant)
            .unwrap_or_else(|| panic!("no text of {variant}"));
        let ran = sandbox.run(["doctor", "--diagnose", text]);
        assert_eq!(ran.code, 0, "{text}: {}", ran.stdout);
        assert!(ran.stdout.contains(&format!("Error::{variant} (exit code ")), "{text}: {}", ran.stdout);
        assert!(ran.stdout.contains("\n-> "), "{}", ran.stdout);
    }
    // The driver's own, which is the cause, comes first.
    let ran = sandbox.run(["doctor", "--json", "--diagnose", texts[4].1]);
    let known = json(&ran.stdout)["known"].as_array().unwrap().clone();
    assert_eq!(known.len(), 2, "{}", ran.stdout);
    assert_eq!(
        (&known[0]["what"], &known[1]["exit_code"]),
        (&"CUDA_ERROR_ILLEGAL_ADDRESS".into(), &6.into())
    );
    let ran = sandbox.run(["doctor", "--diagnose", "the moon is too bright"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.starts_with("unknown: "), "{}", ran.stdout);
    // What the command itself says is known, as it says it.
    let refused = sandbox.run(["generate", "x", "--device", "emulator", "--width", "17"]);
    let line = refused.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    let ran = sandbox.run(["doctor", "--diagnose", line]);
    assert!(ran.stdout.contains(&format!("(exit code {})", refused.code)), "{line}: {}", ran.stdout);
}
