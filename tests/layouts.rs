//! Layouts of files other than a folder of diffusers: the same numbers under other names, fused, in other orders and types, draw
//! the same bytes.

#[path = "common/checkpoint.rs"]
mod checkpoint;
mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::*;
use common::emulator;
use half::{bf16, f16};
use schnell::config::PipelineConfig;
use schnell::weights::layouts::{Cut, Layout};
use schnell::weights::quantize::nested;
use schnell::weights::{Dtype, Part, nf4};
use schnell::{Error, Model, ModelFolder, Pipeline, Quantize, Request, Shape};

/// Of the bundled model.
const BLOCKS: (usize, usize) = (1, 4);
const LEVELS: usize = 4;

/// A picture and the digest of the weights.
fn draw(folder: &ModelFolder, quantize: Quantize) -> (Vec<u8>, String) {
    let model = Model::open_folder(folder).unwrap();
    assert_eq!(model.warnings(), [] as [String; 0]);
    let shape = Shape::square(64).steps(1).t5_length(32);
    let builder = Pipeline::builder(&model).quantize(quantize).warm_up([shape]).device(&emulator());
    let request = Request::new("a small red star left of a large blue circle").seed(5);
    (builder.load().unwrap().generate(&request).unwrap().rgb, model.digest().unwrap())
}

fn find(dir: &Path) -> ModelFolder {
    ModelFolder::find(dir).unwrap()
}

#[track_caller]
fn refusal<T>(result: schnell::Result<T>, words: &[&str]) -> Error {
    let Err(error) = result else { panic!("no error") };
    for word in words {
        assert!(error.to_string().contains(word), "{error} does not say {word:?}");
    }
    error
}

// ---- names -----------------------------------------------------------------------------------------------

/// Each stored tensor of a published model is made of needed ones, each row of it of exactly one.
#[test]
fn rows_of_fused_tensors_are_shared_out() {
    for (guidance, count) in [(false, 776), (true, 780)] {
        let mut config = PipelineConfig::schnell();
        config.flux.guidance = guidance;
        let needed = Part::Transformer.needed(&config).unwrap();
        let names = bfl_names(config.flux.layers, config.flux.single_layers, guidance);
        assert_eq!(names.len(), count);
        let shapes: BTreeMap<&str, &[usize]> =
            needed.iter().map(|needed| (needed.name.as_str(), &needed.shape[..])).collect();
        let mut used: BTreeMap<String, Vec<(usize, usize, String)>> = BTreeMap::new();
        for needed in &needed {
            let stored = Layout::Bfl.stored(needed);
            assert_eq!(stored.len(), 1, "{}", needed.name);
            let Cut { runs, .. } = stored[0].cut;
            let (unit, _) = stored[0].cut.sizes(needed.shape[0]).unwrap();
            let rows = used.entry(stored[0].name.clone()).or_default();
            rows.extend(runs.iter().map(|(first, len)| (first * unit, len * unit, needed.name.clone())));
        }
        assert_eq!(used.len(), count);
        for (theirs, ours) in names {
            let mut runs = used.remove(&theirs).unwrap_or_else(|| panic!("{theirs} is not used"));
            runs.sort();
            let mut end = 0;
            for (first, len, _) in &runs {
                assert_eq!(*first, end, "{theirs}");
                end += len;
            }
            let rows: usize = ours.iter().map(|name| shapes[name.as_str()][0]).sum();
            assert_eq!(end, rows, "{theirs}");
            if !theirs.contains("adaLN") {
                let order: Vec<&String> = runs.iter().map(|(.., name)| name).collect();
                assert_eq!(order, ours.iter().collect::<Vec<_>>(), "{theirs}");
            }
        }
    }
}

// ---- the same picture ------------------------------------------------------------------------------------

/// Transformer and VAE under Black Forest Labs' names, in bf16: the same bytes, kept as they are and quantized.
#[test]
fn a_picture_from_single_files_has_the_same_bytes() {
    let dir = demo(true);
    let (transformer, vae) = (dir.path().join("flux.safetensors"), dir.path().join("ae.safetensors"));
    let wide = bfl(&stored(dir.path(), Part::Transformer), BLOCKS.0, BLOCKS.1);
    save(&transformer, &wide);
    save(&vae, &bfl_vae(&stored(dir.path(), Part::Vae), LEVELS));
    let files = find(dir.path()).transformer(&transformer).unwrap().vae(&vae).unwrap();
    assert_eq!(files.config().unwrap(), find(dir.path()).config().unwrap());
    for quantize in [Quantize::None, Quantize::Nf4] {
        let (want, digest) = draw(&find(dir.path()), quantize);
        let (got, same) = draw(&files, quantize);
        assert!(want == got, "another picture from single files, {quantize}");
        assert_eq!(digest, same);
    }
    // With the prefix of checkpoints, and without the halves swapped: another picture.
    let mut swapped = wide;
    for kind in ["weight", "bias"] {
        let (_, _, bytes) = swapped.get_mut(&format!("final_layer.adaLN_modulation.1.{kind}")).unwrap();
        let half = bytes.len() / 2;
        bytes.rotate_left(half);
    }
    save(&transformer, &prefixed("model.diffusion_model.", swapped));
    let files = find(dir.path()).transformer(&transformer).unwrap();
    assert!(draw(&files, Quantize::None).0 != draw(&find(dir.path()), Quantize::None).0);
}

/// A transformer whose fused matrices are in NF4 keeps its codes.
#[test]
fn fused_codes_stay_what_they_are() {
    let dir = demo(false);
    let file = dir.path().join("flux-nf4.safetensors");
    save(&file, &bfl(&stored(dir.path(), Part::Transformer), BLOCKS.0, BLOCKS.1));
    let files = find(dir.path()).transformer(&file).unwrap();
    assert_eq!(files.config().unwrap(), find(dir.path()).config().unwrap(), "what is in NF4, too");
    assert!(draw(&files, Quantize::Nf4).0 == draw(&find(dir.path()), Quantize::Nf4).0);
    assert!(draw(&files, Quantize::None).0 == draw(&find(dir.path()), Quantize::None).0);
}

/// As Forge's first checkpoints have it: fused matrices in NF4, whose absmax is in 8 bits with groups that cross what is cut.
#[test]
fn fused_codes_with_quantized_absmax_are_what_they_mean() {
    let dir = demo(true);
    let (file, meant) = (dir.path().join("flux-nf4.safetensors"), dir.path().join("meant.safetensors"));
    let wide = bfl(&stored(dir.path(), Part::Transformer), BLOCKS.0, BLOCKS.1);
    let (mut held, mut means) = (wide.clone(), wide.clone());
    for (name, (_, shape, bytes)) in wide.iter().filter(|(_, (_, shape, _))| shape.len() == 2) {
        let mut values = vec![0.0; shape.iter().product()];
        schnell::weights::convert::to_f32(Dtype::BF16, bytes, &mut values).unwrap();
        let mut nf4 = nf4::quantize(&values);
        let absmax = nested::quantize(&nf4.absmax);
        nf4.absmax = absmax.dequantize();
        let codes = nf4.packed.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let mean = |(i, code): (usize, u8)| nf4::CODE_BOOK[code as usize] * nf4.absmax[i / nf4::BLOCK];
        let mean: Vec<f32> = codes.enumerate().map(mean).collect();
        means.insert(name.clone(), (Dtype::F32, shape.clone(), le(&mean)));
        let state = serde_json::json!({
            "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape,
            "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": absmax.offset,
        });
        let state = state.to_string().into_bytes();
        for (suffix, dtype, shape, bytes) in [
            ("", Dtype::U8, vec![nf4.packed.len(), 1], nf4.packed.clone()),
            (".absmax", Dtype::U8, vec![absmax.codes.len()], absmax.codes.clone()),
            (".quant_map", Dtype::F32, vec![16], le(&nf4::CODE_BOOK)),
            (".nested_absmax", Dtype::F32, vec![absmax.scales.len()], le(&absmax.scales)),
            (".nested_quant_map", Dtype::F32, vec![256], le(nested::map())),
            (".quant_state.bitsandbytes__nf4", Dtype::U8, vec![state.len()], state),
        ] {
            held.insert(format!("{name}{suffix}"), (dtype, shape, bytes));
        }
    }
    save(&file, &held);
    save(&meant, &means);
    let [held, means] = [&file, &meant].map(|file| find(dir.path()).transformer(file).unwrap());
    assert!(draw(&held, Quantize::None).0 == draw(&means, Quantize::None).0);
    // Codes as they are: the same numbers, in products of another kind.
    let [kept, wide] = [draw(&held, Quantize::Nf4).0, draw(&means, Quantize::None).0];
    let far = kept.iter().zip(&wide).filter(|(a, b)| a.abs_diff(**b) > 8).count();
    assert!(far * 100 < kept.len(), "{far} of {} values are far from what the codes mean", kept.len());
}

/// Each part from a folder of its own, as diffusers saves it.
#[test]
fn folders_of_parts_stand_in_for_parts() {
    let (dir, other) = (demo(true), demo(false));
    let from = |part: &str| other.path().join(part);
    let folder =
        find(dir.path()).transformer(from("transformer")).unwrap().t5(from("text_encoder_2")).unwrap();
    let folder = folder.clip(from("text_encoder")).unwrap().vae(from("vae")).unwrap();
    assert!(draw(&folder, Quantize::Nf4) == draw(&find(other.path()), Quantize::Nf4));
    refusal(find(dir.path()).vae(from("tokenizer")), &["tokenizer: no weights"]);
}

/// One file with all four parts.
#[test]
fn a_checkpoint_of_all_parts_is_a_model() {
    let dir = demo(true);
    let file = dir.path().join("all.safetensors");
    let mut all =
        prefixed("model.diffusion_model.", bfl(&stored(dir.path(), Part::Transformer), BLOCKS.0, BLOCKS.1));
    all.extend(prefixed("vae.", bfl_vae(&stored(dir.path(), Part::Vae), LEVELS)));
    all.extend(prefixed("text_encoders.clip_l.transformer.text_model.", stored(dir.path(), Part::Clip)));
    all.extend(prefixed("text_encoders.t5xxl.transformer.", stored(dir.path(), Part::T5)));
    save(&file, &all);
    let want = draw(&find(dir.path()), Quantize::Nf4);
    // Tokenizers and configs alone are the folder's.
    for part in ["transformer", "text_encoder", "text_encoder_2", "vae"] {
        for entry in std::fs::read_dir(dir.path().join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "safetensors") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    let with =
        |folder: ModelFolder| folder.transformer(&file).unwrap().vae(&file).unwrap().clip(&file).unwrap();
    let folder = with(find(dir.path())).t5(&file).unwrap();
    assert!(draw(&folder, Quantize::Nf4) == want);
    // One that is nowhere is named with what to do.
    let incomplete = Model::open_folder(&with(find(dir.path())));
    refusal(incomplete, &["text_encoder_2", "--t5 FILE"]);
    let alone = dir.path().join("vae-only.safetensors");
    save(&alone, &bfl_vae(&prefixed("", all_of(&all, "vae.")), LEVELS));
    refusal(find(dir.path()).t5(&alone), &["holds vae, not t5", "--vae"]);
}

fn all_of(all: &Tensors, prefix: &str) -> Tensors {
    let own = |(name, tensor): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
        Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()))
    };
    all.iter().filter_map(own).collect()
}

// ---- types -----------------------------------------------------------------------------------------------

/// The nearest e4m3, by looking at all of them.
fn to_e4m3(value: f32) -> u8 {
    let all = (0..=255u8).filter(|byte| byte & 0x7f != 0x7f);
    let mean = |byte: u8| {
        let mut out = [0.0];
        schnell::weights::formats::Format::F8E4M3.decode(&[byte], &mut out);
        out[0]
    };
    all.min_by(|a, b| (mean(*a) - value).abs().total_cmp(&(mean(*b) - value).abs())).unwrap()
}

/// The stored bytes of a number of a tensor, and what they mean.
type Convert<'a> = dyn Fn(&str, f32) -> (Vec<u8>, f32) + 'a;

/// T5 and CLIP in files of their own: f16, bf16 and fp8 with and without a scale draw what their values draw in f32.
#[test]
fn text_encoders_of_every_type_are_what_they_mean() {
    let dir = demo(false);
    let (file, meant) = (dir.path().join("t5xxl.safetensors"), dir.path().join("meant.safetensors"));
    let t5 = stored(dir.path(), Part::T5);
    let save_pair = |convert: &Convert, dtype: Dtype, more: &Tensors| {
        let pair = |which: bool| {
            converted(&t5, |name, values| {
                let pairs: Vec<_> = values.iter().map(|value| convert(name, *value)).collect();
                match which {
                    true => (dtype, pairs.into_iter().flat_map(|(bytes, _)| bytes).collect()),
                    false => (Dtype::F32, le(&pairs.into_iter().map(|(_, value)| value).collect::<Vec<_>>())),
                }
            })
        };
        let mut stored = pair(true);
        stored.extend(more.clone());
        // As ComfyUI's files have it.
        let embedding = stored["shared.weight"].clone();
        stored.insert("encoder.embed_tokens.weight".into(), embedding);
        save(&file, &stored);
        save(&meant, &pair(false));
        for quantize in [Quantize::None, Quantize::Nf4] {
            let [got, want] =
                [&file, &meant].map(|file| draw(&find(dir.path()).t5(file).unwrap(), quantize).0);
            assert!(got == want, "{dtype}, {quantize}");
        }
    };
    let half =
        |_: &str, value: f32| (f16::from_f32(value).to_le_bytes().to_vec(), f16::from_f32(value).to_f32());
    save_pair(&half, Dtype::F16, &Tensors::new());
    let decode = |byte: u8| {
        let mut out = [0.0];
        schnell::weights::formats::Format::F8E4M3.decode(&[byte], &mut out);
        out[0]
    };
    let table: BTreeMap<u16, u8> =
        (0..=u16::MAX).map(|bits| (bits, to_e4m3(bf16::from_bits(bits).to_f32()))).collect();
    let fp8 = |value: f32| table[&bf16::from_f32(value).to_bits()];
    save_pair(&|_, value| (vec![fp8(value)], decode(fp8(value))), Dtype::F8_E4M3, &Tensors::new());
    // Scaled, by another factor a layer, under the names of both generations.
    let scale = |name: &str| {
        if name.contains("SelfAttention.q.") {
            0.0625
        } else if name.contains("wi_0.") {
            1.5
        } else {
            1.0
        }
    };
    let mut scales = Tensors::new();
    for (name, ending) in [("SelfAttention.q.", "scale_weight"), ("wi_0.", "weight_scale")] {
        for weight in t5.keys().filter(|key| key.contains(name)) {
            let stem = weight.strip_suffix("weight").unwrap();
            let value = (Dtype::F32, vec![], le(&[scale(weight)]));
            scales.insert(format!("{stem}{ending}"), value.clone());
            scales.insert(format!("{stem}scale_input"), value);
        }
    }
    scales.insert("scaled_fp8".into(), (Dtype::F8_E4M3, vec![0], vec![]));
    let scaled = |name: &str, value: f32| {
        let byte = fp8(value / scale(name));
        (vec![byte], decode(byte) * scale(name))
    };
    save_pair(&scaled, Dtype::F8_E4M3, &scales);
}

#[test]
fn scales_that_are_not_read_are_refused() {
    let dir = demo(false);
    let file = dir.path().join("t5xxl.safetensors");
    let t5 = converted(&stored(dir.path(), Part::T5), |_, values| (Dtype::F8_E4M3, vec![0x38; values.len()]));
    let stem = "encoder.block.0.layer.0.SelfAttention.q.";
    let open = |more: (&str, Dtype, Vec<usize>, Vec<u8>), edit: &dyn Fn(&mut Tensors)| {
        let mut t5 = t5.clone();
        let (name, dtype, shape, bytes) = more;
        t5.insert(format!("{stem}{name}"), (dtype, shape, bytes));
        edit(&mut t5);
        save(&file, &t5);
        let folder = find(dir.path()).t5(&file);
        folder.and_then(|folder| Model::open_folder(&folder))
    };
    let keep = |_: &mut Tensors| {};
    let rows = open(("weight_scale", Dtype::F32, vec![2], le(&[1.0f32, 2.0])), &keep);
    assert!(matches!(refusal(rows, &["q.weight_scale", "one scale"]), Error::Unsupported(_)));
    let negative = open(("scale_weight", Dtype::F32, vec![], le(&[-1.0f32])), &keep);
    assert!(matches!(refusal(negative, &["positive scale"]), Error::Weights { .. }));
    let nan = open(("scale_weight", Dtype::F32, vec![], le(&[f32::NAN])), &keep);
    assert!(matches!(refusal(nan, &["not finite"]), Error::Weights { .. }));
    let nvfp4 = open(("weight_scale", Dtype::F8_E4M3, vec![128, 8], vec![0; 1024]), &|t5| {
        t5.insert(format!("{stem}weight"), (Dtype::U8, vec![128, 64], vec![0; 8192]));
    });
    assert!(matches!(refusal(nvfp4, &["nvfp4"]), Error::Unsupported(_)));
}

// ---- sizes -----------------------------------------------------------------------------------------------

/// What a file does not say is the folder's; the sampler goes with the transformer.
#[test]
fn sizes_are_told_by_tensors() {
    let dir = demo(true);
    let file = dir.path().join("flux.safetensors");
    let wide = stored(dir.path(), Part::Transformer);
    let mut with_guidance = bfl(&wide, BLOCKS.0, BLOCKS.1);
    for name in ["in_layer.weight", "in_layer.bias", "out_layer.weight", "out_layer.bias"] {
        let time = with_guidance[&format!("time_in.{name}")].clone();
        with_guidance.insert(format!("guidance_in.{name}"), time);
    }
    save(&file, &with_guidance);
    let base = find(dir.path()).config().unwrap();
    let config = find(dir.path()).transformer(&file).unwrap().config().unwrap();
    assert!(config.flux.guidance && !base.flux.guidance);
    assert_eq!((config.steps, config.t5_length), (28, 512.min(config.t5_length.max(base.t5_length))));
    assert_eq!((config.scheduler.shift, config.scheduler.dynamic_shifting), (3.0, true));
    // A layer less.
    let fewer: Tensors = bfl(&wide, BLOCKS.0, BLOCKS.1)
        .into_iter()
        .filter(|(name, _)| !name.contains("single_blocks.3"))
        .collect();
    save(&file, &fewer);
    let config = find(dir.path()).transformer(&file).unwrap().config().unwrap();
    assert_eq!((config.flux.layers, config.flux.single_layers), (1, 3));
    assert_eq!(config.scheduler, base.scheduler);
    // A tensor less: no smaller model.
    for gone in ["single_blocks.3.norm.query_norm.scale", "single_blocks.3.linear1.weight"] {
        let mut holes = bfl(&wide, BLOCKS.0, BLOCKS.1);
        holes.remove(gone).unwrap();
        save(&file, &holes);
        let folder = find(dir.path()).transformer(&file).unwrap();
        refusal(Model::open_folder(&folder), &[gone, "is missing"]);
    }
    // Fused rows that do not add up.
    let mut uneven = bfl(&wide, BLOCKS.0, BLOCKS.1);
    let (_, shape, bytes) = uneven.get_mut("double_blocks.0.img_attn.qkv.weight").unwrap();
    bytes.truncate(bytes.len() / shape[0] * (shape[0] - 1));
    shape[0] -= 1;
    save(&file, &uneven);
    let folder = find(dir.path()).transformer(&file).unwrap();
    refusal(Model::open_folder(&folder), &["img_attn.qkv.weight", "[767, 256]", "[768, 256]"]);
}

/// What is packed once is not taken for another file's.
#[test]
fn the_cache_knows_which_files_it_is_of() {
    let dir = demo(true);
    let cache = dir.path().join("cache");
    let file: PathBuf = dir.path().join("flux.safetensors");
    let wide = bfl(&stored(dir.path(), Part::Transformer), BLOCKS.0, BLOCKS.1);
    save(&file, &wide);
    let load = || {
        let folder = find(dir.path()).transformer(&file).unwrap();
        let model = Model::open_folder(&folder).unwrap();
        let before = model.bytes_read();
        let shape = Shape::square(64).steps(1).t5_length(32);
        let builder = Pipeline::builder(&model).warm_up([shape]).device(&emulator()).cache(&cache);
        let mut pipeline = builder.load().unwrap();
        let read = model.bytes_read() - before;
        (pipeline.generate(&Request::new("a red star").seed(1)).unwrap().rgb, read)
    };
    let (first, all) = load();
    let (again, few) = load();
    assert!(first == again && few < all / 4, "{few} of {all}");
    // Another number far behind what the digest looks at, in a file of the same length.
    let mut other = wide;
    let (_, _, bytes) = other.get_mut("single_blocks.3.linear2.weight").unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0);
    save(&file, &other);
    let (changed, read) = load();
    assert!(changed != first && read > all / 2);
}
