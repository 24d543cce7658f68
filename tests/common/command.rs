//! The `schnell` command as its tests run it: in an empty folder, and the models that it is given.

#![allow(dead_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use schnell::weights::Dtype;
use serde_json::json;

use crate::golden;

/// An empty folder to run in.
pub struct Sandbox {
    dir: tempfile::TempDir,
    /// Where the loader looks for libraries first.
    libraries: Option<tempfile::TempDir>,
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        Sandbox { dir: tempfile::tempdir().unwrap(), libraries: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// For tests that look at more than [`Ran`] has.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_schnell"));
        command.args(args).current_dir(self.dir.path()).env_remove("SCHNELL_LOG");
        // No cache of the Hugging Face tools but its own.
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.path("home"));
        if let Some(dir) = &self.libraries {
            command.env("LD_LIBRARY_PATH", dir.path());
        }
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let output = self.command(args).output().unwrap();
        Ran {
            code: output.status.code().expect("no exit code"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The run ends with `code` and one error line that holds all of `words`, and the folder is as before.
    #[track_caller]
    pub fn refuses<S: AsRef<OsStr>>(
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

/// Files of the driver's names that are no libraries hide the driver of a machine that has one.
pub fn without_driver() -> Sandbox {
    let dir = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    Sandbox { libraries: Some(dir), ..Sandbox::new() }
}

/// A picture of 64 x 64 in one step by the bundled model on the emulator, and `more`.
pub fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
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
pub static DEMO: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    schnell::demo::write(dir.path()).unwrap();
    dir
});

pub fn copy_of_demo() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    golden::copy_tree(DEMO.path(), dir.path());
    dir
}

/// The config files of FLUX.1-schnell, and nothing else.
pub fn schnell_configs() -> tempfile::TempDir {
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

/// A FIFO called `name`.
pub fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A safetensors file of tensors, `[(name, dtype, shape, bytes)]`.
pub fn save_tensors(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, stored)| {
        (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), stored).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

pub fn pixels(path: &Path) -> (png::OutputInfo, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes(path))).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    (reader.next_frame(&mut pixels).unwrap(), pixels)
}
