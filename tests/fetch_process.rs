//! `schnell fetch` as a process: what it prints, what is left of it when it is killed, and that two do no harm.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;
#[path = "common/hub.rs"]
mod hub;
#[path = "common/rng.rs"]
mod rng;
#[path = "common/tiny.rs"]
mod tiny;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use command::{Ran, Sandbox, bytes, pixels, quick};
use hub::{COMMIT, Fault, Hub, ID};
use rng::Rng;
use tiny::{LARGEST, check_cache, check_whole, files, hub};

/// A hub, and an empty home of the Hugging Face tools.
struct Room {
    hub: Hub,
    sandbox: Sandbox,
}

impl Room {
    fn new() -> Room {
        Room { hub: hub(), sandbox: Sandbox::new() }
    }

    /// So slow that a file takes a while: large files take some 2 s in all.
    fn slow() -> Room {
        let room = Room::new();
        room.hub.state.pause_us.store(4000, Ordering::Relaxed);
        room
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.command(args);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HF_")
                || name.to_string_lossy().to_lowercase().ends_with("_proxy")
            {
                command.env_remove(name);
            }
        }
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.sandbox.path("home"));
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        output_of(self.command(args))
    }

    fn cache(&self) -> PathBuf {
        self.sandbox.path("home/hub")
    }

    fn snapshot(&self) -> PathBuf {
        self.cache().join("models--org--tiny/snapshots").join(COMMIT)
    }

    fn start(&self) -> Child {
        let mut command = self.command(&["fetch", ID]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[track_caller]
    fn completes(&self) -> Ran {
        self.hub.state.pause_us.store(0, Ordering::Relaxed);
        let ran = self.run(&["fetch", ID]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        check_whole(&self.cache(), &self.snapshot());
        ran
    }

    /// No model for `--model`, and it says what makes it one.
    #[track_caller]
    fn is_no_model(&self) {
        for command in
            [&["plan", "--model", ID][..], &["generate", "x", "--device", "emulator", "--model", ID]]
        {
            let ran = self.run(command);
            assert!(
                ran.code == 2 && ran.stderr.contains("`schnell fetch org/tiny`"),
                "{}: {}",
                ran.code,
                ran.stderr
            );
        }
    }
}

fn output_of(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().expect("no exit code"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Files from elsewhere, and what they lack: configs and tokenizers alone are fetched.
#[test]
fn tokenizers_alone_make_a_model_of_files() {
    let room = Room::new();
    let ran = room.run(&["fetch", ID, "--only", "tokenizers"]);
    assert!(ran.code == 0 && ran.stderr.contains("--transformer FILE"), "{}", ran.stderr);
    let asked = room.hub.asked();
    assert!(
        asked.iter().all(|asked| !asked.path.contains(".safetensors") || asked.path.contains(".index.json")),
        "{asked:?}"
    );
    room.hub.forget();
    let mut again = room.command(&["fetch", ID, "--only", "tokenizers"]);
    again.env("HF_HUB_OFFLINE", "1");
    let again = output_of(again);
    assert!(again.code == 0 && room.hub.asked().is_empty(), "{}", again.stderr);
    // Without the weights it is no model yet, and says so; with files for all parts it is one.
    let refused = room.run(&quick(&["--model", ID, "--output", "a.png"]));
    assert!(refused.code == 3 && refused.stderr.contains("`schnell fetch org/tiny`"), "{}", refused.stderr);
    let demo = command::copy_of_demo();
    let file = |part: &str| demo.path().join(part).to_str().unwrap().to_string();
    let transformer = file("transformer/diffusion_pytorch_model.safetensors");
    let parts = [
        ("--transformer", transformer.as_str()),
        ("--t5", &file("text_encoder_2/model.safetensors")),
        ("--clip", &file("text_encoder/model.safetensors")),
        ("--vae", &file("vae/diffusion_pytorch_model.safetensors")),
    ];
    let mut args = vec!["--model", ID, "--output", "files.png"];
    args.extend(parts.iter().flat_map(|(flag, file)| [*flag, *file]));
    let drawn = room.run(&quick(&args));
    assert_eq!(drawn.code, 0, "{}", drawn.stderr);
    assert_eq!(room.sandbox.run(quick(&["--output", "demo.png"])).code, 0);
    assert!(pixels(&room.sandbox.path("files.png")).1 == pixels(&room.sandbox.path("demo.png")).1);
    // One that is missing is named, with the flag.
    let refused = room.run(&quick(&[&args[..args.len() - 2], &["--steps", "1"]].concat()));
    assert!(refused.code == 3 && refused.stderr.contains("--vae FILE"), "{}", refused.stderr);
    // A whole one is fetched from there.
    room.completes();
}

#[test]
fn a_model_is_fetched_and_then_needs_no_network() {
    let room = Room::new();
    room.is_no_model();
    let ran = room.completes();
    assert_eq!(ran.stdout.trim(), room.snapshot().to_str().unwrap());
    for words in [LARGEST, COMMIT, "to fetch of", "--model org/tiny"] {
        assert!(ran.stderr.contains(words), "`{words}` is not in {}", ran.stderr);
    }
    let offline = |args: &[&str]| {
        let mut command = room.command(args);
        command.env("HF_HUB_OFFLINE", "1");
        output_of(command)
    };
    room.hub.forget();
    let again = offline(&["fetch", ID]);
    assert!(again.code == 0 && again.stderr.contains("HF_HUB_OFFLINE is set"), "{}", again.stderr);
    assert!(offline(&["fetch", "--verify", ID]).code == 0);
    let plan = offline(&["plan", "--model", ID, "--width", "64", "--height", "64"]);
    assert!(plan.code == 0 && plan.stdout.contains("arena"), "{}", plan.stderr);
    let drawn = offline(&quick(&["--model", ID, "--output", "hub.png"]));
    assert_eq!(drawn.code, 0, "{}", drawn.stderr);
    assert!(room.hub.asked().is_empty(), "{:?}", room.hub.asked());
    assert_eq!(room.sandbox.run(quick(&["--output", "demo.png"])).code, 0);
    assert!(pixels(&room.sandbox.path("hub.png")).1 == pixels(&room.sandbox.path("demo.png")).1);
    // A file is damaged, then gone.
    let blob = std::fs::canonicalize(room.snapshot().join(LARGEST)).unwrap();
    let mut content = bytes(&blob);
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, content).unwrap();
    let damaged = offline(&["fetch", "--verify", ID]);
    assert!(
        damaged.code == 3 && damaged.stderr.contains("`schnell fetch --verify org/tiny` mends it"),
        "{}",
        damaged.stderr
    );
    std::fs::remove_file(&blob).unwrap();
    let gone = offline(&["fetch", ID]);
    assert!(gone.code == 3 && gone.stderr.contains("which is missing"), "{}", gone.stderr);
    let drawn = offline(&quick(&["--model", ID]));
    assert!(
        drawn.code == 3 && drawn.stderr.contains("`schnell fetch org/tiny` completes it"),
        "{}",
        drawn.stderr
    );
}

#[test]
fn other_revisions_are_found_by_their_names() {
    let room = Room::new();
    let ran = room.run(&["fetch", ID, "--revision", "v2"]);
    assert!(ran.code == 0 && ran.stderr.contains("--model org/tiny@v2"), "{}", ran.stderr);
    let plan = |model: &str| room.run(&["plan", "--width", "64", "--height", "64", "--model", model]);
    assert_eq!(plan("org/tiny@v2").code, 0);
    assert_eq!(plan(&format!("org/tiny@{COMMIT}")).code, 0);
    assert!(plan("org/tiny").code == 2 && plan("org/tiny@v3").stderr.contains("--revision v3"));
}

#[test]
fn a_dry_run_lists_and_leaves_weights_where_they_are() {
    let room = Room::new();
    let ran = room.run(&["fetch", ID, "--dry-run"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let weights: u64 =
        files().iter().filter(|(name, _)| ran.stdout.contains(*name)).map(|(_, b)| b.len() as u64).sum();
    assert!(
        weights > 7_000_000 && ran.stdout.contains(LARGEST) && ran.stdout.contains("to fetch of"),
        "{}",
        ran.stdout
    );
    assert!(room.hub.ranges(LARGEST).is_empty());
    room.is_no_model();
}

#[test]
fn refusals_have_codes_and_advice() {
    let refuses = |command: Command, code: i32, words: &[&str]| {
        let ran = output_of(command);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        for word in words {
            assert!(ran.stderr.contains(word), "`{word}` is not in {}", ran.stderr);
        }
        assert!(!ran.stderr.contains("hf_"), "{}", ran.stderr);
    };
    let room = Room::new();
    *room.hub.state.token.lock().unwrap() = Some("hf_right".to_string());
    refuses(room.command(&["fetch", ID]), 2, &["gated or private (401)", "HF_TOKEN"]);
    let mut wrong = room.command(&["fetch", ID]);
    wrong.env("HF_TOKEN", "hf_wrong");
    refuses(wrong, 2, &["may not read org/tiny (403)"]);
    let mut offline = room.command(&["fetch", ID]);
    offline.env("HF_HUB_OFFLINE", "1");
    refuses(offline, 2, &["HF_HUB_OFFLINE is set, and", "neither a folder nor in the Hugging Face cache"]);
    let mut nowhere = room.command(&["fetch", ID]);
    nowhere.env("HF_ENDPOINT", "http://127.0.0.1:1");
    refuses(nowhere, 11, &["is there a network"]);
    // Where nobody may write, not even root.
    let mut protected = room.command(&["fetch", ID]);
    protected.env("HF_TOKEN", "hf_right").env("HF_HUB_CACHE", "/sys/schnell");
    refuses(protected, 7, &["cannot create /sys/schnell", "HF_HUB_CACHE"]);
    // The token that `hf auth login` writes.
    std::fs::create_dir_all(room.sandbox.path("home")).unwrap();
    std::fs::write(room.sandbox.path("home/token"), "hf_right\n").unwrap();
    room.completes();
}

/// A disk that is full, by the limit of a file's size: what has arrived is kept.
#[test]
fn a_disk_that_fills_up_keeps_what_is_there() {
    let room = Room::new();
    let mut command = room.command(&["fetch", ID]);
    let limited = format!("ulimit -f 1000; exec '{}' fetch {ID}", command.get_program().display());
    let environment: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    let folder = command.get_current_dir().unwrap().to_path_buf();
    command = Command::new("bash");
    command.args(["-c", &limited]).current_dir(folder);
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let full = output_of(command);
    assert!(
        full.code == 7 && full.stderr.contains("make room, or set HF_HUB_CACHE"),
        "{}: {}",
        full.code,
        full.stderr
    );
    check_cache(&room.cache());
    room.is_no_model();
    room.hub.forget();
    room.completes();
    assert_eq!(room.hub.ranges(LARGEST), [1_024_000]);
}

/// At twenty moments of a fetch the process is killed outright. Whatever is there then is sound, no model is seen before it
/// is whole, and in the end there is one; what had arrived was not fetched again.
#[test]
fn killed_at_any_moment_it_goes_on() {
    let mut rng = Rng(20);
    let (mut kills, mut wholes, mut begun) = (0, 0, 0);
    while kills < 20 {
        let room = Room::slow();
        let mut whole = false;
        while kills < 20 && !whole {
            let mut child = room.start();
            let moment = Duration::from_micros(rng.bits() % 700_000);
            std::thread::sleep(moment);
            whole = child.try_wait().unwrap().is_some();
            if !whole {
                child.kill().unwrap();
                kills += 1;
            }
            child.wait().unwrap();
            check_cache(&room.cache());
            match room.cache().join("models--org--tiny/refs/main").exists() {
                true => whole = true,
                false => room.is_no_model(),
            }
        }
        room.completes();
        let total: usize =
            files().iter().filter(|(n, _)| !tiny::NEVER.contains(&n.as_str())).map(|(_, b)| b.len()).sum();
        let sent = room.hub.state.sent.load(Ordering::Relaxed);
        begun += room.hub.ranges(".safetensors").iter().filter(|from| **from > 0).count();
        // What was on its way to a process that was killed comes twice.
        assert!(sent < total as u64 + kills * (8 << 20), "{sent} bytes were sent of {total}");
        wholes += 1;
    }
    assert!(begun >= 5, "{begun} files were gone on with, in {wholes} fetches");
}

#[test]
fn stopped_by_a_signal_it_says_so_and_goes_on_later() {
    let room = Room::slow();
    let child = room.start();
    let partial = |name: &str| {
        let digest = hub::digest(name, &files()[name]);
        room.cache().join(format!("models--org--tiny/blobs/{digest}.incomplete"))
    };
    let start = Instant::now();
    while std::fs::metadata(partial(LARGEST)).map_or(0, |found| found.len()) < 100_000 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_none(), "{said}");
    assert!(said.contains("interrupted; what has arrived is kept: `schnell fetch org/tiny`"), "{said}");
    check_cache(&room.cache());
    room.is_no_model();
    room.hub.forget();
    room.completes();
    let ranges = room.hub.ranges(LARGEST);
    assert!(ranges.len() == 1 && ranges[0] >= 100_000, "{ranges:?}");
}

#[test]
fn two_at_once_share_the_work() {
    let room = Room::slow();
    let children = [(); 3].map(|()| room.start());
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    check_whole(&room.cache(), &room.snapshot());
    let weights = room.hub.asked().iter().filter(|asked| asked.is_cdn).count();
    assert_eq!(weights, 5, "weights were fetched more than once");
}

#[test]
fn a_stall_ends_after_the_tools_timeout() {
    let room = Room::new();
    room.hub.faults(LARGEST, [Fault::Stall(50_000)]);
    let mut command = room.command(&["fetch", ID]);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.3");
    let start = Instant::now();
    let ran = output_of(command);
    assert!(ran.code == 0 && ran.stderr.contains("nothing came from"), "{}", ran.stderr);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
