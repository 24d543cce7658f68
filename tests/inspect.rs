//! `schnell inspect` on files as they are published, of their names, shapes and sizes but with nothing in them; and `--model FILE`.

#[path = "common/checkpoint.rs"]
mod checkpoint;
#[path = "common/command.rs"]
mod command;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::{bfl_names, bfl_vae, prefixed, save, stored};
use command::{Sandbox, pixels, quick};
use schnell::config::PipelineConfig;
use schnell::weights::{Dtype, Part};
use serde_json::{Value, json};

/// Name, type, shape.
type Listed = Vec<(String, Dtype, Vec<usize>)>;

/// A safetensors file of these tensors, all zeros, most of which take no room on the disk.
fn sparse(path: &Path, tensors: &Listed) -> u64 {
    let (mut header, mut end) = (serde_json::Map::new(), 0u64);
    for (name, dtype, shape) in tensors {
        let bytes = shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8;
        let info = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [end, end + bytes]});
        header.insert(name.clone(), info);
        end += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    std::fs::write(path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(bytes.len() as u64 + end).unwrap();
    end
}

/// FLUX.1-schnell's or dev's transformer under Black Forest Labs' names.
fn transformer(guidance: bool, dtype: &dyn Fn(&str) -> Dtype) -> Listed {
    let mut config = PipelineConfig::schnell();
    config.flux.guidance = guidance;
    let needed = Part::Transformer.needed(&config).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = needed.into_iter().map(|n| (n.name, n.shape)).collect();
    let names = bfl_names(config.flux.layers, config.flux.single_layers, guidance);
    let fused = names.into_iter().map(|(theirs, ours)| {
        let mut shape = shapes[&ours[0]].clone();
        shape[0] = ours.iter().map(|name| shapes[name][0]).sum();
        let dtype = dtype(&theirs);
        (theirs, dtype, shape)
    });
    fused.collect()
}

fn part(part: Part, dtype: Dtype) -> Listed {
    let needed = part.needed(&PipelineConfig::schnell()).unwrap();
    needed.into_iter().map(|needed| (needed.name, dtype, needed.shape)).collect()
}

fn behind(prefix: &str, tensors: Listed) -> Listed {
    tensors.into_iter().map(|(name, dtype, shape)| (format!("{prefix}{name}"), dtype, shape)).collect()
}

fn inspect(sandbox: &Sandbox, path: &Path) -> (String, Value) {
    let path = path.to_str().unwrap();
    let text = sandbox.run(["inspect", path]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    assert!(text.stdout.lines().count() <= 24, "more than a screen: {}", text.stdout);
    let json = sandbox.run(["inspect", path, "--json"]);
    assert_eq!(json.code, 0, "{}", json.stderr);
    (text.stdout, serde_json::from_str(&json.stdout).unwrap())
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {text}");
    }
}

#[test]
fn published_checkpoints_are_known() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("flux1-schnell.safetensors");
    // As published, but for the header: 776 tensors, 23,782,357,120 bytes of them.
    assert_eq!(sparse(&path, &transformer(false, &|_| Dtype::BF16)), 23_782_357_120);
    let (text, json) = inspect(&sandbox, &path);
    let advice = "`schnell fetch black-forest-labs/FLUX.1-schnell --only tokenizers`";
    says(
        &text,
        &[
            "FLUX.1-schnell: 19 double and 38 single blocks",
            "776 BF16",
            "--quantize nf4",
            "does not load yet",
            advice,
        ],
    );
    assert_eq!((&json["loads"], &json["parts"][0]["stored"][0]["tensors"]), (&json!(false), &json!(776)));
    let bytes = |json: &Value, how: &str| json["device_bytes_at_1024"][how].as_u64().unwrap();
    assert!(bytes(&json, "nf4") < 12 << 30 && bytes(&json, "none") > 23 << 30, "{json}");

    // All parts of dev in fp8, as ComfyUI has them.
    let path = sandbox.path("flux1-dev-fp8.safetensors");
    let mut all = behind("model.diffusion_model.", transformer(true, &|_| Dtype::F8_E4M3));
    all.extend(behind("text_encoders.t5xxl.transformer.", part(Part::T5, Dtype::F8_E4M3)));
    all.extend(behind("text_encoders.clip_l.transformer.", part(Part::Clip, Dtype::F16)));
    sparse(&path, &all);
    let (text, json) = inspect(&sandbox, &path);
    says(
        &text,
        &[
            "FLUX.1-dev",
            "T5 encoder: 24 layers",
            "CLIP text encoder: 12 layers",
            "behind model.diffusion_model.",
        ],
    );
    says(&text, &["FLUX.1-dev --only tokenizers", "780 F8_E4M3"]);
    assert_eq!(json["parts"].as_array().unwrap().len(), 3);

    // T5 alone is used beside a model.
    let path = sandbox.path("t5xxl_fp8_e4m3fn.safetensors");
    let mut t5 = part(Part::T5, Dtype::F8_E4M3);
    t5.push(("encoder.embed_tokens.weight".into(), Dtype::F8_E4M3, vec![32128, 4096]));
    // As published, but for the header.
    assert_eq!(sparse(&path, &t5), 4_893_906_944);
    let (text, json) = inspect(&sandbox, &path);
    says(&text, &["220 F8_E4M3", "loads: --t5 "]);
    assert_eq!(json["loads"], true);

    // A layer is missing in the middle.
    let path = sandbox.path("holes.safetensors");
    let mut holes = transformer(false, &|_| Dtype::BF16);
    holes.retain(|(name, ..)| !name.starts_with("single_blocks.7.linear1"));
    sparse(&path, &holes);
    let (text, _) = inspect(&sandbox, &path);
    says(&text, &["does not load: ", "single_blocks.7.linear1.weight is missing"]);
}

/// FLUX's kin that draw something else: by their names, with the reason.
#[test]
fn kin_without_code_are_refused_by_name() {
    let sandbox = Sandbox::new();
    let with_channels = |channels: usize| {
        let mut tensors = transformer(true, &|_| Dtype::BF16);
        let img_in = tensors.iter_mut().find(|(name, ..)| name == "img_in.weight").unwrap();
        img_in.2[1] = channels;
        tensors
    };
    let mut chroma = transformer(false, &|_| Dtype::BF16);
    chroma.retain(|(name, ..)| !["time_in.", "vector_in."].iter().any(|start| name.starts_with(start)));
    chroma.push(("distilled_guidance_layer.in_proj.weight".into(), Dtype::BF16, vec![5120, 64]));
    for (tensors, words) in [
        (with_channels(384), ["FLUX.1-Fill", "image conditions are not supported"]),
        (with_channels(128), ["FLUX.1-Canny and -Depth", "image conditions are not supported"]),
        (chroma, ["Chroma", "a network of their own, is not supported"]),
    ] {
        let path = sandbox.path("kin.safetensors");
        sparse(&path, &tensors);
        let (text, json) = inspect(&sandbox, &path);
        says(&text, &["does not load: ", words[0], words[1]]);
        assert_eq!(json["loads"], false);
        // Beside a model that has all else.
        let file = path.to_str().unwrap();
        let run = sandbox.run(["plan", "--model", "demo", "--transformer", file]);
        assert_eq!(run.code, 5, "{}", run.stderr);
        says(&run.stderr, &[words[0]]);
    }
}

#[test]
fn gguf_files_are_known() {
    let sandbox = Sandbox::new();
    let (mut tensors, mut end) = (Vec::new(), 0u64);
    let mut places = Vec::new();
    for (name, _, shape) in transformer(false, &|_| Dtype::BF16) {
        let elements = shape.iter().product::<usize>() as u64;
        let is_wide = shape.len() < 2 || !name.contains("blocks.");
        let (kind, bytes) =
            if is_wide { (gguf::F16, 2 * elements) } else { (gguf::Q4_K, elements / 256 * 144) };
        tensors.push((name, shape.iter().rev().map(|size| *size as u64).collect(), kind, Vec::new()));
        places.push(end);
        end = (end + bytes).next_multiple_of(32);
    }
    let path = sandbox.path("flux1-schnell-Q4_K_S.gguf");
    let bytes = gguf::file(&gguf::Header::default(), &tensors, |i, _| places[i]);
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(bytes.len() as u64 + end).unwrap();
    let (text, json) = inspect(&sandbox, &path);
    says(&text, &["GGUF 3", "FLUX.1-schnell", "Q4_K", "F16", "--only tokenizers"]);
    assert_eq!(json["container"], "GGUF 3");
    let t5 = sandbox.path("t5-00001-of-00002.gguf");
    for (name, bytes) in
        gguf::divided("t5", &[("token_embd.weight".into(), vec![4], gguf::F32, vec![0; 16])], 2)
    {
        std::fs::write(sandbox.path(&name), bytes).unwrap();
    }
    assert_eq!(inspect(&sandbox, &t5).1["container"], "GGUF 3 in 2 files");
    let other = sandbox.path("llama.gguf");
    let mut header = gguf::Header::default();
    header.metadata[0].2 = gguf::string("llama");
    std::fs::write(
        &other,
        gguf::sound(&header, &[("output.weight".into(), vec![4], gguf::F32, vec![0; 16])]),
    )
    .unwrap();
    let (text, _) = inspect(&sandbox, &other);
    says(&text, &["does not load: ", "architecture llama"]);
}

/// A pair of factors.
fn pair(stem: &str, ends: [&str; 2], rank: usize, [n, k]: [usize; 2]) -> Listed {
    let [down, up] = ends.map(|end| format!("{stem}{end}"));
    vec![(down, Dtype::BF16, vec![rank, k]), (up, Dtype::BF16, vec![n, rank])]
}

#[test]
fn loras_are_known() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("lora.safetensors");
    let (kohya, peft) = ([".lora_down.weight", ".lora_up.weight"], [".lora_A.weight", ".lora_B.weight"]);
    let (bfl, comfy) = ("double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.0.img_attn.qkv");
    for (stem, ends, n, words) in [
        ("lora_unet_double_blocks_0_img_attn_qkv", kohya, 9216, "kohya's names"),
        ("transformer.transformer_blocks.0.attn.to_q", peft, 3072, "diffusers' names"),
        (comfy, peft, 9216, "Black Forest Labs' names"),
        (bfl, peft, 9216, "Black Forest Labs' names"),
        ("double_blocks.0.processor.qkv_lora1", [".down.weight", ".up.weight"], 9216, "XLabs' names"),
    ] {
        let mut tensors = pair(stem, ends, 16, [n, 3072]);
        sparse(&path, &tensors);
        let (text, json) = inspect(&sandbox, &path);
        let changed = n / 3072;
        let changes = format!("changes {changed} matrices of the transformer\n");
        let loads = "loads: --lora ";
        says(&text, &["a LoRA under", words, "1 matrices and rank 16", &changes, loads, "beside a --model"]);
        let lora = &json["lora"];
        assert_eq!(
            (&lora["kind"], &lora["targets"], &lora["ranks"]),
            (&json!("LoRA"), &json!(1), &json!([16]))
        );
        assert_eq!((&lora["changes"], &json["loads"]), (&json!({"transformer": changed}), &json!(true)));
        assert_eq!(json["warnings"], json!([]));
        // Not of this model's sizes.
        let model = ["inspect", path.to_str().unwrap(), "--model", "demo"];
        let ran = sandbox.run(model);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        says(&ran.stdout, &["a LoRA under", "does not load: tensor", "expected [16, 256]"]);
        // One of dev's loads with a word.
        tensors.extend(pair("lora_unet_guidance_in_in_layer", kohya, 16, [3072, 256]));
        sparse(&path, &tensors);
        if words == "kohya's names" {
            let (text, json) = inspect(&sandbox, &path);
            says(&text, &["2 matrices", "warning: ", "FLUX.1-dev", loads]);
            assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
        }
    }
    for (tensors, words) in [
        (
            vec![("lycoris_x_embedder.lokr_w1".into(), Dtype::F32, vec![4, 4])],
            ["a LoKr under", "LoKr is not supported"],
        ),
        (
            [
                pair("double_blocks.0.img_attn.qkv", peft, 128, [9216, 3072]),
                vec![("double_blocks.0.img_attn.norm.query_norm.scale".into(), Dtype::BF16, vec![128])],
            ]
            .concat(),
            ["a control LoRA, of 1 matrices and rank 128", "control LoRA is not supported"],
        ),
        (pair("lora_unet_img_in", kohya, 513, [3072, 64]), ["and rank 513", "expected 1 to 512"]),
        (pair("lora_unet_img_in", kohya, 4, [3072, 65]), ["and rank 4", "FLUX.1-schnell, see --model"]),
    ] {
        sparse(&path, &tensors);
        let (text, json) = inspect(&sandbox, &path);
        says(&text, &["does not load: ", words[0], words[1]]);
        assert_eq!((&json["loads"], &json["lora"]["changes"]), (&json!(false), &json!({})));
    }
}

#[test]
fn folders_and_what_is_no_model_are_known() {
    let sandbox = Sandbox::new();
    let dir = command::copy_of_demo();
    let (text, json) = inspect(&sandbox, dir.path());
    says(&text, &["a folder in the diffusers layout", "NF4", "loads: --model", "vae"]);
    assert_eq!((json["parts"].as_array().unwrap().len(), &json["loads"]), (4, &json!(true)));
    std::fs::remove_file(dir.path().join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let (text, json) = inspect(&sandbox, dir.path());
    says(&text, &["does not load yet", "no weights"]);
    assert_eq!(json["loads"], false);
    let noise = sandbox.path("noise.safetensors");
    sparse(&noise, &vec![("noise".into(), Dtype::F32, vec![4])]);
    says(&inspect(&sandbox, &noise).0, &["a file of one tensor, noise"]);
    let page = sandbox.path("page.gguf");
    std::fs::write(&page, "<!doctype html><title>Sign in</title>").unwrap();
    let ran = sandbox.run(["inspect", page.to_str().unwrap()]);
    assert!(ran.code == 3 && ran.stderr.contains("web page"), "{}", ran.stderr);
    let ran = sandbox.run(["inspect", "nowhere.safetensors"]);
    assert!(ran.code == 7 && ran.stderr.contains("nowhere.safetensors"), "{} {}", ran.code, ran.stderr);
}

/// A plan needs the headers of files and the configs of a model: dev's transformer on what schnell's folder has.
#[test]
fn plans_are_of_the_files_that_are_named() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("flux1-dev.safetensors");
    sparse(&file, &transformer(true, &|_| Dtype::BF16));
    let configs = command::schnell_configs();
    let plan = |flag: &str| {
        let name = file.to_str().unwrap();
        let base = configs.path().to_str().unwrap();
        let more = if flag == "--model" { vec![] } else { vec!["--model", base] };
        let ran = sandbox.run([&["plan", flag, name, "--json"][..], &more].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    };
    let beside = plan("--transformer");
    let schnell = sandbox.run(["plan", "--model", configs.path().to_str().unwrap(), "--json"]).stdout;
    let shape = |text: &str| serde_json::from_str::<Value>(text).unwrap()["shape"].clone();
    assert_eq!((&shape(&beside)["steps"], &shape(&schnell)["steps"]), (&json!(28), &json!(4)));
    assert_eq!(shape(&beside)["t5_length"], 512);
    let model = sandbox.path("home/hub/models--black-forest-labs--FLUX.1-schnell");
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "abc").unwrap();
    golden::copy_tree(configs.path(), &model.join("snapshots/abc"));
    assert_eq!(plan("--model"), beside);
}

/// The bundled model's parts in one file, and its tokenizers where those of FLUX.1-schnell would be.
#[test]
fn one_file_is_a_model_with_tokenizers_from_the_cache() {
    let sandbox = Sandbox::new();
    let dir = command::copy_of_demo();
    let file = sandbox.path("all.safetensors");
    let name = |path: &PathBuf| path.to_str().unwrap().to_string();
    let mut all =
        prefixed("model.diffusion_model.", checkpoint::bfl(&stored(dir.path(), Part::Transformer), 1, 4));
    all.extend(prefixed("vae.", bfl_vae(&stored(dir.path(), Part::Vae), 4)));
    all.extend(prefixed("text_encoders.clip_l.transformer.text_model.", stored(dir.path(), Part::Clip)));
    all.extend(prefixed("text_encoders.t5xxl.transformer.", stored(dir.path(), Part::T5)));
    save(&file, &all);
    let draw = |output: &str, flag: &str| sandbox.run(quick(&[flag, &name(&file), "--output", output]));
    let refused = draw("a.png", "--model");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    says(&refused.stderr, &["--only tokenizers", "--model", "--transformer"]);
    let model = sandbox.path("home/hub/models--black-forest-labs--FLUX.1-schnell");
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "abc").unwrap();
    std::fs::create_dir_all(model.join("snapshots")).unwrap();
    golden::copy_tree(dir.path(), &model.join("snapshots/abc"));
    for weights in [
        "transformer/diffusion_pytorch_model",
        "text_encoder/model",
        "text_encoder_2/model",
        "vae/diffusion_pytorch_model",
    ] {
        std::fs::remove_file(model.join("snapshots/abc").join(format!("{weights}.safetensors"))).unwrap();
    }
    for (output, flag) in [("model.png", "--model"), ("transformer.png", "--transformer")] {
        let drawn = draw(output, flag);
        assert_eq!(drawn.code, 0, "{}", drawn.stderr);
        // What its tensors make of it is said.
        let said = format!(
            "{}: a FLUX transformer of another size: 1 double and 4 single blocks of width 256",
            name(&file)
        );
        assert_eq!(drawn.stderr.matches(&said).count(), 1, "{}", drawn.stderr);
        assert!(!drawn.stderr.contains('\u{1b}'), "colors for no terminal: {}", drawn.stderr);
    }
    assert_eq!(sandbox.run(quick(&["--output", "demo.png"])).code, 0);
    let want = pixels(&sandbox.path("demo.png")).1;
    assert!(
        pixels(&sandbox.path("model.png")).1 == want && pixels(&sandbox.path("transformer.png")).1 == want
    );
    let (text, _) = inspect(&sandbox, &file);
    says(&text, &["transformer", "t5", "clip", "vae", "NF4"]);
    // A VAE is no model.
    let vae = sandbox.path("ae.safetensors");
    save(&vae, &bfl_vae(&stored(dir.path(), Part::Vae), 4));
    let refused = sandbox.run(quick(&["--model", &name(&vae), "--output", "b.png"]));
    assert!(
        refused.code == 3 && refused.stderr.contains("no transformer; name it beside a model, with --vae"),
        "{}",
        refused.stderr
    );
}
