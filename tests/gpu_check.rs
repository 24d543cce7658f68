//! The `gpu-check` command, on the emulator: what it writes, and what it refuses.

use std::path::Path;
use std::process::{Command, Output};

fn gpu_check(out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-check"));
    command.args(arguments).arg("--out").arg(out).output().unwrap()
}

fn record(out: &Path) -> serde_json::Value {
    let files = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let json = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "json")).unwrap();
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

#[test]
fn cases_agree_and_are_recorded() {
    let out = tempfile::tempdir().unwrap();
    let output = gpu_check(
        out.path(),
        &["probe", "kernels", "--small", "--only", "euler_step", "--device", "emulator"],
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("3 outputs, 0 faults") && !said.contains("not finished"), "{said}");
    let record = record(out.path());
    assert_eq!(record["finished"], true);
    assert_eq!(record["machine"]["gpu"], "emulator");
    assert_eq!(record["num_faults"], 0);
    let outputs: Vec<&str> =
        record["outputs"].as_array().unwrap().iter().map(|row| row["output"].as_str().unwrap()).collect();
    assert_eq!(outputs, ["latents", "latents_bf16", "guided"]);
    for row in record["outputs"].as_array().unwrap() {
        assert_eq!(row["worst"], 0.0);
        assert_eq!(row["part"], "kernels");
        assert!(row["count"].as_u64().unwrap() > 1000);
    }
}

/// Hopper's cases only where the machine has what they need.
#[test]
fn an_emulator_may_pose_as_hopper() {
    for (device, count) in [("emulator", 0), ("emulator:90", 1)] {
        let out = tempfile::tempdir().unwrap();
        let output = gpu_check(out.path(), &["probe", "--only", "probe_sm90_barriers", "--device", device]);
        assert!(output.status.success());
        assert_eq!(record(out.path())["outputs"].as_array().unwrap().len(), count, "{device}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_at_once() {
    for (arguments, code, why) in [
        (&["--device", "gpu"][..], 2, "no such device"),
        (&["bench", "--device", "emulator"], 5, "needs a GPU"),
        (&["sanitize", "--device", "emulator:90"], 5, "needs a GPU"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let output = gpu_check(out.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(why), "{said}");
        assert!(std::fs::read_dir(out.path()).unwrap().next().is_none(), "nothing is written");
    }
}
