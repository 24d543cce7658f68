//! What the command writes: through links, into devices and pipes, beside other runs; and that nothing is left of a run that
//! fails or is stopped.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use command::*;
use schnell::weights::Dtype;
use schnell::{Plan, Shape};

const PNG: &[u8] = b"\x89PNG";

fn is_link(path: &Path) -> bool {
    path.symlink_metadata().unwrap().is_symlink()
}

// ---- links ------------------------------------------------------------------------------------------------

#[test]
fn links_stay_and_their_targets_are_written() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("store")).unwrap();
    std::fs::write(sandbox.path("store/old.png"), "old").unwrap();
    symlink("store/old.png", sandbox.path("old.png")).unwrap();
    symlink("store/new.json", sandbox.path("new.json")).unwrap();
    // A refused run changes nothing, not even behind the links.
    sandbox.refuses(quick(&["--output", "old.png", "--timings", "new.json", "--budget", "1KiB"]), 4, &[]);
    assert_eq!(bytes(&sandbox.path("store/old.png")), b"old");
    assert!(is_link(&sandbox.path("new.json")) && !sandbox.path("store/new.json").exists());

    let ran = sandbox.run(quick(&["--output", "old.png", "--timings", "new.json"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(is_link(&sandbox.path("old.png")) && is_link(&sandbox.path("new.json")));
    assert!(bytes(&sandbox.path("store/old.png")).starts_with(PNG));
    assert!(bytes(&sandbox.path("store/new.json")).starts_with(b"{"));
    assert_eq!(std::fs::read_dir(sandbox.path("store")).unwrap().count(), 2);

    symlink("loop.png", sandbox.path("loop.png")).unwrap();
    sandbox.refuses(quick(&["--output", "loop.png"]), 7, &["cannot write loop.png"]);
}

#[test]
fn a_name_that_would_steer_the_terminal_is_a_name() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(quick(&["--output", "\u{1b}[31m\u{202e}.png"]));
    assert!(ran.code == 0 && ran.stderr.contains("\\u{1b}[31m\\u{202e}.png: 64 x 64"), "{}", ran.stderr);
    assert!(bytes(&sandbox.path("\u{1b}[31m\u{202e}.png")).starts_with(PNG));
    // The parser of flags takes escapes out, but lets others through.
    sandbox.refuses(quick(&["--guidance", "a\u{c}b"]), 2, &["a\\u{c}b", "--guidance"]);
    let told = sandbox.refuses(quick(&["--guidance", &"x".repeat(50_000)]), 2, &["xxx", "--guidance"]);
    assert!(told.len() < 2100, "{} bytes", told.len());
}

// ---- what is no regular file ------------------------------------------------------------------------------

#[test]
fn a_fifo_is_written_through_and_refused_while_nobody_reads_it() {
    let sandbox = Sandbox::new();
    fifo(&sandbox.path("pipe"));
    for flag in ["--output", "--timings"] {
        sandbox.refuses(quick(&[flag, "pipe"]), 7, &["pipe", "nobody reads"]);
    }
    for (flag, start) in [("--output", PNG), ("--timings", b"{")] {
        let path = sandbox.path("pipe");
        // Read and write, so that opening waits for nobody; the command's end is the last writer.
        let hold = File::options().read(true).write(true).open(&path).unwrap();
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            File::open(path).unwrap().read_to_end(&mut read).unwrap();
            read
        });
        let ran = sandbox.run(quick(&[flag, "pipe"]));
        drop(hold);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(reader.join().unwrap().starts_with(start), "{flag}");
        assert!(sandbox.path("pipe").symlink_metadata().unwrap().file_type().is_fifo());
    }
}

#[test]
fn a_dash_is_standard_output() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(quick(&[])).code, 0);
    for name in ["-", "/proc/self/fd/1"] {
        let output = sandbox.command(quick(&["--output", name])).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == bytes(&sandbox.path("out.png")));
    }
    // A file that the shell has opened is written where it is, not replaced.
    let out = File::create(sandbox.path("both")).unwrap();
    let args = quick(&["--output", "/proc/self/fd/1"]);
    assert!(sandbox.command(args).stdout(out.try_clone().unwrap()).status().unwrap().success());
    assert_eq!(out.metadata().unwrap().len(), bytes(&sandbox.path("out.png")).len() as u64);
    let both = quick(&["--output", "-", "--timings", "/proc/self/fd/1"]);
    sandbox.refuses(both, 2, &["--output and --timings are the same"]);
    assert_eq!(sandbox.entries(), ["both", "out.png"]);
}

#[test]
fn who_does_not_listen_costs_neither_picture_nor_panic() {
    let sandbox = Sandbox::new();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    // Messages.
    let status = sandbox.command(quick(&["--output", "a.png"])).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(bytes(&sandbox.path("a.png")).starts_with(PNG));
    // Timings: an error, but the picture is there.
    let args = quick(&["--output", "b.png", "--timings", "-"]);
    let output = sandbox.command(args).stdout(full()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(7) && told.contains("cannot write standard output"), "{told}");
    assert!(bytes(&sandbox.path("b.png")).starts_with(PNG));
    // A plan.
    let output = sandbox.command(["plan"]).stdout(full()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(7) && told.contains("cannot write standard output"), "{told}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = sandbox.command(["plan", "--launches"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

// ---- what else is read and written ------------------------------------------------------------------------

#[test]
fn outputs_that_are_the_same_file_or_an_input_are_refused() {
    let (sandbox, model) = (Sandbox::new(), copy_of_demo());
    symlink("out.png", sandbox.path("link.json")).unwrap();
    let there = sandbox.path("out.png");
    for timings in ["out.png", "./out.png", text(&there), "link.json"] {
        sandbox.refuses(quick(&["--timings", timings]), 2, &["--output and --timings are the same file"]);
    }
    // The model's files, and new ones among them.
    for file in ["vae/config.json", "model_index.json", "vae/diffusion_pytorch_model.safetensors.index.json"]
    {
        let path = model.path().join(file);
        let before = path.exists().then(|| bytes(&path));
        let args = ["--model", text(model.path()), "--timings", text(&path)];
        sandbox.refuses(quick(&args), 2, &[text(&path), "a file of the model"]);
        assert_eq!(path.exists().then(|| bytes(&path)), before);
    }
    std::fs::write(sandbox.path("p.txt"), "a red circle").unwrap();
    let args = ["generate", "--prompts", "p.txt", "--grid", "1x1", "--timings", "./p.txt"];
    sandbox.refuses(args, 2, &["./p.txt is p.txt, which this run reads"]);
    std::fs::create_dir(sandbox.path("d")).unwrap();
    let noise = sandbox.path("d/noise.safetensors");
    save_tensors(&noise, &[("noise", Dtype::F32, vec![1, 16, 64], vec![0; 4096])]);
    let given = ["--noise", "d/noise.safetensors"];
    sandbox.refuses(
        quick(&[&given[..], &["--timings", text(&noise)]].concat()),
        2,
        &["which this run reads"],
    );
    sandbox.refuses(quick(&[&given[..], &["--dump", "d"]].concat()), 2, &["--dump would write over"]);
    let sigmas = ["--dump", "d", "--timings", "d/sigmas.safetensors"];
    sandbox.refuses(quick(&sigmas), 2, &["--dump writes d/sigmas.safetensors, too"]);
}

/// A picture of steps, and what ran when, beside the picture, which is the same.
#[test]
fn previews_and_a_trace_are_written_beside_the_picture() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(quick(&["--output", "plain.png"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ran = sandbox.run(quick(&["--preview", "small.webp", "--trace", "trace.json"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(sandbox.entries(), ["out.png", "plain.png", "small.webp", "trace.json"]);
    let picture = |name: &str| schnell::image::decode(&bytes(&sandbox.path(name))).unwrap();
    let (plain, out, small) = (picture("plain.png"), picture("out.png"), picture("small.webp"));
    assert!(plain.rgb == out.rgb);
    assert_eq!((8 * small.width, 8 * small.height), (out.width, out.height));
    let trace: serde_json::Value = serde_json::from_slice(&bytes(&sandbox.path("trace.json"))).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for name in ["tokenize", "step 0", "encode"] {
        assert!(events.iter().any(|event| event["name"] == name), "{name}");
    }
    for (args, said) in [
        (["--preview", "out.png"], "--output and --preview are the same file"),
        (["--trace", "out.png"], "--output and --trace are the same file"),
        (["--preview", "small.gif"], "pictures are PNG, JPEG or WebP"),
    ] {
        sandbox.refuses(quick(&args), 2, &[said]);
    }
    let both = ["--timings", "t.json", "--trace", "./t.json"];
    sandbox.refuses(quick(&both), 2, &["--timings and --trace are the same file"]);
}

#[test]
fn names_as_long_as_the_file_system_takes_are_written() {
    let sandbox = Sandbox::new();
    let name = "n".repeat(251) + ".png";
    let ran = sandbox.run(quick(&["--output", &name]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(sandbox.entries(), std::slice::from_ref(&name));
    sandbox.refuses(quick(&["--output", &format!("n{name}")]), 7, &["cannot write"]);
}

#[test]
fn runs_at_once_do_not_disturb_each_other() {
    let sandbox = Sandbox::new();
    let runs: Vec<_> = (0..3).map(|_| sandbox.command(quick(&[])).spawn().unwrap()).collect();
    for mut run in runs {
        assert_eq!(run.wait().unwrap().code(), Some(0));
    }
    assert_eq!(sandbox.entries(), ["out.png"]);
}

// ---- dumps ------------------------------------------------------------------------------------------------

#[test]
fn a_dump_is_of_one_run() {
    let sandbox = Sandbox::new();
    let args = ["--dump", "d", "--negative-prompt", "a ring", "--true-cfg-scale", "2"];
    let two = [&args[..], &["--steps", "2"]].concat();
    // The second replaces the first, stage by stage.
    for _ in 0..2 {
        let ran = sandbox.run(quick(&two));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let config = schnell::config::PipelineConfig::open(DEMO.path()).unwrap();
    let shape = Shape { width: 64, height: 64, steps: 2, t5_length: 16, true_cfg: true };
    let plan = Plan::new(&config, shape, Default::default()).unwrap();
    let stages: BTreeSet<String> =
        plan.dump_stages().iter().map(|stage| format!("{stage}.safetensors")).collect();
    let names = || -> BTreeSet<String> {
        let entries = std::fs::read_dir(sandbox.path("d")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(), stages);
    // A shorter run would leave stages of the longer one among its own.
    sandbox.refuses(quick(&args), 2, &["--dump d", "of another run"]);
    assert_eq!(names(), stages);

    std::fs::create_dir_all(sandbox.path("e/sigmas.safetensors")).unwrap();
    sandbox.refuses(quick(&["--dump", "e"]), 2, &["e/sigmas.safetensors is a folder"]);
    sandbox.refuses(quick(&["--dump", "f/g", "--budget", "1KiB"]), 4, &[]);
    let model = copy_of_demo();
    let part = model.path().join("scheduler");
    let args = ["--model", text(model.path()), "--dump", text(&part)];
    sandbox.refuses(quick(&args), 2, &["scheduler: a folder of the model"]);
    assert_eq!(std::fs::read_dir(part).unwrap().count(), 1);
}

// ---- what is left -----------------------------------------------------------------------------------------

/// The same command where the parent, as `nohup` does, has told to ignore signals.
fn hearing_signals(command: Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=TERM,INT,HUP,XCPU").arg(command.get_program()).args(command.get_args());
    env.current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env
}

#[test]
fn nothing_is_left_of_a_run_that_is_stopped() {
    for signal in ["TERM", "INT", "HUP", "XCPU"] {
        let (sandbox, temporary) = (Sandbox::new(), tempfile::tempdir().unwrap());
        let mut run = hearing_signals(sandbox.command(quick(&["--steps", "1000"])))
            .env("TMPDIR", temporary.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let entries = || std::fs::read_dir(temporary.path()).unwrap().count();
        while entries() == 0 {
            assert!(run.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(2));
        }
        let told = Command::new("kill").args(["-s", signal, &run.id().to_string()]).status().unwrap();
        assert!(told.success());
        let status = run.wait().unwrap();
        let expected =
            [("TERM", 15), ("INT", 2), ("HUP", 1), ("XCPU", 24)].iter().find(|(name, _)| *name == signal);
        assert_eq!(status.signal(), expected.map(|(_, number)| *number), "{status}");
        assert_eq!(entries(), 0, "{signal}");
        assert_eq!(sandbox.entries(), [""; 0]);
    }
}

/// A file that may not become as large as it must is an error like any other.
#[test]
fn a_limit_on_the_size_of_files_is_said() {
    let sandbox = Sandbox::new();
    let run = sandbox.command(quick(&["--model", text(DEMO.path())]));
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("ulimit -f 1 && exec \"$0\" \"$@\"").arg(run.get_program()).args(run.get_args());
    let output = limited.current_dir(run.get_current_dir().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("schnell.png") || said.contains("out.png"), "{said}");
    assert_eq!(sandbox.entries(), [""; 0]);
}

/// The name decides the format, and all carry what made the picture.
#[test]
fn pictures_are_what_their_name_ends_in() {
    let sandbox = Sandbox::new();
    let draw = |name: &str, more: &[&str]| {
        let ran = sandbox.run(quick(&[&["--seed", "7", "--output", name], more].concat()));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        bytes(&sandbox.path(name))
    };
    draw("a.png", &[]);
    let (_, expected) = pixels(&sandbox.path("a.png"));
    let (jpeg, webp) = (draw("a.jpg", &[]), draw("a.WebP", &[]));
    assert_eq!(jpeg, draw("b.jpeg", &[]));
    assert_eq!(webp, draw("b.webp", &[]));
    let holds = |file: &[u8], words: &str| file.windows(words.len()).any(|at| at == words.as_bytes());
    for file in [&jpeg, &webp] {
        for words in ["<schnell:prompt>a red circle</", "<schnell:seed>7</", "<schnell:model>", "schnell 0."]
        {
            assert!(holds(file, words), "{words}");
        }
    }
    for name in ["bare.jpg", "bare.webp"] {
        assert!(!holds(&draw(name, &["--no-metadata"]), "red circle"), "{name}");
    }
    let mut decoder = image_webp::WebPDecoder::new(std::io::Cursor::new(&webp)).unwrap();
    let mut drawn = vec![0; expected.len()];
    decoder.read_image(&mut drawn).unwrap();
    assert_eq!(drawn, expected);
    let drawn = jpeg_decoder::Decoder::new(&jpeg[..]).decode().unwrap();
    let off: u64 = drawn.iter().zip(&expected).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(drawn.len() == expected.len() && off < 2 * drawn.len() as u64, "{off}");

    sandbox.refuses(quick(&["--output", "a.gif"]), 2, &["a.gif", ".png, .jpg or .webp"]);
    let sheet = ["--grid", "16x16", "--width", "1024", "--height", "1024", "--output", "s.webp"];
    sandbox.refuses(quick(&sheet), 2, &["16444 x 16444", "WebP", "16384"]);
    let long = "x".repeat(70_000);
    sandbox.refuses(quick(&["--negative-prompt", &long, "--output", "l.jpg"]), 2, &["notes", "JPEG", "PNG"]);
}

/// Of each stage by its name and its time, in order, and of the picture.
#[test]
fn whoever_listens_is_told_of_every_stage() {
    let sandbox = Sandbox::new();
    let run = |level: &str| {
        let flags =
            ["--device", "emulator", "--width", "64", "--height", "64", "--steps", "2", "--seed", "7"];
        let mut command =
            sandbox.command([&["generate", "a red circle", "--timings", "t.json"][..], &flags].concat());
        let output = command.env("SCHNELL_LOG", format!("schnell={level}")).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stderr).unwrap();
        let lines = text.lines().filter(|line| line.contains("schnell::pipeline::timing"));
        lines.map(str::to_string).collect::<Vec<_>>()
    };
    let told = run("debug");
    let timings: serde_json::Value = serde_json::from_slice(&bytes(&sandbox.path("t.json"))).unwrap();
    let stages = timings["stages"].as_array().unwrap();
    assert_eq!(told.len(), stages.len() + 1, "{told:?}");
    for (line, stage) in told.iter().zip(stages) {
        let (_, told) = line
            .split_once(&format!("stage={} ms=", stage["stage"]))
            .unwrap_or_else(|| panic!("{line}: {stage}"));
        let (told, ms) = (told.trim().parse::<f64>().unwrap(), stage["ms"].as_f64().unwrap());
        assert!((told - ms).abs() <= 1e-9 * ms, "{line}: {stage}");
    }
    assert!(told.last().unwrap().contains("width=64 height=64 steps=2 seed=7 total_ms="), "{told:?}");
    assert_eq!(run("info").len(), 1);
    assert_eq!(run("warn"), [""; 0]);
}
