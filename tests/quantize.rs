//! `Quantizer`: what it writes is what diffusers and transformers save with bitsandbytes, to the last byte of every tensor, and
//! draws what quantizing while loading draws.

#[path = "common/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};

use golden::{Golden, copy_tree};
use schnell::device::{Device, EmulatorOptions};
use schnell::pipeline::{Model, Pipeline, Plan, Progress, Quantize, QuantizedLinear, Quantizer};
use schnell::weights::layouts::diffusers;
use schnell::weights::quantize::nested;
use schnell::weights::{Dtype, Part, TensorInfo, bitsandbytes, convert, generated};
use schnell::{Error, files};
use serde_json::Value;

fn crc32(bytes: &[u8]) -> String {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    let crc = bytes.iter().fold(!0u32, |crc, b| (0..8).fold(crc ^ u32::from(*b), |crc, _| step(crc)));
    format!("{:08x}", !crc)
}

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn stored(tensor: &TensorInfo) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes as usize];
    tensor.read_at(0, &mut bytes).unwrap();
    bytes
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn quantizer<'a>(model: &'a Model, kind: &str) -> Quantizer<'a> {
    Quantizer::new(model).double_quant(kind == "double")
}

/// Names, dtypes, shapes and bytes are those that were recorded, and the config says the same of them; returns the names.
#[track_caller]
fn is_as_recorded(dir: &Path, recorded: &Value) -> usize {
    let mut count = 0;
    for part in [Part::Transformer, Part::T5] {
        let recorded = &recorded[diffusers::folder(part)];
        let config = json(&dir.join(diffusers::folder(part)).join("config.json"));
        assert_eq!(config["quantization_config"], recorded["quantization_config"]);
        let found: BTreeMap<String, String> = diffusers::open(dir, part)
            .unwrap()
            .iter()
            .map(|t| (t.name.clone(), format!("{} {:?} {}", t.dtype, t.shape, crc32(&stored(t)))))
            .collect();
        let recorded: BTreeMap<String, String> =
            serde_json::from_value::<Vec<(String, String)>>(recorded["tensors"].clone())
                .unwrap()
                .into_iter()
                .collect();
        let names = |of: &BTreeMap<String, String>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&recorded), "{part}");
        for (name, recorded) in &recorded {
            assert_eq!(&found[name], recorded, "{part}: {name}");
        }
        count += found.len();
    }
    count
}

/// All files below `dir` by their path there.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(
                    files.insert(path.strip_prefix(dir).unwrap().to_path_buf(), fs::read(&path).unwrap()),
                ),
            }
        }
    }
    files
}

#[test]
fn tensors_are_those_that_bitsandbytes_saves() {
    for (name, tensors) in [("a", [309, 429]), ("b", [262, 366])] {
        let golden = Golden::open(name);
        let recorded = json(Path::new(&format!("tests/golden/{name}/quantized.json")));
        let model = Model::open(golden.dir()).unwrap();
        for (kind, tensors) in ["plain", "double"].into_iter().zip(tensors) {
            let out = tempfile::tempdir().unwrap();
            let to = out.path().join("nf4");
            let linears = quantizer(&model, kind).write(&to).unwrap();
            assert_eq!(is_as_recorded(&to, &recorded[kind]), tensors, "{name}, {kind}");
            // Nothing is left beside it, and what was not to change has not.
            assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
            let (before, after) = (tree(golden.dir()), tree(&to));
            for (path, bytes) in &before {
                let is_quantized = path.starts_with("transformer") || path.starts_with("text_encoder_2");
                assert!(is_quantized || after.get(path) == Some(bytes), "{name}, {kind}: {}", path.display());
            }
            measures_the_loss(golden.dir(), &to, &linears);
        }
    }
}

/// Against the difference of both files as our loader reads them.
fn measures_the_loss(wide: &Path, nf4: &Path, linears: &[QuantizedLinear]) {
    for part in [Part::Transformer, Part::T5] {
        let (wide, nf4) = (diffusers::open(wide, part).unwrap(), diffusers::open(nf4, part).unwrap());
        let of_part: Vec<_> = linears.iter().filter(|l| l.folder == diffusers::folder(part)).collect();
        assert_eq!(of_part.len(), nf4.iter().filter(|t| t.name.ends_with(".weight.quant_map")).count());
        for linear in of_part {
            let tensor = wide.get(&linear.name).unwrap();
            let want = tensor.read_f32().unwrap();
            let read = bitsandbytes::open(&nf4, nf4.get(&linear.name).unwrap()).unwrap().unwrap();
            let got = read.read_f32().unwrap();
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
            let errors = square(&mut want.iter().zip(&got).map(|(a, b)| a - b));
            let relative = (errors / square(&mut want.iter().copied())).sqrt();
            let largest = want.iter().zip(&got).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!((linear.relative_rms_error / relative - 1.0).abs() < 1e-6, "{linear:?}: {relative}");
            assert_eq!(linear.max_abs_error, largest, "{}", linear.name);
            assert!((0.07..0.11).contains(&relative), "{linear:?}");
            assert_eq!((&linear.shape[..], linear.bytes_before), (&tensor.shape[..], tensor.bytes));
            let parts = nf4.iter().filter(|t| {
                t.name.strip_prefix(&linear.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            assert_eq!(linear.bytes_after, parts.map(|t| t.bytes).sum::<u64>(), "{}", linear.name);
        }
    }
}

/// The mean of torch's order, groups of every length, values that are all the same or close.
#[test]
fn absmax_in_8_bits_is_that_of_bitsandbytes() {
    let cases = json(Path::new("tests/golden/nf4_nested.json"));
    let cases = cases["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 21);
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap() as f32;
        let elements = case["elements"].as_u64().unwrap();
        let hash = generated::name_hash(&format!("nested/{elements}"));
        let absmax: Vec<f32> =
            (0..elements).map(|i| generated::value(hash, i, number("scale"), number("mean"))).collect();
        let nested = nested::quantize(&absmax);
        assert_eq!(format!("{:08x}", nested.offset.to_bits()), case["offset"], "{case}");
        assert_eq!(crc32(&le(&nested.scales)), case["scales"], "{case}");
        assert_eq!(crc32(&nested.codes), case["codes"], "{case}");
        assert_eq!(crc32(&le(&nested.dequantize())), case["read"], "{case}");
    }
}

/// Writes all weights of a folder anew, in `dtype`.
fn convert_weights(dir: &Path, dtype: Dtype) {
    for part in Part::ALL {
        let component = diffusers::open(dir, part).unwrap();
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = component
            .iter()
            .map(|tensor| {
                let mut values = vec![0.0; tensor.elements()];
                convert::to_f32(tensor.dtype, &stored(tensor), &mut values).unwrap();
                let bytes = match dtype {
                    Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
                    _ => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
                };
                (tensor.name.clone(), tensor.shape.clone(), bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        fs::write(component.path(), safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

/// As transformers has it: what is left wide beside f16 is f32, for its outputs are large.
#[test]
fn of_half_precision_files_what_is_left_wide_is_f32() {
    for (dtype, of_wo) in [(Dtype::F16, Dtype::F32), (Dtype::BF16, Dtype::BF16)] {
        let golden = Golden::open("a");
        convert_weights(golden.dir(), dtype);
        let (model, out) = (Model::open(golden.dir()).unwrap(), tempfile::tempdir().unwrap());
        let to = out.path().join("nf4");
        Quantizer::new(&model).write(&to).unwrap();
        let [before, after] = [golden.dir(), &to].map(|dir| diffusers::open(dir, Part::T5).unwrap());
        let (mut wide, mut others) = (0, 0);
        for tensor in after.iter().filter(|t| before.get(&t.name).is_some_and(|old| old.shape == t.shape)) {
            let is_wo = tensor.name.ends_with("wo.weight");
            assert_eq!(tensor.dtype, if is_wo { of_wo } else { dtype }, "{}", tensor.name);
            let old = before.get(&tensor.name).unwrap();
            assert_eq!(tensor.read_f32().unwrap(), old.read_f32().unwrap(), "{}", tensor.name);
            if is_wo { wide += 1 } else { others += 1 }
        }
        assert_eq!((wide, others), (2, 7));
        let state = after.iter().find(|t| t.name.ends_with("bitsandbytes__nf4")).unwrap();
        let state: Value = serde_json::from_slice(&stored(state)).unwrap();
        assert_eq!(state["dtype"], if dtype == Dtype::F16 { "float16" } else { "bfloat16" });
        Model::open(&to).unwrap();
    }
}

/// Pixels and latents of the smallest case.
fn draw(dir: &Path, golden: &Golden) -> (Vec<u8>, Vec<f32>) {
    let (model, case) = (Model::open(dir).unwrap(), golden.case("a-base"));
    let plan = Plan::new(model.config(), Golden::shape(case), Quantize::Nf4).unwrap();
    let device = Device::emulator(EmulatorOptions::default());
    let mut pipeline = Pipeline::builder(&model).with_plan(plan).device(&device).dumps().load().unwrap();
    let output = pipeline.generate(&Golden::request(case)).unwrap();
    let latents = output.dumps.iter().find(|dump| dump.stage == "latents_0").unwrap();
    let schnell::DumpValues::F32(latents) = &latents.values else { panic!("latents are f32") };
    (output.rgb, latents.clone())
}

#[test]
fn pictures_are_those_of_weights_quantized_while_they_load() {
    let golden = Golden::open("a");
    let (want, latents) = draw(golden.dir(), &golden);
    let (model, out) = (Model::open(golden.dir()).unwrap(), tempfile::tempdir().unwrap());
    for kind in ["plain", "double"] {
        let to = out.path().join(kind);
        quantizer(&model, kind).write(&to).unwrap();
        let (got, got_latents) = draw(&to, &golden);
        if kind == "plain" {
            assert!(got == want && got_latents == latents, "other codes than those of the loader");
            continue;
        }
        let square =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let errors = square(&mut latents.iter().zip(&got_latents).map(|(a, b)| a - b));
        let relative = (errors / square(&mut latents.iter().copied())).sqrt();
        println!("double quantization changes the latents by {relative:.2e}");
        assert!(relative > 0.0 && relative < 2e-2, "{relative}");
    }
    // All of it is there already.
    let refused =
        quantizer(&Model::open(out.path().join("plain")).unwrap(), "plain").write(out.path().join("again"));
    assert!(matches!(&refused, Err(Error::Input(what)) if what.contains("quantized already")), "{refused:?}");
}

#[test]
fn what_does_not_fit_one_file_is_in_several() {
    let golden = Golden::open("b");
    let recorded = json(Path::new("tests/golden/b/quantized.json"));
    let (model, out) = (Model::open(golden.dir()).unwrap(), tempfile::tempdir().unwrap());
    for kind in ["plain", "double"] {
        let to = out.path().join(kind);
        quantizer(&model, kind).shard_bytes(300_000).write(&to).unwrap();
        is_as_recorded(&to, &recorded[kind]);
        for part in [Part::Transformer, Part::T5] {
            let folder = to.join(diffusers::folder(part));
            let index = json(&folder.join(format!("{}.safetensors.index.json", diffusers::stem(part))));
            let shards: BTreeMap<&str, &str> = index["weight_map"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(n, s)| (n.as_str(), s.as_str().unwrap()))
                .collect();
            let files: std::collections::BTreeSet<&str> = shards.values().copied().collect();
            let count = files.len();
            assert!(count > 2, "{part}: {count} files");
            let names: Vec<String> = (1..=count)
                .map(|i| format!("{}-{i:05}-of-{count:05}.safetensors", diffusers::stem(part)))
                .collect();
            assert_eq!(files.into_iter().collect::<Vec<_>>(), names);
            // diffusers looks for the parts of a Linear where its codes are.
            for (name, shard) in &shards {
                let owner = name.split_once(".weight.").map(|(stem, _)| format!("{stem}.weight"));
                assert!(owner.is_none_or(|owner| shards[owner.as_str()] == *shard), "{name}");
            }
            let tensors = diffusers::open(&to, part).unwrap();
            let bytes: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
            assert_eq!(index["metadata"]["total_size"], bytes);
        }
    }
}

#[test]
fn whoever_is_told_may_stop_it_and_then_nothing_is_left() {
    let golden = Golden::open("a");
    let (model, out) = (Model::open(golden.dir()).unwrap(), tempfile::tempdir().unwrap());
    let to = out.path().join("nf4");
    let stop_after = |most: usize| {
        let mut told = Vec::new();
        let written = Quantizer::new(&model).write_with(&to, &mut |progress| {
            let Progress::Loading { done, total } = progress else { panic!("{progress:?}") };
            told.push((done, total));
            if told.len() > most { Break(()) } else { Continue(()) }
        });
        (written, told)
    };
    let (written, told) = stop_after(usize::MAX);
    written.unwrap();
    fs::rename(&to, out.path().join("first")).unwrap();
    let calls = told.len();
    assert!(told.is_sorted() && told[0].0 == 0 && told[calls - 1].0 == told[0].1, "{:?}", told.last());
    for most in [0, 1, 50, calls / 2, calls - 2, calls - 1] {
        let (stopped, _) = stop_after(most);
        assert!(matches!(stopped, Err(Error::Stopped)), "{most} of {calls}: {stopped:?}");
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "{most} of {calls}");
    }
}

#[test]
fn sets_of_weights_with_other_names_are_written_under_the_usual_ones() {
    let golden = Golden::open("a");
    let dir = tempfile::tempdir().unwrap();
    copy_tree(golden.dir(), dir.path());
    let rename = |from: &str, to: &str| fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
    rename("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors");
    rename(
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
    );
    // Of what else lies there, licenses are copied; other sets of weights and hidden files are not.
    for name in
        ["LICENSE.md", "README.md", "flux1-schnell.safetensors", "vae/pytorch_model.bin", "vae/.hidden"]
    {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let model = Model::open(dir.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    Quantizer::new(&model).write(out.path().join("nf4")).unwrap();
    let found: Vec<String> =
        tree(&out.path().join("nf4")).into_keys().map(|path| path.to_string_lossy().into_owned()).collect();
    let want = [
        "LICENSE.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    assert_eq!(found, want);
    assert_eq!(Model::open(out.path().join("nf4")).unwrap().warnings(), [""; 0]);
}

/// A folder that another process makes is left alone; one that was left over is begun anew.
#[test]
fn one_process_makes_a_folder() {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("new");
    let first = files::WholeFolder::begin(&to).unwrap();
    let (kept, _) = first.create("a/b").unwrap();
    let refused = files::WholeFolder::begin(&to).unwrap_err();
    assert!(matches!(&refused, Error::Input(what) if what.contains("being written by another")), "{refused}");
    assert!(kept.exists());
    // Its process was killed: nobody removes it, and nobody has it locked.
    let copy = out.path().join("copy");
    copy_tree(first.path(), &copy);
    drop(first);
    assert!(!kept.exists());
    fs::rename(&copy, out.path().join(".new.schnell")).unwrap();
    let second = files::WholeFolder::begin(&to).unwrap();
    assert!(!kept.exists(), "what was left over is still there");
    second.create("c").unwrap();
    second.finish().unwrap();
    assert_eq!(tree(out.path()).into_keys().collect::<Vec<_>>(), [PathBuf::from("new/c")]);
    let refused = files::WholeFolder::begin(&to).unwrap_err();
    assert!(matches!(&refused, Error::Input(what) if what.contains("is there already")), "{refused}");
    // A link of that name leads elsewhere.
    std::os::unix::fs::symlink(&to, out.path().join(".other.schnell")).unwrap();
    let refused = files::WholeFolder::begin(&out.path().join("other")).unwrap_err();
    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    assert!(to.join("c").exists());
}
