//! Models under other names, written from the bundled one: the names here are those of the code that reads or writes such files,
//! apart from the tables of the crate.

#![allow(dead_code)] // every test file uses a part of it

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use safetensors::tensor::TensorView;
use schnell::weights::layouts::diffusers;
use schnell::weights::{Dtype, Part};

/// Tensors by name: type, shape, bytes.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn le<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

pub fn save(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The bundled model as it is, and with its transformer in bf16.
pub fn demo(is_wide: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    schnell::demo::write(dir.path()).unwrap();
    if is_wide {
        let mut tensors = Tensors::new();
        let model = schnell::Model::open(dir.path()).unwrap();
        for needed in Part::Transformer.needed(model.config()).unwrap() {
            let source = schnell::weights::Source::open(dir.path(), model.config()).unwrap();
            let values = source.tensor(Part::Transformer, &needed.name).unwrap().read_f32().unwrap();
            let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            tensors.insert(needed.name, (Dtype::BF16, needed.shape, le(&values)));
        }
        save(&dir.path().join("transformer/diffusion_pytorch_model.safetensors"), &tensors);
        let path = dir.path().join("transformer/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().remove("quantization_config").unwrap();
        std::fs::write(path, config.to_string()).unwrap();
    }
    dir
}

/// What a folder of diffusers holds of a part, byte for byte.
pub fn stored(dir: &Path, part: Part) -> Tensors {
    let component = diffusers::open(dir, part).unwrap();
    let read = |info: &schnell::weights::TensorInfo| {
        let mut bytes = vec![0; info.bytes as usize];
        info.read_at(0, &mut bytes).unwrap();
        (info.name.clone(), (info.dtype, info.shape.clone(), bytes))
    };
    component.iter().map(read).collect()
}

/// As [`stored`], with other numbers in place of those.
pub fn converted(tensors: &Tensors, convert: impl Fn(&str, &[f32]) -> (Dtype, Vec<u8>)) -> Tensors {
    let of = |name: &String, (dtype, shape, bytes): &(Dtype, Vec<usize>, Vec<u8>)| {
        let mut values = vec![0.0; shape.iter().product()];
        schnell::weights::convert::to_f32(*dtype, bytes, &mut values).unwrap();
        let (dtype, bytes) = convert(name, &values);
        (name.clone(), (dtype, shape.clone(), bytes))
    };
    tensors.iter().map(|(name, tensor)| of(name, tensor)).collect()
}

/// `tensors` behind a prefix.
pub fn prefixed(prefix: &str, tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
}

/// Every name of Black Forest Labs' transformer, and what diffusers makes of it, in the order of rows. The names of Linears and
/// norms are those that diffusers' `convert_flux_to_diffusers.py` reads.
pub fn bfl_names(double: usize, single: usize, guidance: bool) -> Vec<(String, Vec<String>)> {
    let mut names = Vec::new();
    let mut add = |theirs: String, ours: &[String]| {
        for kind in ["weight", "bias"] {
            let ours = ours.iter().map(|name| format!("{name}.{kind}")).collect();
            names.push((format!("{theirs}.{kind}"), ours));
        }
    };
    let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    add("img_in".into(), &owned(&["x_embedder"]));
    add("txt_in".into(), &owned(&["context_embedder"]));
    let embedders = [("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")];
    for (theirs, ours) in &embedders[..if guidance { 3 } else { 2 }] {
        for (a, b) in [("in_layer", "linear_1"), ("out_layer", "linear_2")] {
            add(format!("{theirs}.{a}"), &[format!("time_text_embed.{ours}_embedder.{b}")]);
        }
    }
    add("final_layer.adaLN_modulation.1".into(), &owned(&["norm_out.linear"]));
    add("final_layer.linear".into(), &owned(&["proj_out"]));
    for block in 0..double {
        for (side, context, qkv, out, ff) in [
            ("img", "norm1", ["to_q", "to_k", "to_v"], "to_out.0", "ff"),
            ("txt", "norm1_context", ["add_q_proj", "add_k_proj", "add_v_proj"], "to_add_out", "ff_context"),
        ] {
            let at = |rest: String| format!("transformer_blocks.{block}.{rest}");
            let theirs = |rest: &str| format!("double_blocks.{block}.{side}_{rest}");
            add(theirs("mod.lin"), &[at(format!("{context}.linear"))]);
            add(theirs("attn.qkv"), &qkv.map(|name| at(format!("attn.{name}"))));
            add(theirs("attn.proj"), &[at(format!("attn.{out}"))]);
            add(theirs("mlp.0"), &[at(format!("{ff}.net.0.proj"))]);
            add(theirs("mlp.2"), &[at(format!("{ff}.net.2"))]);
        }
    }
    for block in 0..single {
        let at = |rest: &str| format!("single_transformer_blocks.{block}.{rest}");
        let theirs = |rest: &str| format!("single_blocks.{block}.{rest}");
        add(theirs("modulation.lin"), &[at("norm.linear")]);
        add(theirs("linear1"), &[at("attn.to_q"), at("attn.to_k"), at("attn.to_v"), at("proj_mlp")]);
        add(theirs("linear2"), &[at("proj_out")]);
    }
    for block in 0..double {
        for (theirs, ours) in [("img_attn", ""), ("txt_attn", "added_")] {
            for (a, b) in [("query", "q"), ("key", "k")] {
                let name = format!("transformer_blocks.{block}.attn.norm_{ours}{b}.weight");
                names.push((format!("double_blocks.{block}.{theirs}.norm.{a}_norm.scale"), vec![name]));
            }
        }
    }
    for block in 0..single {
        for (a, b) in [("query", "q"), ("key", "k")] {
            let name = format!("single_transformer_blocks.{block}.attn.norm_{b}.weight");
            names.push((format!("single_blocks.{block}.norm.{a}_norm.scale"), vec![name]));
        }
    }
    names
}

const NF4_STATE: &str = ".quant_state.bitsandbytes__nf4";

/// A transformer of diffusers under Black Forest Labs' names: fused, and the halves of the last modulation swapped. Of tensors in
/// NF4 the codes and absmax are.
pub fn bfl(tensors: &Tensors, double: usize, single: usize) -> Tensors {
    let mut made = Tensors::new();
    for (theirs, ours) in bfl_names(double, single, false) {
        let is_swapped = theirs.contains("adaLN");
        let mut fuse = |suffix: &str, rows: bool| {
            let parts: Vec<_> =
                ours.iter().filter_map(|name| tensors.get(&format!("{name}{suffix}"))).collect();
            let Some((dtype, shape, _)) = parts.first() else { return };
            let mut shape = shape.clone();
            let mut bytes: Vec<u8> = parts.iter().flat_map(|(_, _, bytes)| bytes.clone()).collect();
            if rows {
                shape[0] = parts.iter().map(|(_, shape, _)| shape[0]).sum();
                if is_swapped {
                    let half = bytes.len() / 2;
                    bytes.rotate_left(half);
                }
            } else {
                bytes.truncate(parts[0].2.len());
            }
            made.insert(format!("{theirs}{suffix}"), (*dtype, shape, bytes));
        };
        fuse("", true);
        fuse(".absmax", true);
        fuse(".quant_map", false);
        let states: Vec<_> =
            ours.iter().filter_map(|name| tensors.get(&format!("{name}{NF4_STATE}"))).collect();
        if !states.is_empty() {
            let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
            let mut state = read(&states[0].2);
            let rows: u64 =
                states.iter().map(|(_, _, bytes)| read(bytes)["shape"][0].as_u64().unwrap()).sum();
            state["shape"][0] = rows.into();
            let text = state.to_string().into_bytes();
            made.insert(format!("{theirs}{NF4_STATE}"), (Dtype::U8, vec![text.len()], text));
        }
    }
    made
}

/// A decoder of diffusers under Black Forest Labs' names (`flux/modules/autoencoder.py`), with 1x1 convolutions where diffusers
/// has matrices.
pub fn bfl_vae(tensors: &Tensors, levels: usize) -> Tensors {
    let rename = |name: &str| {
        let mut name = name.to_string();
        for level in 0..levels {
            let theirs = format!("decoder.up.{}.", levels - 1 - level);
            name = name.replace(&format!("decoder.up_blocks.{level}.resnets."), &format!("{theirs}block."));
            name = name
                .replace(&format!("decoder.up_blocks.{level}.upsamplers.0."), &format!("{theirs}upsample."));
        }
        for (ours, theirs) in [
            ("conv_shortcut", "nin_shortcut"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("conv_norm_out", "norm_out"),
        ] {
            name = name.replace(ours, theirs);
        }
        name
    };
    let convolution = |name: &str, shape: &[usize]| match shape {
        &[out, inside] if name.contains("attentions") => vec![out, inside, 1, 1],
        shape => shape.to_vec(),
    };
    tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            (rename(name), (*dtype, convolution(name, shape), bytes.clone()))
        })
        .collect()
}
