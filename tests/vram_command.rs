//! `schnell bench vram`: that what it reads is what the plan says, with everything resident, streamed and on disk, and that a
//! verdict can be no.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use command::{Ran, Sandbox};
use serde_json::Value;

const SHAPE: [&str; 8] = ["--width", "64", "--height", "64", "--steps", "2", "--t5-length", "16"];

fn bench(sandbox: &Sandbox, args: &[&str]) -> Ran {
    let common = ["bench", "vram", "--device", "emulator", "--iterations", "2"];
    sandbox.run(common.iter().chain(&SHAPE).chain(args))
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", ran.stdout, ran.stderr))
}

#[track_caller]
fn number(report: &Value, stage: &str, name: &str) -> u64 {
    let rows = report["rows"].as_array().unwrap();
    let row =
        rows.iter().find(|row| row["stage"] == stage).unwrap_or_else(|| panic!("no {stage}: {report:#}"));
    row[name].as_u64().unwrap()
}

#[test]
fn memory_is_read_stage_by_stage_and_is_that_of_the_plan() {
    let sandbox = Sandbox::new();
    let plan = sandbox.run(["plan", "--json"].iter().chain(&SHAPE));
    let planned: Value = serde_json::from_str(&plan.stdout).unwrap();
    let least = {
        let refused = sandbox.run(["plan", "--budget", "1"].iter().chain(&SHAPE));
        let mut words = refused.stderr.split("needs ").nth(1).unwrap().split(' ');
        words.next().unwrap().to_string()
    };
    let host = (planned["pinned_bytes"]["loading"].as_u64().unwrap()
        + planned["pinned_bytes"]["generating"].as_u64().unwrap())
    .to_string();
    let streamed = ["--budget", &least];
    let on_disk = ["--budget", &least, "--host-budget", &host, "--cache", "cache"];
    let mut pinned = Vec::new();
    for budget in [&[][..], &streamed, &on_disk] {
        let ran = bench(&sandbox, &[budget, &["--json", "-"]].concat());
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        let report = report(&ran);
        let arena = report["plan"]["arena_bytes"].as_u64().unwrap();
        match budget {
            [] => assert_eq!(Some(arena), planned["arena_bytes"].as_u64()),
            _ => assert!(arena <= least.parse().unwrap()),
        }
        // One allocation of exactly the planned size, from loading to the end; nothing before, and nothing after.
        for (stage, bytes) in [
            ("baseline", 0),
            ("loading", arena),
            ("loaded", arena),
            ("text encoders", arena),
            ("step 0", arena),
            ("step 1", arena),
            ("vae", arena),
            ("first picture", arena),
            ("last picture", arena),
            ("peak", arena),
            ("after", 0),
        ] {
            assert_eq!(number(&report, stage, "device_bytes"), bytes, "{stage}: {report:#}");
            assert_eq!(number(&report, stage, "allocated_bytes"), bytes, "{stage}: {report:#}");
        }
        let of_plan = |name: &str| report["plan"][name].as_u64().unwrap();
        let most = of_plan("pinned_loading_bytes")
            + of_plan("pinned_generating_bytes")
            + of_plan("pinned_weights_bytes");
        let [loading, loaded] = ["loading", "loaded"].map(|stage| number(&report, stage, "pinned_bytes"));
        assert!(
            loading > loaded && loading <= most && loaded >= of_plan("pinned_generating_bytes"),
            "{report:#}"
        );
        assert!(loaded >= of_plan("pinned_weights_bytes"));
        assert_eq!(number(&report, "after", "pinned_bytes"), 0, "{report:#}");
        assert!(number(&report, "peak", "resident_set_bytes") > arena);
        let verdicts = report["verdicts"].as_array().unwrap();
        assert_eq!(verdicts.len(), 4);
        assert!(verdicts.iter().all(|verdict| verdict["holds"] == true));
        pinned.push((loaded, of_plan("pinned_weights_bytes")));
    }
    // Streamed weights are pinned; those on disk are not, though the ring is larger than all of this small model.
    assert!(
        pinned[1].0 > pinned[0].0 && pinned[0].1 == 0 && pinned[1].1 > 0 && pinned[2].1 == 0,
        "{pinned:?}"
    );
}

#[test]
fn a_limit_is_a_verdict() {
    let sandbox = Sandbox::new();
    let ran = bench(&sandbox, &["--max-bytes", "1MiB", "--json", "vram.json"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("is above --max-bytes of 1.0 MiB"), "{}", ran.stderr);
    for said in ["2 pictures on emulator", "\nbaseline ", "\nvae ", "\npeak ", "\nafter "] {
        assert!(ran.stdout.contains(said), "{said}: {}", ran.stdout);
    }
    assert!(sandbox.path("vram.json").exists(), "a verdict that is no costs the numbers");
    let ran = bench(&sandbox, &["--max-bytes", "1GiB"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("is within --max-bytes"), "{}", ran.stderr);
    std::fs::write(sandbox.path("none"), "\n").unwrap();
    let refused = bench(&sandbox, &["--prompts", "none"]);
    assert_eq!(
        (refused.code, refused.stderr.contains("the file has no prompt")),
        (2, true),
        "{}",
        refused.stderr
    );
}
