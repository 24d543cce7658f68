//! Files whose Linears bitsandbytes has quantized: each stays as its file holds it, and every stage is that of the same numbers
//! in a file without any NF4.

mod common;
#[path = "common/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use common::*;
use golden::Golden;
use safetensors::tensor::TensorView;
use schnell::config::PipelineConfig;
use schnell::pipeline::{DumpValues, Model, Pipeline, Progress, Quantize, Request, Shape};
use schnell::weights::layouts::diffusers;
use schnell::weights::{Dtype, InNf4, Part, nf4};
use std::ops::ControlFlow::Continue;

const SHAPE: Shape = Shape { width: 64, height: 64, steps: 2, t5_length: 32, true_cfg: false };

/// How a file holds a Linear.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Wide(Dtype),
    Nf4,
    /// absmax in 8 bits, too.
    Nested,
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `values` as bitsandbytes saves them, into `file`; returns what they mean.
fn hold(file: &mut Tensors, name: &str, shape: &[usize], values: &[f32], held: Held) -> Vec<f32> {
    let mut put = |suffix: &str, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>| {
        file.insert(format!("{name}{suffix}"), (dtype, shape, bytes));
    };
    if let Held::Wide(dtype) = held {
        let (bytes, kept): (Vec<u8>, Vec<f32>) = match dtype {
            Dtype::F32 => (le(values), values.to_vec()),
            Dtype::F16 => {
                let half: Vec<half::f16> = values.iter().map(|v| half::f16::from_f32(*v)).collect();
                (
                    half.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    half.iter().map(|v| v.to_f32()).collect(),
                )
            }
            _ => {
                let half: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
                (
                    half.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    half.iter().map(|v| v.to_f32()).collect(),
                )
            }
        };
        put("", dtype, shape.to_vec(), bytes);
        return kept;
    }
    let mut quantized = nf4::quantize(values);
    let mut state =
        serde_json::json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape});
    put("", Dtype::U8, vec![quantized.packed.len(), 1], quantized.packed.clone());
    put(".quant_map", Dtype::F32, vec![16], le(&nf4::CODE_BOOK));
    if held == Held::Nf4 {
        put(".absmax", Dtype::F32, vec![quantized.absmax.len()], le(&quantized.absmax));
    } else {
        let offset = quantized.absmax.iter().sum::<f32>() / quantized.absmax.len() as f32;
        let book: Vec<f32> = (0..256).map(|i| (i as f32 - 127.5) / 127.5).collect();
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for block in quantized.absmax.chunks_mut(256) {
            let largest = block.iter().fold(0.0f32, |m, a| m.max((a - offset).abs()));
            scales.push(largest);
            for absmax in block {
                let code =
                    (((*absmax - offset) / largest.max(1e-30) + 1.0) * 127.5).round().clamp(0.0, 255.0);
                codes.push(code as u8);
                *absmax = book[code as usize] * largest + offset;
            }
        }
        put(".absmax", Dtype::U8, vec![codes.len()], codes);
        put(".nested_absmax", Dtype::F32, vec![scales.len()], le(&scales));
        put(".nested_quant_map", Dtype::F32, vec![256], le(&book));
        state["nested_blocksize"] = 256.into();
        state["nested_dtype"] = "float32".into();
        state["nested_offset"] = offset.into();
    }
    let state = state.to_string().into_bytes();
    put(".quant_state.bitsandbytes__nf4", Dtype::U8, vec![state.len()], state);
    quantized.dequantize_bf16().unwrap().iter().map(|v| v.to_f32()).collect()
}

fn is_linear(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && name.ends_with(".weight") && !name.contains("shared") && !name.contains("relative")
}

/// Writes transformer and T5 of the model in `dir` anew, their Linears as `held` says; or, for `meant`, what that means in f32.
fn rewrite(dir: &Path, meant: bool, held: &dyn Fn(&str) -> Held) {
    for part in [Part::Transformer, Part::T5] {
        let component = diffusers::open(dir, part).unwrap();
        let mut file = Tensors::new();
        for info in component.iter() {
            let values = info.read_f32().unwrap();
            let held =
                if is_linear(&info.name, &info.shape) { held(&info.name) } else { Held::Wide(Dtype::F32) };
            let mut scratch = Tensors::new();
            let kept =
                hold(if meant { &mut scratch } else { &mut file }, &info.name, &info.shape, &values, held);
            if meant {
                file.insert(info.name.clone(), (Dtype::F32, info.shape.clone(), le(&kept)));
            }
        }
        let folder = dir.join(diffusers::folder(part));
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains(".safetensors") {
                std::fs::remove_file(path).unwrap();
            }
        }
        let views = file.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.join(format!("{}.safetensors", diffusers::stem(part))), bytes).unwrap();
    }
}

/// Every stage of a picture, and the bytes that loading told of.
fn stages(dir: &Path, quantize: Quantize) -> (BTreeMap<String, Vec<f32>>, u64) {
    let model = Model::open(dir).unwrap();
    let (mut told, opened) = (0, model.bytes_read());
    let loaded =
        Pipeline::builder(&model).quantize(quantize).warm_up([SHAPE]).device(&emulator()).dumps().load_with(
            &mut |progress| {
                if let Progress::Loading { total, .. } = progress {
                    told = total;
                }
                Continue(())
            },
        );
    let mut pipeline = loaded.unwrap();
    // Loading also computes the digest, and reads two small tables of the host's.
    let loaded = model.bytes_read() - opened;
    model.digest().unwrap();
    let digested = model.bytes_read() - opened - loaded;
    let host = loaded - digested - told;
    assert!(
        host < 1 << 20 && host < told / 4,
        "{loaded} bytes read, {digested} for the digest; told of {told}"
    );
    let request = Request::new("a quiet lighthouse and two misty ships").seed(3).dump();
    let output = pipeline.generate(&request).unwrap();
    let dumps = output.dumps.into_iter().map(|dump| match dump.values {
        DumpValues::F32(values) => (dump.stage, values),
        DumpValues::Ids(ids) => (dump.stage, ids.iter().map(|id| *id as f32).collect()),
    });
    (dumps.collect(), told)
}

fn check(name: &str, held: &dyn Fn(&str) -> Held) {
    let (file, reference) = (Golden::open("a"), Golden::open("a"));
    rewrite(file.dir(), false, held);
    rewrite(reference.dir(), true, held);
    let (want, wide_bytes) = stages(reference.dir(), Quantize::None);
    for quantize in [Quantize::Nf4, Quantize::None] {
        let (got, bytes) = stages(file.dir(), quantize);
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
        for (stage, want) in &want {
            let error = rel_l2(&got[stage], want);
            println!("{name}, {quantize}: {stage} {error:.2e}");
            assert!(error <= 2e-2, "{name}, {quantize}: {stage} is off by {error:.2e}");
        }
        assert!(bytes < wide_bytes, "{name}: {bytes} bytes, as f32 {wide_bytes}");
    }
}

#[test]
fn plain_and_double_quantized_files_are_what_they_mean() {
    for held in [Held::Nf4, Held::Nested] {
        // As transformers leaves it, in f32.
        check(&format!("{held:?}"), &|name| {
            if name.contains(".wo.") { Held::Wide(Dtype::F32) } else { held }
        });
    }
}

#[test]
fn mixed_files_are_what_they_mean() {
    let kinds = [Held::Nf4, Held::Wide(Dtype::BF16), Held::Nested, Held::Wide(Dtype::F16), Held::Nf4];
    check("mixed", &|name| kinds[name.bytes().map(usize::from).sum::<usize>() % kinds.len()]);
}

/// What is in NF4 fills as many bytes as the file says, and what is wide in bf16.
#[test]
fn plans_are_made_of_what_the_files_hold() {
    let golden = Golden::open("a");
    rewrite(golden.dir(), false, &|name| match name.contains("to_k") || name.contains(".wo.") {
        true => Held::Wide(Dtype::BF16),
        false => Held::Nf4,
    });
    let plan = |dir: &Path, quantize| {
        let config = schnell::ModelFolder::find(dir).unwrap().config().unwrap();
        schnell::Plan::new(&config, SHAPE, quantize).unwrap()
    };
    let (as_held, all) = (plan(golden.dir(), Quantize::Nf4), plan(golden.dir(), Quantize::Nf4All));
    assert!(as_held.nf4_bytes().1 < all.nf4_bytes().1, "T5's wo");
    assert!(as_held.nf4_bytes().0 < all.nf4_bytes().0, "a product of q, k and v is of one kind");
    let loaded =
        Pipeline::builder(&Model::open(golden.dir()).unwrap()).with_plan(as_held).device(&emulator()).load();
    loaded.unwrap();
    // Without the weights the rule decides, and a plan of one is none of the other.
    let config = PipelineConfig::open(golden.dir()).unwrap();
    assert_eq!(config.in_nf4, InNf4::default());
    let model = Model::open(golden.dir()).unwrap();
    assert_ne!(model.config(), &config);
}
