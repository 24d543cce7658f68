//! Model files that are damaged or contradict each other in ways that a format's own rules allow: each is refused, or said,
//! before it becomes another picture.

#[path = "common/command.rs"]
mod command;
#[path = "common/golden.rs"]
mod golden;

use std::path::Path;

use command::*;
use serde_json::{Value, json};

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const T5: &str = "text_encoder_2/model.safetensors";
const CLIP: &str = "text_encoder/model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// The header of a safetensors file, as it stands there and as JSON, and the data behind it.
fn split(file: &Path) -> (Value, Vec<u8>) {
    let all = bytes(file);
    let end = 8 + u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&all[8..end]).unwrap(), all[end..].to_vec())
}

fn write(file: &Path, header: &str, data: &[u8]) {
    let mut all = (header.len() as u64).to_le_bytes().to_vec();
    all.extend_from_slice(header.as_bytes());
    all.extend_from_slice(data);
    std::fs::write(file, all).unwrap();
}

/// Overwrites the first bytes of a tensor.
fn poke(dir: &Path, file: &str, tensor: &str, value: &[u8]) {
    let path = dir.join(file);
    let (header, mut data) = split(&path);
    let begin = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    data[begin..begin + value.len()].copy_from_slice(value);
    write(&path, &header.to_string(), &data);
}

/// Changes a config file.
fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut json: Value = serde_json::from_slice(&bytes(&path)).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

fn refuses(sandbox: &Sandbox, dir: &Path, code: i32, words: &[&str]) {
    sandbox.refuses(quick(&["--model", text(dir)]), code, words);
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_tensor_wherever_they_go() {
    let sandbox = Sandbox::new();
    let (nan, infinity) = (0x7fc0u16.to_le_bytes(), 0xff80u16.to_le_bytes());
    for (file, tensor, value) in [
        // Quantized on the device; a vector; a table that the host reads by rows, and one that it reads whole.
        (T5, "encoder.block.0.layer.0.SelfAttention.q.weight", nan),
        (T5, "encoder.final_layer_norm.weight", infinity),
        (T5, "shared.weight", nan),
        (T5, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", infinity),
        // Kept as bf16: a matrix and a convolution.
        (CLIP, "text_model.encoder.layers.0.mlp.fc1.weight", nan),
        (CLIP, "text_model.embeddings.position_embedding.weight", nan),
        (VAE, "decoder.conv_in.weight", infinity),
        (VAE, "decoder.conv_norm_out.bias", nan),
    ] {
        let dir = copy_of_demo();
        let (header, _) = split(&dir.path().join(file));
        let stored = [tensor, tensor.strip_prefix("text_model.").unwrap_or(tensor)]
            .into_iter()
            .find(|name| !header[*name].is_null())
            .unwrap_or_else(|| panic!("{file} has no {tensor}"));
        assert_eq!(header[stored]["dtype"], "BF16", "{tensor}");
        poke(dir.path(), file, stored, &value);
        refuses(&sandbox, dir.path(), 3, &[file, stored, "not finite"]);
    }
}

/// What an interrupted download into a file of its full size leaves.
#[test]
fn weights_that_are_all_zero_are_refused_by_name() {
    let sandbox = Sandbox::new();
    for file in [VAE, T5] {
        let dir = copy_of_demo();
        let path = dir.path().join(file);
        let mut data = bytes(&path);
        let half = data.len() / 2;
        data[half..].fill(0);
        std::fs::write(&path, data).unwrap();
        refuses(&sandbox, dir.path(), 3, &[file, "every number of tensor", "is 0: download the file again"]);
    }
}

#[test]
fn scales_below_zero_are_refused() {
    let sandbox = Sandbox::new();
    let dir = copy_of_demo();
    poke(dir.path(), TRANSFORMER, "context_embedder.weight.absmax", &(-1f32).to_le_bytes());
    refuses(&sandbox, dir.path(), 3, &[TRANSFORMER, "context_embedder.weight.absmax", "-1", "no quantizer"]);
}

#[test]
fn weights_that_nothing_uses_are_said() {
    let sandbox = Sandbox::new();
    let smaller = [
        ("transformer/config.json", "num_single_layers", "single_transformer_blocks.", "smaller transformer"),
        ("text_encoder/config.json", "num_hidden_layers", "encoder.layers.", "smaller clip"),
        ("text_encoder_2/config.json", "num_layers", "encoder.block.", "smaller t5"),
    ];
    for (file, field, name, words) in smaller {
        let dir = copy_of_demo();
        edit(dir.path(), file, |json| json[field] = json!(json[field].as_u64().unwrap() - 1));
        let ran = sandbox.run(quick(&["--model", text(dir.path())]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let warning = ran.stderr.lines().find(|line| line.starts_with("warning: ")).expect(field);
        assert!(warning.contains(name) && warning.contains(words), "{warning}");
    }
    let dir = copy_of_demo();
    edit(dir.path(), "vae/config.json", |json| json["mid_block_add_attention"] = json!(false));
    let ran = sandbox.run(quick(&["--model", text(dir.path())]));
    assert!(
        ran.stderr.contains("warning: ") && ran.stderr.contains("mid_block.attentions"),
        "{}",
        ran.stderr
    );

    // What real files have beside the networks is no matter.
    let dir = copy_of_demo();
    let extra = |file: &str, names: &[&str]| {
        let path = dir.path().join(file);
        let (mut header, mut data) = split(&path);
        for name in names.iter().copied() {
            if header[name].is_null() {
                let range = [data.len(), data.len() + 4];
                header[name] = json!({"dtype": "F32", "shape": [1], "data_offsets": range});
                data.extend_from_slice(&[0; 4]);
            }
        }
        header["empty"] = json!({"dtype": "F32", "shape": [0, 4], "data_offsets": [data.len(), data.len()]});
        write(&path, &header.to_string(), &data);
    };
    extra(T5, &["lm_head.weight", "decoder.block.0.layer.0.layer_norm.weight"]);
    extra(CLIP, &["logit_scale", "text_projection.weight", "text_model.embeddings.position_ids"]);
    extra(VAE, &["encoder.conv_in.bias", "quant_conv.weight"]);
    let ran = sandbox.run(quick(&["--model", text(dir.path())]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
}

#[test]
fn headers_out_of_proportion_and_names_that_stand_twice_are_refused() {
    let sandbox = Sandbox::new();
    let dir = copy_of_demo();
    let path = dir.path().join(TRANSFORMER);
    let (header, data) = split(&path);
    let name = "x_embedder.bias";
    let entry = format!("{name:?}:{}", header[name]);
    let text_of_header = header.to_string();
    let twice = format!("{},{entry}}}", text_of_header.strip_suffix('}').unwrap());
    write(&path, &twice, &data);
    refuses(&sandbox, dir.path(), 3, &[TRANSFORMER, name, "twice"]);

    let ranks =
        format!(r#"{{"a":{{"dtype":"F32","shape":[{}0],"data_offsets":[0,0]}}}}"#, "1,".repeat(1 << 20));
    write(&path, &ranks, &[]);
    refuses(&sandbox, dir.path(), 3, &[TRANSFORMER, "more than 16 values"]);
    let metadata: Vec<String> = (0..300_000).map(|i| format!("\"{i}\":\"\"")).collect();
    write(&path, &format!("{{\"__metadata__\":{{{}}}}}", metadata.join(",")), &[]);
    refuses(&sandbox, dir.path(), 3, &[TRANSFORMER, "more than 262144 names"]);

    for file in ["model_index.json", "vae/config.json"] {
        let dir = copy_of_demo();
        let path = dir.path().join(file);
        let stored = String::from_utf8(bytes(&path)).unwrap();
        std::fs::write(&path, stored.replacen('{', "{\"_class_name\": \"x\", ", 1)).unwrap();
        refuses(&sandbox, dir.path(), 3, &[file, "_class_name", "twice"]);
    }
}

#[test]
fn numbers_that_no_real_model_has_are_refused_as_what_they_become() {
    let sandbox = Sandbox::new();
    for (file, field, values) in [
        ("vae/config.json", "scaling_factor", [json!(1e-40), json!(1e39)]),
        ("vae/config.json", "shift_factor", [json!(1e39), json!(-1e5)]),
        ("vae/config.json", "layers_per_block", [json!(100_000), json!(1 << 20)]),
        ("transformer/config.json", "num_layers", [json!(100_000), json!(1 << 20)]),
        ("transformer/config.json", "num_attention_heads", [json!(1 << 20), json!(513)]),
        ("text_encoder_2/config.json", "num_layers", [json!(100_000), json!(0)]),
        ("text_encoder_2/config.json", "layer_norm_epsilon", [json!(1e-40), json!(2)]),
        ("scheduler/scheduler_config.json", "shift", [json!(1e39), json!(1e-40)]),
    ] {
        for value in values {
            let dir = copy_of_demo();
            edit(dir.path(), file, |json| json[field] = value.clone());
            refuses(&sandbox, dir.path(), 3, &[file, field, "expected"]);
        }
    }
}

#[test]
fn of_two_sets_of_weights_the_library_that_wrote_them_decides() {
    let sandbox = Sandbox::new();
    let draw = |dir: &Path| {
        let ran = sandbox.run(quick(&["--model", text(dir), "--no-metadata"]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (bytes(&sandbox.path("out.png")), ran.stderr)
    };
    let (want, _) = draw(copy_of_demo().path());
    for (file, single_counts) in [(TRANSFORMER, false), (VAE, false), (T5, true), (CLIP, true)] {
        let dir = copy_of_demo();
        let path = dir.path().join(file);
        let stem = file.strip_suffix(".safetensors").unwrap();
        let index = dir.path().join(format!("{stem}.safetensors.index.json"));
        let shard = path.with_file_name("all-of-it.safetensors");
        let (header, mut data) = split(&path);
        std::fs::copy(&path, &shard).unwrap();
        let map = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
        let map: serde_json::Map<String, Value> =
            map.map(|n| (n.clone(), json!("all-of-it.safetensors"))).collect();
        std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        // What must not count is another model.
        data.fill(0);
        write(if single_counts { &shard } else { &path }, &header.to_string(), &data);
        let (got, said) = draw(dir.path());
        assert!(got == want, "{file}: another picture");
        assert!(said.contains("warning: ") && said.contains("is ignored"), "{said}");
    }
    for (file, part) in [(TRANSFORMER, "transformer"), (CLIP, "text_encoder")] {
        let dir = copy_of_demo();
        let path = dir.path().join(file);
        let variant = |name: &str| {
            path.with_file_name(
                file.rsplit('/').next().unwrap().replace(".safetensors", &format!(".{name}.safetensors")),
            )
        };
        std::fs::rename(&path, variant("fp16")).unwrap();
        let (got, said) = draw(dir.path());
        assert!(got == want, "{file}: another picture");
        assert!(said.contains("warning: ") && said.contains(".fp16.safetensors is used"), "{said}");
        std::fs::copy(variant("fp16"), variant("bf16")).unwrap();
        refuses(&sandbox, dir.path(), 3, &[part, ".bf16.safetensors", ".fp16.safetensors", "leave one"]);
    }
}
