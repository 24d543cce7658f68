//! `schnell quantize` as a process: killed at any moment, stopped, refused, with little memory.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;
#[path = "common/rng.rs"]
mod rng;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use command::*;
use golden::{Golden, copy_tree};
use rng::Rng;
use schnell::pipeline::Model;
use schnell::weights::generated::Manifest;
use serde_json::{Value, json};

const T5: &str = "text_encoder_2/model.safetensors";
const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
/// Where `new` is while it is made.
const UNFINISHED: &str = ".new.schnell";

/// All files below `dir` by their path there.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert!(!path.is_symlink(), "{}", path.display());
                files.insert(path.strip_prefix(dir).unwrap().to_path_buf(), bytes(&path));
            }
        }
    }
    files
}

/// A model in bf16, a third of a gigabyte of which is one layer of T5.
static LARGE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    const WIDTH: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    copy_tree(Golden::open("a").dir(), dir.path());
    let path = dir.path().join("text_encoder_2/config.json");
    let mut config: Value = serde_json::from_slice(&bytes(&path)).unwrap();
    (config["d_ff"], config["num_layers"]) = (json!(WIDTH), json!(1));
    fs::write(path, config.to_string()).unwrap();

    let block = "encoder.block.0.layer";
    let mut tensors = vec![
        ("shared.weight".to_string(), [832, 64]),
        (format!("{block}.0.SelfAttention.relative_attention_bias.weight"), [32, 4]),
        (format!("{block}.0.layer_norm.weight"), [64, 1]),
        (format!("{block}.1.layer_norm.weight"), [64, 1]),
        ("encoder.final_layer_norm.weight".to_string(), [64, 1]),
        (format!("{block}.0.SelfAttention.o.weight"), [64, 128]),
    ];
    tensors.extend(["q", "k", "v"].map(|name| (format!("{block}.0.SelfAttention.{name}.weight"), [128, 64])));
    tensors.extend(
        ["wi_0", "wi_1"].map(|name| (format!("{block}.1.DenseReluDense.{name}.weight"), [WIDTH, 64])),
    );
    tensors.push((format!("{block}.1.DenseReluDense.wo.weight"), [64, WIDTH]));
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let begin = end;
        end += 2 * shape[0] * shape[1];
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(dir.path().join(T5)).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let values = Rng(7).bf16s((1 << 19) - 33, 0.1);
    let piece: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    while end > 0 {
        let count = piece.len().min(end);
        file.write_all(&piece[..count]).unwrap();
        end -= count;
    }
    dir
});

fn quantize<'a>(from: &'a Path, to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["quantize", text(from), to], more].concat()
}

/// The process, its words thrown away.
fn spawn(sandbox: &Sandbox, from: &Path) -> Child {
    let mut command = sandbox.command(quantize(from, "new", &[]));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

// ---- what is written, and said ---------------------------------------------------------------------------

#[test]
fn a_table_and_json_tell_what_was_lost() {
    let (sandbox, golden) = (Sandbox::new(), Golden::open("b"));
    let ran = sandbox.run(quantize(golden.dir(), "plain", &[]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 53, "{}", ran.stdout);
    let embedder = lines.iter().find(|line| line.starts_with("transformer/x_embedder.weight ")).unwrap();
    for word in ["384 x 64", "48.0 KiB", "13.6 KiB", " %"] {
        assert!(embedder.contains(word), "`{word}` is not in `{embedder}`");
    }
    assert!(ran.stderr.contains("plain: 52 Linear layers, 5.9 MiB in place of 21.0 MiB"), "{}", ran.stderr);

    let ran = sandbox.run(quantize(golden.dir(), "double", &["--double-quant", "--json"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let said: Value = serde_json::from_str(&ran.stdout).unwrap();
    let linears = said["linears"].as_array().unwrap();
    let sum = |key: &str| linears.iter().map(|linear| linear[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((said["bytes_before"].as_u64(), linears.len()), (Some(sum("bytes_before")), 52));
    assert_eq!(said["bytes_after"], sum("bytes_after"));
    assert!(linears.iter().all(|l| (0.08..0.1).contains(&l["relative_rms_error"].as_f64().unwrap())));
    assert!(linears.iter().all(|l| l["max_abs_error"].as_f64().unwrap() > 0.0));
    assert_eq!(sandbox.entries(), ["double", "plain"]);
}

/// A snapshot of the Hugging Face cache is links into it; what is made of it has none.
#[test]
fn models_of_the_cache_are_taken_by_their_name() {
    let (sandbox, golden) = (Sandbox::new(), Golden::open("b"));
    let snapshot = sandbox.path("models--us--tiny/snapshots/c0ffee");
    let blobs = sandbox.path("models--us--tiny/blobs");
    fs::create_dir_all(sandbox.path("models--us--tiny/refs")).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    fs::write(sandbox.path("models--us--tiny/refs/main"), "c0ffee").unwrap();
    for (i, (path, contents)) in tree(golden.dir()).into_iter().enumerate() {
        let blob = blobs.join(i.to_string());
        fs::write(&blob, contents).unwrap();
        fs::create_dir_all(snapshot.join(&path).parent().unwrap()).unwrap();
        symlink(&blob, snapshot.join(path)).unwrap();
    }
    let run = |from: &str, to: &str| {
        let mut command = sandbox.command(["quantize", from, to]);
        let output = command.env("HF_HUB_CACHE", sandbox.path("")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        tree(&sandbox.path(to))
    };
    assert!(run("us/tiny", "linked") == run(text(golden.dir()), "plain"), "other files");
}

#[test]
fn memory_does_not_grow_with_the_model() {
    let (sandbox, large) = (Sandbox::new(), fs::metadata(LARGE.path().join(T5)).unwrap().len());
    assert!(large > 400_000_000, "{large}");
    for more in [&[][..], &["--double-quant"]] {
        let mut command = sandbox.command(quantize(LARGE.path(), "new", more));
        let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let status = format!("/proc/{}/status", run.id());
        let mut peak_kib = 0;
        let ended = loop {
            // The peak so far; there is none any more when it has ended.
            let said = fs::read_to_string(&status).unwrap_or_default();
            let line = said.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak_kib =
                line.map_or(peak_kib, |line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
            if let Some(ended) = run.try_wait().unwrap() {
                break ended;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(ended.success(), "{ended}");
        println!("{} MiB at most, {more:?}", peak_kib >> 10);
        assert!((1 << 10..150 << 10).contains(&peak_kib), "{peak_kib} KiB for a file of {large} bytes");
        fs::remove_dir_all(sandbox.path("new")).unwrap();
    }
}

// ---- what is left ----------------------------------------------------------------------------------------

/// Killed at twenty moments, and run again each time: the folder is not there, or whole; what it is made in is no model; and
/// the next run makes it.
#[test]
fn killed_at_any_moment_nothing_half_written_is_loaded() {
    let golden = Golden::open("a");
    let sandbox = Sandbox::new();
    let begun = Instant::now();
    assert!(spawn(&sandbox, golden.dir()).wait().unwrap().success());
    let usual = begun.elapsed();
    let want = tree(&sandbox.path("new"));
    fs::rename(sandbox.path("new"), sandbox.path("want")).unwrap();
    let mut rng = Rng(20);
    let (mut unfinished, mut finished) = (0, 0);
    for moment in 0..20 {
        let mut run = spawn(&sandbox, golden.dir());
        std::thread::sleep(usual.mul_f32((rng.uniform() + 1.0) / 2.0));
        run.kill().unwrap();
        let _ = run.wait().unwrap();
        if sandbox.path("new").exists() {
            finished += 1;
            assert!(tree(&sandbox.path("new")) == want, "moment {moment}");
            fs::remove_dir_all(sandbox.path("new")).unwrap();
        }
        let left = sandbox.path(UNFINISHED);
        if left.exists() {
            unfinished += 1;
            let loaded = Model::open(&left);
            assert!(loaded.is_err() || tree(&left) == want, "moment {moment}: half of it was loaded");
        }
        // Every second time the next one is killed, too, with the first one's leavings before it.
        if moment % 2 == 1 {
            let ran = sandbox.run(quantize(golden.dir(), "new", &[]));
            assert_eq!(ran.code, 0, "moment {moment}: {}", ran.stderr);
            assert!(tree(&sandbox.path("new")) == want, "moment {moment}");
            fs::remove_dir_all(sandbox.path("new")).unwrap();
            assert_eq!(sandbox.entries(), ["want"], "moment {moment}");
        }
    }
    println!("{usual:?} a run; of 20 killed {unfinished} left something unfinished, {finished} were done");
    assert!(unfinished >= 5, "{unfinished} of 20 kills came in time");
}

/// Of a file of its own, so that what is killed is in the middle of it.
fn wait_until_it_writes(sandbox: &Sandbox, run: &mut Child) {
    while !sandbox.path(UNFINISHED).join(T5).exists() {
        assert!(run.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn nothing_is_left_of_a_run_that_is_stopped() {
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        let sandbox = Sandbox::new();
        // The parent, as `nohup` does, may have told to ignore signals.
        let mut env = Command::new("env");
        env.arg("--default-signal=TERM,INT").arg(env!("CARGO_BIN_EXE_schnell"));
        env.args(quantize(LARGE.path(), "new", &[])).current_dir(sandbox.path(""));
        let mut run = env.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until_it_writes(&sandbox, &mut run);
        assert!(Command::new("kill").args(["-s", signal, &run.id().to_string()]).status().unwrap().success());
        let ended = run.wait().unwrap();
        assert_eq!(ended.signal(), Some(number), "{ended}");
        assert_eq!(sandbox.entries(), [""; 0], "{signal}");
    }
}

/// While one makes a folder another leaves it alone.
#[test]
fn two_runs_do_not_make_one_folder() {
    let sandbox = Sandbox::new();
    let mut first = spawn(&sandbox, LARGE.path());
    wait_until_it_writes(&sandbox, &mut first);
    sandbox.refuses(quantize(LARGE.path(), "new", &[]), 2, &["new is being written by another process"]);
    assert!(first.wait().unwrap().success());
    sandbox.refuses(quantize(LARGE.path(), "new", &[]), 2, &["new is there already"]);
    Model::open(sandbox.path("new")).unwrap();
}

/// As on a disk that fills up while it is written.
#[test]
fn nothing_is_left_of_a_run_that_cannot_write() {
    let (sandbox, golden) = (Sandbox::new(), Golden::open("a"));
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 2000 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_schnell")]);
    limited.args(quantize(golden.dir(), "new", &[])).current_dir(sandbox.path(""));
    let output = limited.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("error: cannot write ") && said.contains(TRANSFORMER), "{said}");
    assert_eq!(sandbox.entries(), [""; 0]);
}

// ---- what is refused -------------------------------------------------------------------------------------

#[test]
fn places_where_no_folder_can_be_made_are_refused() {
    let (sandbox, golden) = (Sandbox::new(), Golden::open("b"));
    fs::create_dir(sandbox.path("folder")).unwrap();
    fs::write(sandbox.path("file"), "").unwrap();
    symlink("nowhere", sandbox.path("link")).unwrap();
    for name in ["folder", "folder/", "file", "link"] {
        sandbox.refuses(quantize(golden.dir(), name, &[]), 2, &[name, "is there already"]);
    }
    for name in [".", "..", "/"] {
        let said = sandbox.refuses(quantize(golden.dir(), name, &[]), 2, &[]);
        assert!(said.contains("no name for a new folder") || said.contains("is there already"), "{said}");
    }
    for name in ["nowhere/new", "file/new", "/proc/new"] {
        sandbox.refuses(quantize(golden.dir(), name, &[]), 7, &["cannot create", name]);
    }
    let long = "n".repeat(250);
    sandbox.refuses(quantize(golden.dir(), &long, &[]), 7, &["cannot create", &long]);
    // Where the model is, by whatever way.
    symlink(golden.dir(), sandbox.path("model")).unwrap();
    for name in ["model/new", "model/vae/new", "folder/../model/new"] {
        sandbox.refuses(quantize(golden.dir(), name, &[]), 2, &[name, "lies in the model's own folder"]);
    }
    assert_eq!(tree(golden.dir()).len(), tree(Golden::open("b").dir()).len());
}

#[test]
fn models_that_are_quantized_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.refuses(quantize(DEMO.path(), "new", &[]), 2, &["quantized already", "16 or 32 bits"]);
    let golden = Golden::open("a");
    for (folder, quantization) in [
        (
            "transformer",
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}),
        ),
        (
            "text_encoder_2",
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}),
        ),
    ] {
        let path = golden.dir().join(folder).join("config.json");
        let before = bytes(&path);
        let mut config: Value = serde_json::from_slice(&before).unwrap();
        config["quantization_config"] = quantization;
        fs::write(&path, config.to_string()).unwrap();
        sandbox.refuses(quantize(golden.dir(), "new", &[]), 2, &[folder, "quantized already"]);
        fs::write(&path, before).unwrap();
    }
}

/// Overwrites a tensor's first numbers, all of it for `None`.
fn poke(path: &Path, tensor: &str, value: Option<f32>) {
    let mut all = bytes(path);
    let end = 8 + u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&all[8..end]).unwrap();
    let offsets = &header[tensor]["data_offsets"];
    let [begin, until] = [0, 1].map(|i| end + offsets[i].as_u64().unwrap() as usize);
    match value {
        Some(value) => all[begin..begin + 4].copy_from_slice(&value.to_le_bytes()),
        None => all[begin..until].fill(0),
    }
    fs::write(path, all).unwrap();
}

#[test]
fn damaged_tensors_are_refused_by_name_and_nothing_is_left() {
    let (sandbox, golden) = (Sandbox::new(), Golden::open("a"));
    let q = "encoder.block.0.layer.0.SelfAttention.q.weight";
    for (file, tensor, value, words) in [
        (T5, q, Some(f32::NAN), "not finite"),
        (T5, "shared.weight", Some(f32::INFINITY), "not finite"),
        (T5, "encoder.block.1.layer.1.DenseReluDense.wo.weight", Some(f32::NAN), "not finite"),
        (TRANSFORMER, "proj_out.weight", Some(f32::NEG_INFINITY), "not finite"),
        (TRANSFORMER, "proj_out.bias", Some(f32::NAN), "not finite"),
        (T5, q, None, "is 0: download the file again"),
        (T5, "encoder.block.1.layer.1.DenseReluDense.wo.weight", None, "is 0: download the file again"),
        (TRANSFORMER, "proj_out.weight", None, "is 0: download the file again"),
    ] {
        let path = golden.dir().join(file);
        let before = bytes(&path);
        poke(&path, tensor, value);
        sandbox.refuses(quantize(golden.dir(), "new", &[]), 3, &[file, tensor, words]);
        fs::write(&path, before).unwrap();
    }
    // Biases may be all zero.
    poke(&golden.dir().join(TRANSFORMER), "proj_out.bias", None);
    assert_eq!(sandbox.run(quantize(golden.dir(), "new", &[])).code, 0);
    // Truncated, and gone: before any work.
    let path = golden.dir().join(T5);
    let all = bytes(&path);
    fs::write(&path, &all[..all.len() - 1]).unwrap();
    sandbox.refuses(quantize(golden.dir(), "other", &[]), 3, &[T5, "truncated"]);
    fs::remove_file(&path).unwrap();
    sandbox.refuses(quantize(golden.dir(), "other", &[]), 3, &["text_encoder_2", "no weights"]);
}

/// Blocks would begin in one row and end in the next: this crate's kernels have no such weights.
#[test]
fn rows_that_are_no_whole_number_of_blocks_are_refused() {
    let manifest = fs::read_to_string("tests/golden/a/manifest.json").unwrap();
    let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
    for tensor in manifest["tensors"].as_array_mut().unwrap() {
        let name = tensor["name"].as_str().unwrap().to_string();
        match name.split("SelfAttention.").nth(1) {
            Some("q.weight" | "k.weight" | "v.weight") if name.starts_with("encoder.block") => {
                tensor["shape"] = json!([160, 64]);
            }
            Some("o.weight") => tensor["shape"] = json!([64, 160]),
            _ => {}
        }
    }
    let (sandbox, golden) = (Sandbox::new(), Golden::open("a"));
    Manifest::parse(&manifest.to_string()).unwrap().write_weights(golden.dir()).unwrap();
    let path = golden.dir().join("text_encoder_2/config.json");
    let mut config: Value = serde_json::from_slice(&bytes(&path)).unwrap();
    config["d_kv"] = json!(40);
    fs::write(&path, config.to_string()).unwrap();
    let words = ["SelfAttention.o.weight has rows of 160", "blocks of 64"];
    sandbox.refuses(quantize(golden.dir(), "new", &[]), 5, &words);
}
