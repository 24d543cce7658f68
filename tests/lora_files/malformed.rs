//! What is wrong with a LoRA file, each way by itself: one typed error that names the tensor, no panic, a message of one screen,
//! and no more memory than the file is worth.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::*;

const PROJ: &str = "lora_unet_double_blocks_0_img_attn_proj";
const QKV: &str = "lora_unet_double_blocks_0_img_attn_qkv";

/// Which error.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Weights,
    Unsupported,
    Io,
}
use Kind::{Io, Unsupported, Weights};

fn kind(error: &Error) -> Option<Kind> {
    match error {
        Error::Weights { .. } => Some(Weights),
        Error::Unsupported(_) => Some(Unsupported),
        Error::Io { .. } => Some(Io),
        _ => None,
    }
}

/// A sound file of two modules.
fn sound(config: &PipelineConfig) -> Tensors {
    let mut tensors = written(&modules(config), config, &styles()[0].1);
    tensors.retain(|name, _| name.starts_with(PROJ) || name.starts_with(QKV));
    assert_eq!(tensors.len(), 6);
    tensors
}

#[track_caller]
fn refused(what: &str, path: &Path, config: &PipelineConfig, (expected, words): (Kind, &[&str])) {
    let error = match Lora::open(path, config) {
        Ok(lora) => panic!("{what}: read, with {:?}", lora.warnings()),
        Err(error) => error,
    };
    assert_eq!(kind(&error), Some(expected), "{what}: {error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{what}: {text} does not say {word:?}");
    }
    assert!(text.contains("lora.safetensors"), "{what}: {text} does not name the file");
    assert!(text.chars().count() < 2500 && !text.contains('\u{1b}'), "{what}: {text}");
}

type Edit = Box<dyn Fn(&mut Tensors)>;

/// With another tensor, or another in place of one.
fn with(name: &str, dtype: Dtype, shape: &[usize], value: u8) -> Edit {
    let (name, shape) = (name.to_string(), shape.to_vec());
    Box::new(move |tensors| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        tensors.insert(name.clone(), (dtype, shape.clone(), vec![value; bytes]));
    })
}

fn with_alpha(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Edit {
    let shape = shape.to_vec();
    Box::new(move |tensors| {
        tensors.insert(format!("{PROJ}.alpha"), (dtype, shape.clone(), bytes.clone()));
    })
}

fn without(name: &str) -> Edit {
    let name = name.to_string();
    Box::new(move |tensors| drop(tensors.remove(&name).unwrap()))
}

fn instead(names: &[&str]) -> Edit {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    Box::new(move |tensors| {
        tensors.clear();
        for name in &names {
            tensors.insert(name.clone(), (Dtype::F32, vec![1, 1], le(&[1f32])));
        }
    })
}

/// Shapes, halves and alphas that do not fit.
fn contradictions(d: usize) -> Vec<(&'static str, Edit, Kind, Vec<String>)> {
    let name = |end: &str| format!("{PROJ}.{end}");
    let (down, up, alpha) = (name("lora_down.weight"), name("lora_up.weight"), name("alpha"));
    let qkv_up = format!("{QKV}.lora_up.weight");
    let rank = 4;
    let f32s = |name: &str, shape: &[usize]| with(name, Dtype::F32, shape, 0);
    let says = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    vec![
        ("no up", without(&up), Weights, says(&[&down, "no counterpart up"])),
        ("no down", without(&down), Weights, says(&[&up, "no counterpart down"])),
        ("k too small", f32s(&down, &[rank, d / 2]), Weights, says(&[&down, "expected"])),
        ("k too large", f32s(&down, &[rank, d + 1]), Weights, says(&[&down, "expected"])),
        ("n too small", f32s(&up, &[d - 1, rank]), Weights, says(&[&up, "expected"])),
        ("n of the fused", f32s(&up, &[3 * d, rank]), Weights, says(&[&up, "expected"])),
        ("fused n of one", f32s(&qkv_up, &[d, 1]), Weights, says(&[&qkv_up, "expected"])),
        ("fused n that is uneven", f32s(&qkv_up, &[3 * d + 1, 1]), Weights, says(&[&qkv_up, "expected"])),
        ("ranks that differ", f32s(&up, &[d, rank + 1]), Weights, says(&[&up, "expected"])),
        ("halves that are swapped", f32s(&down, &[d, rank]), Weights, says(&[&down])),
        ("rank 0", f32s(&down, &[0, d]), Weights, says(&[&down, "rank 0", "1 to 512"])),
        ("rank 513", f32s(&down, &[513, d]), Weights, says(&[&down, "rank 513", "1 to 512"])),
        ("a huge rank", f32s(&down, &[1 << 20, 1]), Weights, says(&[&down, "rank 1048576"])),
        ("a vector", f32s(&down, &[d]), Weights, says(&[&down, "expected a matrix"])),
        ("a number", f32s(&down, &[]), Weights, says(&[&down, "expected a matrix"])),
        ("three sizes", f32s(&up, &[d, rank, 1]), Weights, says(&[&up, "expected a matrix"])),
        ("a convolution of 3x3", f32s(&down, &[rank, 4, 3, 3]), Weights, says(&[&down, "expected a matrix"])),
        ("nothing", f32s(&down, &[rank, 0]), Weights, says(&[&down, "expected"])),
        ("fp8", with(&down, Dtype::F8_E4M3, &[rank, d], 0), Weights, says(&[&down, "F8_E4M3"])),
        ("i8", with(&up, Dtype::I8, &[d, rank], 0), Weights, says(&[&up, "I8"])),
        ("i64", with(&up, Dtype::I64, &[d, rank], 0), Weights, says(&[&up, "I64"])),
        ("bool", with(&up, Dtype::BOOL, &[d, rank], 0), Weights, says(&[&up, "BOOL"])),
        ("f64", with(&down, Dtype::F64, &[rank, d], 0), Weights, says(&[&down, "F64"])),
        (
            "two alphas",
            with_alpha(Dtype::F32, &[2], le(&[1f32, 1.0])),
            Weights,
            says(&[&alpha, "one number"]),
        ),
        ("no alpha", with_alpha(Dtype::F32, &[0], vec![]), Weights, says(&[&alpha, "one number"])),
        ("alpha NaN", with_alpha(Dtype::F32, &[], le(&[f32::NAN])), Weights, says(&[&alpha, "NaN"])),
        ("alpha infinite", with_alpha(Dtype::BF16, &[1], vec![0x80, 0x7f]), Weights, says(&[&alpha, "inf"])),
        ("alpha beyond f32", with_alpha(Dtype::F64, &[], le(&[1e300])), Weights, says(&["beyond f32"])),
        ("alpha in fp8", with_alpha(Dtype::F8_E5M2, &[], vec![0x3c]), Weights, says(&[&alpha, "F8_E5M2"])),
        ("alpha true", with_alpha(Dtype::BOOL, &[], vec![1]), Weights, says(&[&alpha, "BOOL"])),
        (
            "a module under two names",
            with("diffusion_model.double_blocks.0.img_attn.proj.lora_down.weight", Dtype::F32, &[4, d], 0),
            Weights,
            says(&["are of one module", PROJ]),
        ),
        (
            "two modules of one matrix",
            Box::new(move |tensors| {
                let module = "lora_transformer_transformer_blocks_0_attn_to_k";
                for (end, shape) in KOHYA.iter().zip([[1, d], [d, 1]]) {
                    with(&format!("{module}{end}"), Dtype::F32, &shape, 0)(tensors);
                }
                // Not the second copy that it would be under kohya's prefix.
                let comfy = "diffusion_model.double_blocks.0.img_attn.qkv";
                for end in [".lora_down.weight", ".lora_up.weight", ".alpha"] {
                    let tensor = tensors.remove(&format!("{QKV}{end}")).unwrap();
                    tensors.insert(format!("{comfy}{end}"), tensor);
                    tensors.remove(&format!("{PROJ}{end}")).unwrap();
                }
            }),
            Weights,
            says(&["both change transformer_blocks.0.attn.to_k", "diffusion_model"]),
        ),
        (
            "two downs",
            with(&name("lora_A.weight"), Dtype::F32, &[4, d], 0),
            Weights,
            says(&["are of one module"]),
        ),
    ]
}

/// Changes that are not a LoRA's, and files of others.
fn other_kinds(config: &PipelineConfig) -> Vec<(&'static str, Edit, Kind, Vec<String>)> {
    let says = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let one = |name: &str| with(name, Dtype::F32, &[1], 1);
    let channels = 2 * config.flux.in_channels;
    let control = "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale";
    let table = "lora_te1_text_model_embeddings_token_embedding";
    let embedding: Edit = Box::new(move |tensors| {
        for end in KOHYA {
            tensors.insert(format!("{table}{end}"), (Dtype::F32, vec![1, 1], le(&[1f32])));
        }
    });
    vec![
        ("LoKr", one(&format!("{PROJ}.lokr_w1")), Unsupported, says(&["LoKr", PROJ])),
        ("LoKr alone", instead(&["lycoris_a.lokr_w1", "lycoris_a.lokr_w2"]), Unsupported, says(&["LoKr"])),
        ("LoHa", instead(&["lora_unet_a.hada_w1_a", "lora_unet_a.hada_w1_b"]), Unsupported, says(&["LoHa"])),
        ("DoRA", one(&format!("{PROJ}.dora_scale")), Unsupported, says(&["DoRA", PROJ])),
        (
            "DoRA of PEFT",
            one("transformer.x_embedder.lora_magnitude_vector.weight"),
            Unsupported,
            says(&["DoRA", "x_embedder"]),
        ),
        ("OFT", instead(&["lora_unet_a.oft_blocks"]), Unsupported, says(&["OFT"])),
        ("a middle", one(&format!("{PROJ}.lora_mid.weight")), Unsupported, says(&["LoCon"])),
        ("a control LoRA's norm", one(control), Unsupported, says(&["control LoRA", control])),
        (
            "a control LoRA's channels",
            Box::new(move |tensors| {
                with("lora_unet_img_in.lora_down.weight", Dtype::F32, &[1, channels], 0)(tensors);
                with("lora_unet_img_in.lora_up.weight", Dtype::F32, &[1, 1], 0)(tensors);
            }),
            Unsupported,
            says(&["control LoRA", "img_in"]),
        ),
        ("a bias", one(&format!("{PROJ}.lora_up.bias")), Unsupported, says(&[PROJ, "bias"])),
        (
            "a bias of PEFT",
            one("transformer.proj_out.lora_B.bias"),
            Unsupported,
            says(&["proj_out.lora_B.bias"]),
        ),
        ("diff_b", one(&format!("{QKV}.diff_b")), Unsupported, says(&["qkv.diff_b"])),
        ("diff", with(&format!("{PROJ}.diff"), Dtype::BF16, &[3, 3], 1), Unsupported, says(&["proj.diff"])),
        (
            "diff of a norm",
            one("diffusion_model.single_blocks.3.norm.key_norm.scale.diff"),
            Unsupported,
            says(&["key_norm.scale.diff"]),
        ),
        (
            "a model's own",
            one("diffusion_model.img_in.bias"),
            Unsupported,
            says(&["img_in.bias", "model's own"]),
        ),
        ("embeddings", embedding, Unsupported, says(&[table])),
    ]
}

/// Files that are of another model, or no LoRA's.
fn others_files() -> Vec<(&'static str, Edit, Kind, Vec<String>)> {
    let says = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let sd = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k";
    let of_sd: Edit = Box::new(move |tensors| {
        instead(&[&format!("{sd}.lora_down.weight"), &format!("{sd}.lora_up.weight")])(tensors);
        // As CLIP is in Stable Diffusion, too.
        let clip = "lora_te1_text_model_encoder_layers_0_mlp_fc1";
        let width = 64;
        tensors.insert(format!("{clip}.lora_down.weight"), (Dtype::F32, vec![1, width], vec![0; 4 * width]));
        tensors.insert(format!("{clip}.lora_up.weight"), (Dtype::F32, vec![1, 1], vec![0; 4]));
    });
    let t5 = ["lora_te3_a.lora_down.weight", "lora_te3_a.lora_up.weight"];
    let long = format!("{}{}", "x".repeat(4000), "\u{1b}[2J.lora_A.weight");
    let long_up = long.replace("lora_A", "lora_B");
    vec![
        ("of Stable Diffusion", of_sd, Weights, says(&["Stable Diffusion", "down_blocks_1"])),
        ("of T5 alone", instead(&t5), Weights, says(&["changes nothing of this model", "T5"])),
        (
            "of no family",
            instead(&[&long, &long_up]),
            Weights,
            says(&["names that are not known here", "xxx"]),
        ),
        ("no pairs", instead(&["a", "b"]), Weights, says(&["no LoRA", "no pairs of factors"])),
        (
            "a transformer",
            instead(&["double_blocks.0.img_attn.norm.query_norm.scale"]),
            Weights,
            says(&["transformer", "--transformer"]),
        ),
        ("an empty file", instead(&[]), Weights, says(&["no LoRA"])),
    ]
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let path = dir.path().join("lora.safetensors");
    let base = sound(&config);
    save(&path, &base, None);
    assert_eq!(Lora::open(&path, &config).unwrap().factors().len(), 4);
    let cases: Vec<_> = contradictions(config.flux.width())
        .into_iter()
        .chain(other_kinds(&config))
        .chain(others_files())
        .collect();
    assert!(cases.len() > 50, "{}", cases.len());
    for (what, edit, kind, words) in cases {
        let mut tensors = base.clone();
        edit(&mut tensors);
        save(&path, &tensors, None);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused(what, &path, &config, (kind, &words));
    }
}

/// A file of this header, and these bytes behind it.
fn raw(path: &Path, header: &str, data: &[u8]) {
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    std::fs::write(path, bytes).unwrap();
}

/// A pair by name, of two numbers each, where the header says.
fn entries(offsets: [[i64; 2]; 2], shape: &Value) -> String {
    let entry =
        |[begin, end]: [i64; 2]| json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
    let [down, up] = KOHYA.map(|end| format!("{PROJ}{end}"));
    json!({down: entry(offsets[0]), up: entry(offsets[1])}).to_string()
}

#[test]
fn damaged_containers_are_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let path = dir.path().join("lora.safetensors");
    save(&path, &sound(&config), None);
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        refused(&format!("{len} bytes"), &path, &config, (Weights, &[]));
    }
    std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    refused("a byte more", &path, &config, (Weights, &["after the tensors"]));
    for (what, header, words) in [
        ("offsets that overlap", entries([[0, 8], [4, 12]], &json!([2])), "malformed"),
        ("a hole", entries([[0, 8], [12, 20]], &json!([2])), "malformed"),
        ("offsets beyond the file", entries([[0, 8], [8, 1 << 40]], &json!([2])), "malformed"),
        ("an end before the begin", entries([[8, 0], [8, 16]], &json!([2])), "malformed"),
        ("below zero", entries([[-8, 0], [0, 8]], &json!([2])), "malformed"),
        ("sizes that overflow", entries([[0, 8], [8, 16]], &json!([1u64 << 40, 1u64 << 40])), "malformed"),
        ("a size below zero", entries([[0, 8], [8, 16]], &json!([-2])), "malformed"),
        ("no JSON", "{\"a\":".to_string(), "malformed"),
        ("a list", "[]".to_string(), "malformed"),
        ("deep lists", "[".repeat(100_000), "malformed"),
        (
            "another type",
            json!({"a": {"dtype": "F3", "shape": [], "data_offsets": [0, 0]}}).to_string(),
            "malformed",
        ),
    ] {
        raw(&path, &header, &[0; 20]);
        refused(what, &path, &config, (Weights, &[words]));
    }
    for (what, bytes, words) in [
        ("GGUF", &b"GGUF\x03\0\0\0\0\0\0\0"[..], "GGUF"),
        ("pickle", b"\x80\x02}q\0.", "PyTorch"),
        ("zip", b"PK\x03\x04\0\0\0\0\0\0", "PyTorch"),
        ("a page", b"<!DOCTYPE html><title>Login</title>", "web page"),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        refused(what, &path, &config, (Weights, &[words]));
    }
    std::fs::remove_file(&path).unwrap();
    refused("nothing", &path, &config, (Io, &[]));
    std::fs::create_dir(&path).unwrap();
    refused("a folder", &path, &config, (Weights, &[]));
}

/// Bytes of the header at random: it opens or is refused, and of what opens, all can be read.
#[test]
fn headers_at_random_neither_panic_nor_lie() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let path = dir.path().join("lora.safetensors");
    save(&path, &sound(&config), None);
    let whole = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (mut rng, mut opened) = (Rng(4), 0);
    for _ in 0..2000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.bits() % 3 {
            let at = 8 + rng.bits() as usize % header;
            let other = 8 + rng.bits() as usize % header;
            match rng.bits() % 3 {
                0 => bytes[at] = b"0123456789_.ABabdnowup\"[],:-"[rng.bits() as usize % 28],
                1 => bytes[at] ^= 1 << (rng.bits() % 8),
                _ => bytes.swap(at, other),
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match Lora::open(&path, &config) {
            Ok(lora) => {
                opened += 1;
                let changed = read(&lora).len();
                assert!(changed == lora.factors().len() && changed > 0);
                assert!(changed == 4 || !lora.warnings().is_empty(), "{changed} changes without a word");
            }
            Err(error) => assert!(kind(&error).is_some_and(|kind| kind != Io), "{error}"),
        }
    }
    assert!((20..1980).contains(&opened), "{opened} of 2000 opened");
}

/// A file of `count` pairs that are no model's, each of one number.
fn many(path: &Path, count: usize) {
    let mut header = String::from("{");
    for i in 0..count {
        let comma = if i == 0 { "" } else { "," };
        for (end, at) in KOHYA.iter().zip([8 * i, 8 * i + 4]) {
            let comma = if *end == KOHYA[0] { comma } else { "," };
            header += &format!(
                "{comma}\"lora_unet_{i}_\u{e9}{end}\":{{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[{at},{}]}}",
                at + 4
            );
        }
    }
    raw(path, &(header + "}"), &vec![0; 8 * count]);
}

/// Hundreds of thousands of names cost no more than so many megabytes, whatever is wrong with them.
#[test]
fn a_file_of_very_many_tensors_is_bounded() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let path: PathBuf = dir.path().join("lora.safetensors");
    many(&path, 131_073);
    refused("too many", &path, &config, (Weights, &["more than 262144 names"]));
    many(&path, 130_000);
    refused("very many", &path, &config, (Weights, &["of 130000 matrices", "and 129997 more"]));
    // The same in a process of its own.
    let schnell = env!("CARGO_BIN_EXE_schnell");
    let command = format!("ulimit -v 1048576; exec '{schnell}' inspect lora.safetensors --model demo");
    let ran = Command::new("sh").args(["-c", &command]).current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success() && said.contains("does not load"), "{said}{:?}", ran.stderr);
    assert!(said.len() < 4000, "{said}");
}

/// Settings in the metadata cannot be what they like, either.
#[test]
fn a_setting_of_megabytes_is_read_as_one() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let path = dir.path().join("lora.safetensors");
    let names: Vec<String> = (0..300_000).map(|i| format!("\"{i}\":1")).collect();
    let text = format!("{{\"transformer.alpha_pattern\":{{{}}}}}", names.join(","));
    save(&path, &sound(&config), Some(HashMap::from([("lora_adapter_metadata".to_string(), text)])));
    refused("a pattern", &path, &config, (Weights, &["lora_adapter_metadata", "more than 262144 names"]));
}
