//! The command: exit codes, the one message of a refusal and that it leaves nothing behind, and the files of a success.

#[path = "common/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use schnell::weights::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// An empty folder to run in.
struct Sandbox {
    dir: tempfile::TempDir,
    /// Where the loader looks for libraries first.
    libraries: Option<tempfile::TempDir>,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Sandbox {
    fn new() -> Sandbox {
        Sandbox { dir: tempfile::tempdir().unwrap(), libraries: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_schnell"));
        command.args(args).current_dir(self.dir.path()).env_remove("SCHNELL_LOG");
        if let Some(dir) = &self.libraries {
            command.env("LD_LIBRARY_PATH", dir.path());
        }
        let output = command.output().unwrap();
        Ran {
            code: output.status.code().expect("no exit code"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The run ends with `code` and one error line that holds all of `words`, and the folder is as before.
    #[track_caller]
    fn refuses<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        code: i32,
        words: &[&str],
    ) -> String {
        let before = self.entries();
        let ran = self.run(args);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{}", ran.stderr);
        // A refused flag is followed by its usage; other errors are one line, behind the bundled model's notice at most.
        let usage = ran.stderr.contains("--help");
        assert!(usage || ran.stderr.lines().count() <= 2, "{}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        for word in words {
            assert!(errors[0].contains(word), "`{word}` is not in `{}`", errors[0]);
        }
        assert_eq!(self.entries(), before, "something was written");
        errors[0].to_string()
    }
}

/// A picture of 64 x 64 in one step by the bundled model on the emulator, and `more`.
fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["generate", "a red circle", "--device", "emulator", "--t5-length", "16"];
    for (flag, value) in [("--width", "64"), ("--height", "64"), ("--steps", "1")] {
        if !more.contains(&flag) {
            args.extend([flag, value]);
        }
    }
    args.extend(more);
    args
}

/// The bundled model as a folder.
static DEMO: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    schnell::demo::write(dir.path()).unwrap();
    dir
});

fn copy_of_demo() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    golden::copy_tree(DEMO.path(), dir.path());
    dir
}

/// The config files of FLUX.1-schnell, and nothing else.
fn schnell_configs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (folder, config) in [
        (
            "transformer",
            json!({
                "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": false,
                "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
                "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768,
            }),
        ),
        (
            "text_encoder",
            json!({
                "architectures": ["CLIPTextModel"], "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "quick_gelu",
                "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-5, "max_position_embeddings": 77,
                "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
                "pad_token_id": 1, "projection_dim": 768, "vocab_size": 49408,
            }),
        ),
        (
            "text_encoder_2",
            json!({
                "architectures": ["T5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096,
                "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": true,
                "layer_norm_epsilon": 1e-6, "model_type": "t5", "num_heads": 64, "num_layers": 24,
                "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "vocab_size": 32128,
            }),
        ),
        (
            "vae",
            json!({
                "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
                "latent_channels": 16, "layers_per_block": 2, "mid_block_add_attention": true,
                "norm_num_groups": 32, "out_channels": 3, "scaling_factor": 0.3611, "shift_factor": 0.1159,
                "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
                "use_post_quant_conv": false, "use_quant_conv": false,
            }),
        ),
    ] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        std::fs::write(dir.path().join(folder).join("config.json"), config.to_string()).unwrap();
    }
    std::fs::create_dir(dir.path().join("scheduler")).unwrap();
    // The same two files for every model that diffusers calls FluxPipeline.
    for file in ["model_index.json", "scheduler/scheduler_config.json"] {
        std::fs::copy(DEMO.path().join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn pixels(path: &Path) -> (png::OutputInfo, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes(path))).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    (reader.next_frame(&mut pixels).unwrap(), pixels)
}

// ---- refusals ----------------------------------------------------------------------------------------------

#[test]
fn prompts_that_say_nothing_are_refused() {
    let sandbox = Sandbox::new();
    let empty = |prompt| ["generate", prompt, "--device", "emulator"];
    sandbox.refuses(empty(""), 2, &["the prompt is empty", "--allow-empty-prompt"]);
    sandbox.refuses(empty(" \t"), 2, &["the prompt is empty"]);
    sandbox.refuses(quick(&["--prompt-2", ""]), 2, &["the prompt is empty"]);
    sandbox.refuses(["generate"], 2, &["required"]);
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.refuses(quick(&["--width", "500"]), 2, &["width 500", "multiple of 16", "496 and 512"]);
    sandbox.refuses(quick(&["--height", "72"]), 2, &["height 72", "64 and 80"]);
    sandbox.refuses(quick(&["--height", "0"]), 2, &["height 0"]);
    sandbox.refuses(quick(&["--width", "8208"]), 2, &["width 8208", "8192"]);
    sandbox.refuses(quick(&["--width", "-16"]), 2, &["-1"]);
    sandbox.refuses(quick(&["--steps", "0"]), 2, &["0 steps", "1 to 1000"]);
    for length in ["0", "513"] {
        let args = ["generate", "a red circle", "--device", "emulator", "--t5-length", length];
        sandbox.refuses(args, 2, &["T5 length", length, "1 to 512"]);
        sandbox.refuses(["plan", "--t5-length", length], 2, &["T5 length", length]);
    }
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.refuses(quick(&["--output", "missing/out.png"]), 7, &["cannot write missing/out.png"]);
    sandbox.refuses(quick(&["--output", "out.jpg"]), 2, &["out.jpg", ".png"]);
    sandbox.refuses(quick(&["--output", "out"]), 2, &["out", ".png"]);
    std::fs::create_dir(sandbox.path("folder.png")).unwrap();
    sandbox.refuses(quick(&["--output", "folder.png"]), 2, &["folder.png is a folder"]);
    sandbox.refuses(quick(&["--timings", "missing/t.json"]), 7, &["cannot write missing/t.json"]);
    std::fs::write(sandbox.path("file"), "").unwrap();
    sandbox.refuses(quick(&["--dump", "file"]), 7, &["cannot create file"]);
}

#[test]
fn a_refused_run_leaves_an_old_picture_alone() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("out.png"), "old").unwrap();
    sandbox.refuses(quick(&["--width", "500"]), 2, &["width 500"]);
    sandbox.refuses(quick(&["--dump", "dump", "--model", "nowhere"]), 7, &["nowhere"]);
    assert_eq!(bytes(&sandbox.path("out.png")), b"old");
}

#[test]
fn noise_that_does_not_fit_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.refuses(quick(&["--noise", "pink"]), 2, &["--noise pink", "neither", "bf16-legacy"]);
    let save = |name: &str, tensors: &[(&str, Dtype, Vec<usize>)]| {
        let stored: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, dtype, shape)| vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
            .collect();
        let views = tensors.iter().zip(&stored).map(|((name, dtype, shape), bytes)| {
            (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(sandbox.path(name), file).unwrap();
    };
    std::fs::write(sandbox.path("text"), "not a tensor at all").unwrap();
    save("bf16.safetensors", &[("noise", Dtype::BF16, vec![1, 16, 64])]);
    save("flat.safetensors", &[("noise", Dtype::F32, vec![1024])]);
    save("two.safetensors", &[("a", Dtype::F32, vec![1, 16, 64]), ("b", Dtype::F32, vec![1, 16, 64])]);
    save("large.safetensors", &[("noise", Dtype::F32, vec![1, 24, 64])]);
    sandbox.refuses(quick(&["--noise", "text"]), 3, &["text"]);
    sandbox.refuses(quick(&["--noise", "bf16.safetensors"]), 3, &["BF16", "one f32 tensor"]);
    sandbox.refuses(quick(&["--noise", "flat.safetensors"]), 3, &["[1024]", "[1, tokens, channels]"]);
    sandbox.refuses(quick(&["--noise", "two.safetensors"]), 3, &["not exactly one tensor"]);
    let wanted = ["1536 values", "16 tokens x 64 channels"];
    sandbox.refuses(quick(&["--noise", "large.safetensors"]), 2, &wanted);
}

#[test]
fn budgets_and_devices_that_mean_nothing_are_refused() {
    let sandbox = Sandbox::new();
    for budget in ["lots", "5 apples", "0", "-1GiB"] {
        sandbox.refuses(quick(&[&format!("--budget={budget}")]), 2, &["--budget"]);
    }
    for device in ["gpu", "cuda:x", "cuda:-1"] {
        sandbox.refuses(["generate", "a red circle", "--device", device], 2, &["--device", "emulator"]);
    }
}

/// Both numbers, in bytes: what is needed, as the plan prints it, and what there is.
#[test]
fn a_budget_that_is_too_small_is_refused_with_both_numbers() {
    let sandbox = Sandbox::new();
    let shape = ["--width", "64", "--height", "64", "--steps", "1", "--t5-length", "16"];
    let plan = sandbox.run(["plan"].iter().chain(&shape)).stdout;
    let arena = plan.lines().find(|line| line.starts_with("arena")).unwrap();
    let arena = arena.split_whitespace().find(|word| word.parse::<u64>().is_ok()).unwrap();
    sandbox.refuses(quick(&["--budget", "100KiB"]), 4, &[arena, "102400", "--budget"]);
    sandbox.refuses(["plan", "--budget", "100KiB"].iter().chain(&shape), 4, &[arena, "102400"]);
    assert_eq!(sandbox.run(["plan", "--budget", arena].iter().chain(&shape)).code, 0);
    assert_eq!(sandbox.run(quick(&["--budget", arena])).code, 0);
}

/// Files of the driver's names that are no libraries hide the driver of a machine that has one.
fn without_driver() -> Sandbox {
    let dir = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    Sandbox { libraries: Some(dir), ..Sandbox::new() }
}

#[test]
fn a_machine_without_a_driver_is_told_what_is_missing() {
    let sandbox = without_driver();
    for device in ["cuda:0", "cuda"] {
        sandbox.refuses(["generate", "a red circle", "--device", device], 5, &["libcuda"]);
    }
}

#[test]
fn the_emulator_refuses_what_it_would_not_finish_from_config_files_alone() {
    let (sandbox, model) = (without_driver(), schnell_configs());
    for device in ["emulator", "auto"] {
        let args = ["generate", "a cat", "--model", text(model.path()), "--device", device];
        let error =
            sandbox.refuses(args, 5, &["1024 x 1024", "would take about", "on the emulator", "use a GPU"]);
        assert!(["minutes", "hours", "days"].iter().any(|unit| error.contains(unit)), "{error}");
    }
}

#[test]
fn broken_models_are_refused_by_file_and_tensor() {
    let sandbox = Sandbox::new();
    let refused = |dir: &Path, code, words: &[&str]| {
        sandbox.refuses(quick(&["--model", text(dir)]), code, words);
    };
    refused(Path::new("nowhere"), 7, &["cannot read", "nowhere"]);
    for tokenizer in ["tokenizer", "tokenizer_2"] {
        let dir = copy_of_demo();
        std::fs::remove_dir_all(dir.path().join(tokenizer)).unwrap();
        refused(dir.path(), 3, &[text(&dir.path().join(tokenizer)), "expected", "tokenizer.json"]);
    }

    // Each a rewritten header or a cut file of the transformer.
    let file = "transformer/diffusion_pytorch_model.safetensors";
    let rewritten = |change: &dyn Fn(&mut Value)| {
        let dir = copy_of_demo();
        let stored = bytes(&dir.path().join(file));
        let len = u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&stored[8..8 + len]).unwrap();
        change(&mut header);
        let header = header.to_string();
        let mut new = (header.len() as u64).to_le_bytes().to_vec();
        new.extend_from_slice(header.as_bytes());
        new.extend_from_slice(&stored[8 + len..]);
        std::fs::write(dir.path().join(file), new).unwrap();
        dir
    };
    let name = "x_embedder.weight";
    let missing = rewritten(&|header| {
        let tensor = header.as_object_mut().unwrap().remove(name).unwrap();
        header["another"] = tensor;
    });
    refused(missing.path(), 3, &["transformer", name, "missing", "[256, 64]"]);
    let shape = rewritten(&|header| header[name]["shape"] = json!([64, 256]));
    refused(shape.path(), 3, &[file, name, "[64, 256]", "expected [256, 64]"]);
    let dtype = rewritten(&|header| {
        header[name]["dtype"] = json!("I64");
        header[name]["shape"] = json!([128, 64]);
    });
    refused(dtype.path(), 3, &[file, name, "I64", "expected F32, BF16 or F16"]);

    let cut = copy_of_demo();
    let stored = bytes(&cut.path().join(file));
    for len in [stored.len() - 1, stored.len() / 2, 100, 7, 0] {
        std::fs::write(cut.path().join(file), &stored[..len]).unwrap();
        refused(cut.path(), 3, &[file]);
    }
    std::fs::remove_file(cut.path().join(file)).unwrap();
    refused(cut.path(), 3, &["transformer"]);
}

// ---- successes -----------------------------------------------------------------------------------------------

#[test]
fn the_bundled_model_draws_and_says_that_its_weights_are_generated() {
    let sandbox = Sandbox::new();
    let args = ["generate", "a red circle", "--device", "emulator", "--steps", "1", "--t5-length", "16"];
    let ran = sandbox.run(args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("weights are generated, not trained"), "{}", ran.stderr);
    assert!(ran.stderr.contains("out.png: 128 x 128, seed 0"), "{}", ran.stderr);
    assert_eq!(sandbox.entries(), ["out.png"]);
    let (info, pixels) = pixels(&sandbox.path("out.png"));
    assert_eq!((info.width, info.height), (128, 128));
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    assert!(pixels.iter().any(|p| p != &pixels[0]), "a blank picture");
}

#[test]
fn a_seed_is_its_bytes() {
    let sandbox = Sandbox::new();
    let draw = |seed, name: &str| {
        let ran = sandbox.run(quick(&["--seed", seed, "--output", name]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        bytes(&sandbox.path(name))
    };
    let first = draw("1", "a.png");
    assert_eq!(first, draw("1", "b.png"));
    assert_ne!(first, draw("2", "c.png"));
    assert_eq!(first, draw("1", "c.png"), "an old picture is replaced");
}

#[test]
fn timings_name_every_stage_in_order() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(quick(&["--steps", "2", "--timings", "t.json"])).code, 0);
    let timings: Value = serde_json::from_slice(&bytes(&sandbox.path("t.json"))).unwrap();
    let stages = timings["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["tokenise", "clip", "t5", "modulation", "step 0", "step 1", "vae", "copy"]);
    let times: Vec<f64> = stages.iter().map(|stage| stage["ms"].as_f64().unwrap()).collect();
    assert!(times.iter().all(|ms| *ms >= 0.0) && times[4] > 0.0, "{times:?}");
    assert!((timings["total_ms"].as_f64().unwrap() - times.iter().sum::<f64>()).abs() < 1e-6);
    assert_eq!(timings["device"], "emulator");
}

#[test]
fn a_dump_has_every_stage_and_its_noise_draws_the_picture_again() {
    let sandbox = Sandbox::new();
    let shape = ["--width", "96", "--steps", "2"];
    let first = [&shape[..], &["--seed", "5", "--dump", "new/dump", "--output", "a.png"]].concat();
    let ran = sandbox.run(quick(&first));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(sandbox.path("new/dump")).unwrap() {
        let path = entry.unwrap().path();
        let file = SafeTensors::open(&path).unwrap();
        let tensors: Vec<_> = file.iter().collect();
        assert_eq!(tensors.len(), 1, "{}", path.display());
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("{}.safetensors", tensors[0].name));
        found.insert(tensors[0].name.clone(), (tensors[0].dtype, tensors[0].shape.clone()));
    }
    let mut expected: BTreeMap<String, (Dtype, Vec<usize>)> = [
        ("tokens_clip", Dtype::I32, vec![1, 77]),
        ("tokens_t5", Dtype::I32, vec![1, 16]),
        ("noise", Dtype::F32, vec![1, 24, 64]),
        ("sigmas", Dtype::F32, vec![3]),
        ("clip_pooled", Dtype::F32, vec![1, 64]),
        ("t5_embeds", Dtype::F32, vec![1, 16, 64]),
        ("vae_out", Dtype::F32, vec![1, 3, 64, 96]),
    ]
    .map(|(name, dtype, shape)| (name.to_string(), (dtype, shape)))
    .into();
    for step in 0..2 {
        for stage in ["noise_pred", "latents"] {
            expected.insert(format!("{stage}_{step}"), (Dtype::F32, vec![1, 24, 64]));
        }
    }
    assert_eq!(found, expected);

    let again = [&shape[..], &["--noise", "new/dump/noise.safetensors", "--output", "b.png"]].concat();
    assert_eq!(sandbox.run(quick(&again)).code, 0);
    assert_eq!(bytes(&sandbox.path("a.png")), bytes(&sandbox.path("b.png")));
}

#[test]
fn prompts_reach_their_encoders() {
    let sandbox = Sandbox::new();
    let draw = |args: &[&str]| {
        let ran = sandbox.run(args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (ran.stderr, pixels(&sandbox.path("out.png")).1)
    };
    let (_, one) = draw(&quick(&[]));
    let (_, same) = draw(&quick(&["--prompt-2", "a red circle"]));
    let (_, other) = draw(&quick(&["--prompt-2", "a blue square on a hill"]));
    assert_eq!(one, same);
    assert_ne!(one, other);
    let mut empty = quick(&["--allow-empty-prompt"]);
    empty[1] = "";
    assert_ne!(one, draw(&empty).1);
    let long = "a red circle and a blue square ".repeat(30);
    let mut args = quick(&[]);
    args[1] = &long;
    let (stderr, _) = draw(&args);
    for encoder in ["CLIP", "T5"] {
        assert!(stderr.contains(&format!("warning: {encoder} did not see the last")), "{stderr}");
    }
}

#[test]
fn plans_print_every_region_from_config_files_alone() {
    let (sandbox, schnell) = (Sandbox::new(), schnell_configs());
    for (model, sides) in [("demo", ["64", "128"]), (text(schnell.path()), ["512", "1024"])] {
        for side in sides {
            let ran = sandbox.run(["plan", "--model", model, "--width", side, "--height", side]);
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            let dir = if model == "demo" { DEMO.path() } else { schnell.path() };
            let config = schnell::config::PipelineConfig::open(dir).unwrap();
            if model != "demo" {
                assert_eq!(config, schnell::config::PipelineConfig::schnell());
            }
            let pixels = side.parse().unwrap();
            let shape = schnell::plan::Shape { width: pixels, height: pixels, ..Default::default() };
            let plan = schnell::plan::Plan::new(&config, shape, Default::default()).unwrap();
            assert_eq!(ran.stdout, plan.to_string());
            for region in plan.layout.regions().iter().filter(|r| r.bytes > 0) {
                let line = ran.stdout.lines().find(|l| l.split_whitespace().next() == Some(&region.name));
                let line = line.unwrap_or_else(|| panic!("{} is not in the plan", region.name));
                for number in [region.offset, region.bytes] {
                    assert!(line.split_whitespace().any(|word| word == number.to_string()), "{line}");
                }
            }
            assert_eq!(sandbox.entries(), [""; 0]);
        }
    }
}
