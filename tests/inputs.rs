//! What the command reads: config files, indices, prompts and noise that are no regular files, have no end, or are not what
//! they should be.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;

use command::*;
use schnell::weights::Dtype;

/// A file of `len` bytes that takes no room.
fn holes(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

const WEIGHTS: &str = "vae/diffusion_pytorch_model.safetensors";

#[test]
fn files_of_a_model_must_be_regular_and_have_an_end() {
    let (sandbox, model) = (Sandbox::new(), copy_of_demo());
    let args = ["--model", text(model.path())];
    let index = "text_encoder/model.safetensors.index.json";
    for file in ["model_index.json", "vae/config.json", "tokenizer_2/tokenizer_config.json", index, WEIGHTS] {
        let path = model.path().join(file);
        let kept = path.exists().then(|| bytes(&path));
        // The index counts where there is no single file.
        let single = model.path().join("text_encoder/model.safetensors");
        let aside = model.path().join("aside");
        if file == index {
            std::fs::rename(&single, &aside).unwrap();
        }
        let refused = |words: &[&str]| {
            sandbox.refuses(quick(&args), 3, &[&[text(&path)], words].concat());
            std::fs::remove_file(&path).unwrap();
        };
        let _ = std::fs::remove_file(&path);
        fifo(&path);
        refused(&["FIFO", "expected a regular file"]);
        symlink("/dev/zero", &path).unwrap();
        refused(&["device", "expected a regular file"]);
        if file != WEIGHTS {
            holes(&path, 8 << 30);
            refused(&["8589934592 bytes", "expected at most"]);
        }
        symlink("gone", &path).unwrap();
        refused(&["a link to gone", "missing"]);
        std::fs::create_dir(&path).unwrap();
        sandbox.refuses(quick(&args), 3, &[text(&path), "folder"]);
        std::fs::remove_dir(&path).unwrap();
        if let Some(kept) = kept {
            std::fs::write(&path, kept).unwrap();
        }
        if file == index {
            std::fs::rename(&aside, &single).unwrap();
        }
    }
    assert_eq!(sandbox.run(quick(&args)).code, 0);
}

#[test]
fn prompts_are_the_same_whatever_system_wrote_them() {
    let sandbox = Sandbox::new();
    let sheet = |content: &[u8]| {
        std::fs::write(sandbox.path("p.txt"), content).unwrap();
        let mut args = quick(&["--prompts", "p.txt", "--grid", "2x1"]);
        args.remove(1);
        let ran = sandbox.run(args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        bytes(&sandbox.path("out.png"))
    };
    let plain = sheet("a red circle\na café\n".as_bytes());
    for other in
        ["\u{feff}a red circle\r\na café\r\n", "a red circle\ra café", "\u{feff}a red circle\n\n a café "]
    {
        assert!(sheet(other.as_bytes()) == plain, "{other:?}");
    }
}

#[test]
fn prompts_that_are_no_text_are_refused_by_line() {
    let sandbox = Sandbox::new();
    let refused = |words: &[&str]| {
        let args = ["generate", "--prompts", "p.txt", "--grid", "2x2"];
        sandbox.refuses(args, 2, &[&["p.txt"], words].concat());
    };
    for ends in ["\n", "\r\n", "\r"] {
        let latin = format!("a red circle{ends}a caf").into_bytes();
        std::fs::write(sandbox.path("p.txt"), [&latin[..], b"\xe9", ends.as_bytes()].concat()).unwrap();
        refused(&["line 2", "save as UTF-8"]);
    }
    std::fs::write(sandbox.path("p.txt"), b"\xff\xfea\0 \0r\0e\0d\0").unwrap();
    refused(&["UTF-16", "save as UTF-8"]);
    std::fs::write(sandbox.path("p.txt"), "a red circle\n\na\0b").unwrap();
    refused(&["line 3", "NUL"]);
    holes(&sandbox.path("p.txt"), 8 << 30);
    refused(&["8589934592 bytes"]);
    std::fs::remove_file(sandbox.path("p.txt")).unwrap();
    fifo(&sandbox.path("p.txt"));
    refused(&["FIFO"]);
    std::fs::remove_file(sandbox.path("p.txt")).unwrap();
    symlink("/dev/zero", sandbox.path("p.txt")).unwrap();
    refused(&["device"]);
}

#[test]
fn noise_has_the_shape_of_the_latents_and_is_finite() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("n.safetensors");
    let refused = |code, words: &[&str]| sandbox.refuses(quick(&["--noise", "n.safetensors"]), code, words);
    for shape in [[1, 64, 16], [16, 1, 64], [1024, 1, 1], [1, 1, 1024]] {
        save_tensors(&file, &[("noise", Dtype::F32, shape.to_vec(), vec![0; 4096])]);
        refused(2, &[&format!("{shape:?}"), "takes [1, 16, 64]"]);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![0.5f32; 1024];
        values[77] = bad;
        let stored = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        save_tensors(&file, &[("noise", Dtype::F32, vec![1, 16, 64], stored)]);
        refused(3, &["n.safetensors", "1 of", "not finite"]);
    }
    // 16 GiB by its header, which is compared before a value is read.
    save_tensors(&file, &[("n", Dtype::F32, vec![1, 0, 64], vec![])]);
    let len = 16u64 << 30;
    let header =
        format!(r#"{{"n":{{"dtype":"F32","shape":[1,{},64],"data_offsets":[0,{len}]}}}}"#, len / 256);
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(&file, &start).unwrap();
    File::options().write(true).open(&file).unwrap().set_len(start.len() as u64 + len).unwrap();
    refused(2, &["67108864", "takes [1, 16, 64]"]);

    std::fs::remove_file(&file).unwrap();
    fifo(&file);
    refused(3, &["FIFO"]);
    std::fs::remove_file(&file).unwrap();
    symlink("gone", &file).unwrap();
    refused(3, &["a link to gone", "missing"]);
}

/// Whatever is named as a model and is none: what it is, and what a model is.
#[test]
fn what_is_no_model_is_said() {
    let (sandbox, model) = (Sandbox::new(), copy_of_demo());
    let here = |name: &str| sandbox.path(name);
    let tensors = |name: &str, names: &[&str]| {
        let tensors: Vec<_> = names.iter().map(|name| (*name, Dtype::F32, vec![1], vec![0; 4])).collect();
        save_tensors(&here(name), &tensors);
    };
    let sign = "double_blocks.0.img_attn.norm.query_norm.scale";
    let behind = format!("model.diffusion_model.{sign}");
    tensors("whole.safetensors", &[behind.as_str(), "vae.decoder.up.0.block.0.conv1.weight"]);
    tensors("flux1-schnell.safetensors", &[sign, "img_in.weight"]);
    tensors("shard.safetensors", &["transformer_blocks.7.x", "transformer_blocks.8.x"]);
    tensors("lora.safetensors", &["transformer.a.lora_A.weight", "transformer.a.lora_B.weight"]);
    tensors("control.safetensors", &[sign, "img_in.lora_A.weight", "img_in.lora_B.weight"]);
    tensors("noise.safetensors", &["noise"]);
    tensors("other.safetensors", &["a", "b"]);
    std::fs::write(here("pointer"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        .unwrap();
    std::fs::write(here("page"), "<!DOCTYPE html><title>Login</title>").unwrap();
    std::fs::write(here("flux.gguf"), "GGUF\x03\0\0\0\0\0\0\0").unwrap();
    for folder in ["empty", "above", "cache/snapshots/abc", "single", "parts/vae"] {
        std::fs::create_dir_all(here(folder)).unwrap();
    }
    symlink(model.path(), here("above/FLUX")).unwrap();
    symlink("gone", here("dangling")).unwrap();
    std::fs::copy(here("whole.safetensors"), here("single/a.safetensors")).unwrap();
    let part = |name: &str| text(&model.path().join(name)).to_string();
    let no_tokenizers = ["holds no tokenizers and configs", "`schnell fetch ", " --only tokenizers`"];
    for (given, code, words) in [
        ("whole.safetensors", 2, &no_tokenizers[..]),
        ("flux1-schnell.safetensors", 2, &no_tokenizers),
        (
            "single",
            3,
            &["holds transformer (Black Forest Labs' names), vae", "--transformer FILE --vae FILE"],
        ),
        ("shard.safetensors", 3, &["a shard of a transformer"]),
        ("lora.safetensors", 3, &["a LoRA under diffusers' names", "with --lora"]),
        ("control.safetensors", 3, &["a control LoRA", "with --lora"]),
        ("noise.safetensors", 3, &["one tensor, noise"]),
        ("other.safetensors", 3, &["no model that is known"]),
        ("pointer", 3, &["Git LFS pointer", "git lfs pull"]),
        ("page", 3, &["web page"]),
        ("flux.gguf", 3, &["GGUF", "truncated"]),
        ("empty", 3, &["an empty folder"]),
        ("above", 3, &["above/FLUX"]),
        ("cache", 3, &["Hugging Face cache", "snapshots/abc"]),
        ("parts", 3, &["with vae, but without its index"]),
        ("dangling", 3, &["a link to gone"]),
        (&part("vae"), 3, &["AutoencoderKL", "a part of the model"]),
        (&part("text_encoder_2"), 3, &["T5EncoderModel", "a part of the model"]),
        (&part("tokenizer"), 3, &["the folder of a tokenizer"]),
        (&part("model_index.json"), 3, &["name it:"]),
        (&part(WEIGHTS), 3, &["this holds vae and no transformer", "with --vae"]),
        (&part("transformer/diffusion_pytorch_model.safetensors"), 2, &no_tokenizers),
    ] {
        let expected = match given {
            "dangling" => "missing",
            _ if words.iter().any(|word| word.contains("holds")) => "name",
            _ => "a model is a folder with model_index.json",
        };
        for args in [vec!["plan", "--model", given], quick(&["--model", given])] {
            sandbox.refuses(args, code, &[words, &[expected]].concat());
        }
    }
    sandbox.refuses(["plan", "--model", "./nowhere"], 7, &["cannot read ./nowhere:"]);
}

/// In place of any file of a model.
#[test]
fn pointers_and_pages_are_told_from_files() {
    let (sandbox, model) = (Sandbox::new(), copy_of_demo());
    let files = ["model_index.json", "vae/config.json", WEIGHTS, "tokenizer_2/tokenizer.json"];
    for file in files {
        let path = model.path().join(file);
        let kept = bytes(&path);
        for (content, words) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
            ("\n<html><body>Please log in</body></html>", "web page"),
        ] {
            std::fs::write(&path, content).unwrap();
            sandbox.refuses(quick(&["--model", text(model.path())]), 3, &[text(&path), words]);
        }
        std::fs::write(&path, kept).unwrap();
    }
}
