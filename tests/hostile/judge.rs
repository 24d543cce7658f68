//! Runs a case and says what is wrong with what came of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::world::World;

/// What must come of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// Damage that can be seen: no picture.
    Refuse,
    /// Nothing is wrong: the base's picture.
    Draw,
    /// Either, but properly.
    End,
}

/// One hostile run.
pub struct Case {
    /// For whoever reads a failure.
    pub what: String,
    pub args: Vec<String>,
    pub must: Must,
    /// What may be new or changed after it, `work/out.png`; what is in a folder with it.
    pub outputs: Vec<String>,
}

/// A picture as cheap as there is.
pub const PICTURE: [&str; 14] = [
    "generate",
    "a red circle",
    "--device",
    "emulator",
    "--width",
    "16",
    "--height",
    "16",
    "--steps",
    "1",
    "--t5-length",
    "8",
    "--quantize",
    "none",
];

impl Case {
    /// Draws from the world's model.
    pub fn picture(must: Must, what: String) -> Case {
        Case::with(must, what, &[])
    }

    /// Draws from the world's model, with `more` flags.
    pub fn with(must: Must, what: String, more: &[&str]) -> Case {
        let args = PICTURE.iter().chain(&["--model", "../model"]).chain(more);
        let args = args.map(|arg| arg.to_string()).collect();
        Case { what, args, must, outputs: vec!["work/out.png".to_string()] }
    }

    /// Plans from the world's model.
    pub fn plan(must: Must, what: String) -> Case {
        let args = ["plan", "--model", "../model", "--width", "64", "--height", "64"].map(str::to_string);
        Case { what, args: args.into(), must, outputs: Vec::new() }
    }
}

/// All the memory that a run may ask for, by whatever way, in KiB: an allocation beyond it aborts.
const MEMORY_KIB: u64 = 1 << 20;
/// A picture takes half a second of one core.
const LONGEST: Duration = Duration::from_secs(60);
/// Of what is said: a refused flag comes with its usage, files may hold names of any length.
const LONGEST_TEXT: usize = 8192;

struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

fn run(world: &World, args: &[String]) -> Result<Ended, String> {
    let (out, err) = (world.root().join("stdout"), world.root().join("stderr"));
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_schnell")])
        .args(args)
        .current_dir(world.work(""))
        .env_remove("SCHNELL_LOG")
        .env("TMPDIR", world.root().join("tmp"))
        .env("HF_HOME", world.root().join("none"))
        // An arena of address space for every thread would count as memory.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LONGEST {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("still runs after {LONGEST:?}"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let (stdout, stderr) = (std::fs::read(&out).unwrap(), std::fs::read(&err).unwrap());
    for file in [out, err] {
        std::fs::remove_file(file).unwrap();
    }
    let stderr = String::from_utf8(stderr).map_err(|_| "says what is no UTF-8".to_string())?;
    Ok(Ended { status, stdout, stderr })
}

/// Runs it; `Err` says what is wrong, and with it what was said.
pub fn judge(world: &World, case: &Case) -> Result<i32, String> {
    let before = world.snapshot();
    let ended = run(world, &case.args)?;
    let after = world.snapshot();
    let code = ended.status.code().unwrap_or(-1);
    told(&ended)
        .and_then(|()| files(world, case, code, &before, &after))
        .and_then(|()| as_it_must(world, case, code))
        .and_then(|()| machine_output(case, code, &ended.stdout))
        .map(|()| code)
        .map_err(|wrong| {
            let said: String = ended.stderr.chars().take(2000).collect();
            format!("{wrong}\n  exit {code}, said: {}", said.trim_end().replace('\n', "\n    "))
        })
}

/// One clear message, and a code that is documented for it.
fn told(ended: &Ended) -> Result<(), String> {
    let text = &ended.stderr;
    if let Some(signal) = ended.status.signal() {
        return Err(format!("ended by signal {signal}"));
    }
    let code = ended.status.code().unwrap_or(-1);
    // 6, 8 and 9 are the device's, our own faults, and a stop: none has a reason here.
    if ![0, 2, 3, 4, 5, 7].contains(&code) {
        return Err("an exit code that this input does not explain".to_string());
    }
    if text.contains("panicked") || text.contains("overflowed its stack") {
        return Err("a panic".to_string());
    }
    if text.len() > LONGEST_TEXT {
        return Err(format!("{} bytes of messages", text.len()));
    }
    if let Some(raw) = text.chars().find(|c| c.is_control() && *c != '\n') {
        return Err(format!("a raw {raw:?} in a message"));
    }
    let errors = text.lines().filter(|line| line.starts_with("error:")).count();
    if errors != usize::from(code != 0) {
        return Err(format!("{errors} error lines"));
    }
    Ok(())
}

fn as_it_must(world: &World, case: &Case, code: i32) -> Result<(), String> {
    match (case.must, code) {
        (Must::Refuse, 0) => Err("visible damage was taken".to_string()),
        (Must::Draw, 1..) => Err("what is sound was refused".to_string()),
        (Must::Draw, _) if case.args[0] == "generate" => {
            let pixels = crate::command::pixels(&world.work("out.png")).1;
            let wanted = world.base.pixels.get();
            match wanted.is_none_or(|wanted| *wanted == pixels) {
                true => Ok(()),
                false => Err("another picture".to_string()),
            }
        }
        _ => Ok(()),
    }
}

/// What is there after a run: everything as before, but for outputs that are whole.
fn files(
    world: &World,
    case: &Case,
    code: i32,
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Result<(), String> {
    let is_output = |name: &str| {
        case.outputs.iter().any(|output| {
            name == output || name.strip_prefix(output).is_some_and(|rest| rest.starts_with('/'))
        })
    };
    for (name, mark) in before {
        match after.get(name) {
            Some(now) if now == mark => {}
            Some(_) if is_output(name) => whole(&world.root().join(name))?,
            Some(now) => return Err(format!("{name} was {mark}, is {now}")),
            None => return Err(format!("{name} is gone")),
        }
    }
    for name in after.keys().filter(|name| !before.contains_key(*name)) {
        if !is_output(name) {
            return Err(format!("{name} was left"));
        }
        // Output by output; only what cannot be written after the picture leaves it there.
        if code != 0 && code != 7 {
            return Err(format!("{name} was written by a refused run"));
        }
        whole(&world.root().join(name))?;
    }
    Ok(())
}

/// A file that was written is one that can be read.
fn whole(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let partial = |what: String| Err(format!("{} is not whole: {what}", path.display()));
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => match serde_json::from_slice::<serde_json::Value>(&bytes) {
            Ok(_) => Ok(()),
            Err(e) => partial(e.to_string()),
        },
        Some("safetensors") => match safetensors::SafeTensors::deserialize(&bytes) {
            Ok(_) => Ok(()),
            Err(e) => partial(e.to_string()),
        },
        _ => picture(&bytes).or_else(partial),
    }
}

fn picture(bytes: &[u8]) -> Result<(), String> {
    if bytes.starts_with(b"\xff\xd8") {
        let whole = jpeg_decoder::Decoder::new(bytes).decode();
        return whole.map(|_| ()).map_err(|e| e.to_string());
    }
    if bytes.starts_with(b"RIFF") {
        let mut decoder =
            image_webp::WebPDecoder::new(std::io::Cursor::new(bytes)).map_err(|e| e.to_string())?;
        let mut pixels = vec![0; decoder.output_buffer_size().ok_or("too large")?];
        return decoder.read_image(&mut pixels).map_err(|e| e.to_string());
    }
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().map_err(|e| e.to_string())?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("too large")?];
    reader.next_frame(&mut pixels).map(|_| ()).map_err(|e| e.to_string())?;
    reader.finish().map_err(|e| e.to_string())
}

/// What goes to standard output: a plan, or nothing but what was asked for.
fn machine_output(case: &Case, code: i32, stdout: &[u8]) -> Result<(), String> {
    match case.args[0].as_str() {
        "plan" if code == 0 => {
            let text = String::from_utf8_lossy(stdout);
            match text.contains("work in TFLOP") {
                true => Ok(()),
                false => Err("no plan was printed".to_string()),
            }
        }
        "generate" if stdout.starts_with(b"\x89PNG") => picture(stdout),
        _ => Ok(()),
    }
}
