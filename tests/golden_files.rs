//! The files that people have, against diffusers: `tests/golden/files` lists files that safetensors, gguf and peft have written, and
//! what diffusers computed in float32 with what they hold. This test writes them anew from their hash, and checks that each tensor
//! is that of the package, byte for byte.

mod common;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/golden.rs"]
mod golden;
#[path = "common/kept.rs"]
mod kept;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use common::{emulator, rel_l2};
use golden::{Golden, crc32, limit};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use schnell::kernels::kept::Format;
use schnell::pipeline::{DumpValues, Plan};
use schnell::weights::generated::{bits, name_hash, value};
use schnell::weights::{Dtype, SafeTensors};
use schnell::{Lora, Model, ModelFolder, Pipeline, Quantize};
use serde_json::Value;

struct Files {
    base: Golden,
    list: Value,
    tensors: SafeTensors,
}

impl Files {
    fn open() -> Files {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/files");
        let list = std::fs::read(folder.join("files.json")).unwrap();
        Files {
            base: Golden::open("a"),
            list: serde_json::from_slice(&list).unwrap(),
            tensors: SafeTensors::open(&folder.join("goldens.safetensors")).unwrap(),
        }
    }

    /// Writes the file of this name beside the base's folders.
    fn write(&self, name: &str) -> PathBuf {
        let path = self.base.dir().join(name);
        if path.exists() {
            return path;
        }
        let file = self.list["files"].as_array().unwrap().iter().find(|file| file["name"] == name).unwrap();
        let tensors: Vec<_> =
            file["tensors"].as_array().unwrap().iter().map(|t| Stored::of(name, t)).collect();
        let metadata: Option<HashMap<String, String>> =
            serde_json::from_value(file["metadata"].clone()).unwrap();
        let bytes = if name.ends_with(".gguf") {
            let metadata = metadata.unwrap().into_iter().map(|(key, text)| (key, 8, gguf::string(&text)));
            let header = gguf::Header { metadata: metadata.collect(), ..Default::default() };
            gguf::sound(&header, &tensors.into_iter().map(Stored::for_gguf).collect::<Vec<_>>())
        } else {
            let views = tensors
                .iter()
                .map(|t| (&t.name, TensorView::new(t.dtype(), t.shape.clone(), &t.bytes).unwrap()));
            safetensors::serialize(views, metadata).unwrap()
        };
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn model(&self, case: &Value) -> Model {
        let mut folder = ModelFolder::find(self.base.dir()).unwrap();
        for (part, file) in case["parts"].as_object().unwrap() {
            let file = self.write(file.as_str().unwrap());
            folder = match part.as_str() {
                "transformer" => folder.transformer(file),
                "t5" => folder.t5(file),
                "clip" => folder.clip(file),
                "vae" => folder.vae(file),
                other => panic!("part {other}"),
            }
            .unwrap();
        }
        let model = Model::open_folder(&folder).unwrap();
        let loras = case["loras"].as_array().unwrap().iter().map(|lora| {
            let lora_file = Lora::open(self.write(lora[0].as_str().unwrap()), model.config()).unwrap();
            assert_eq!(lora_file.warnings(), [""; 0], "{lora}");
            (lora_file, lora[1].as_f64().unwrap() as f32)
        });
        let loras: Vec<_> = loras.collect();
        model.with_loras(&loras).unwrap()
    }

    fn check(&self, name: &str, quantize: Quantize) {
        let case = self.list["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
        let model = self.model(case);
        let plan = Plan::new(model.config(), Golden::shape(case), quantize).unwrap();
        let device = emulator();
        let mut pipeline = Pipeline::builder(&model).with_plan(plan).device(&device).dumps().load().unwrap();
        let mut request = Golden::request(case);
        if let Some(guidance) = case["guidance_scale"].as_f64() {
            request = request.guidance(guidance as f32);
        }
        let output = pipeline.generate(&request).unwrap();
        let stages = case["tensors"].as_object().unwrap();
        // In the pipeline's order, so that the first failure names the stage at fault.
        let mut checked = BTreeSet::new();
        for dump in output.dumps.iter().filter(|dump| stages.contains_key(&dump.stage)) {
            let stage = &dump.stage;
            let want = self.tensors.get(&format!("{name}.{stage}")).unwrap().read_f32().unwrap();
            let DumpValues::F32(got) = &dump.values else { panic!("{stage} is f32") };
            if stage == "sigmas" {
                assert_eq!(*got, want, "{name}.{stage}");
            } else {
                let (error, limit) = (rel_l2(got, &want), limit(case, stage));
                assert!(error <= limit, "{name}.{stage}: relative L2 {error:.3e}, at most {limit:.3e}");
            }
            checked.insert(stage.clone());
        }
        assert_eq!(checked, stages.keys().cloned().collect(), "{name}");
    }
}

/// A tensor as its file has it.
struct Stored {
    name: String,
    kind: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of(file: &str, row: &Value) -> Stored {
        let text = |key: &str| row[key].as_str().unwrap().to_string();
        let (name, kind) = (text("name"), text("type"));
        let shape: Vec<usize> = serde_json::from_value(row["shape"].clone()).unwrap();
        let hash = name_hash(&format!("{file}/{name}"));
        let bytes = match &row["halves"] {
            Value::Null => {
                let number = |key: &str| row[key].as_f64().map(|value| value as f32);
                let (scale, mean) = (number("scale").unwrap(), number("mean").unwrap());
                let count = shape.iter().product::<usize>() as u64;
                let values = (0..count).map(|i| value(hash, i, scale, mean));
                let values: Vec<f32> = match number("divisor") {
                    Some(divisor) => values.map(|value| value / divisor).collect(),
                    None => values.collect(),
                };
                plain(&kind, &values)
            }
            halves => blocks(
                format(&kind),
                hash,
                shape[0] * shape[1],
                &serde_json::from_value::<Vec<Vec<u16>>>(halves.clone()).unwrap(),
            ),
        };
        assert_eq!(format!("{:08x}", crc32(&bytes)), text("crc32"), "{file}: {name}");
        Stored { name, kind, shape, bytes }
    }

    fn dtype(&self) -> Dtype {
        match self.kind.as_str() {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            "F8_E4M3" => Dtype::F8_E4M3,
            "F8_E5M2" => Dtype::F8_E5M2,
            other => panic!("type {other}"),
        }
    }

    fn for_gguf(self) -> gguf::Tensor {
        let kind = match self.kind.as_str() {
            "F32" => gguf::F32,
            "F16" => gguf::F16,
            "BF16" => gguf::BF16,
            other => kept::ggml_type(format(other)),
        };
        (self.name, self.shape.iter().rev().map(|size| *size as u64).collect(), kind, self.bytes)
    }
}

fn plain(kind: &str, values: &[f32]) -> Vec<u8> {
    match kind {
        "F32" => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        "F16" => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        "BF16" => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => kept::encode(format(kind), values),
    }
}

fn format(kind: &str) -> Format {
    match kind {
        "F8_E4M3" => Format::F8E4M3,
        "F8_E5M2" => Format::F8E5M2,
        "Q4_0" => Format::Q4_0,
        "Q4_1" => Format::Q4_1,
        "Q5_0" => Format::Q5_0,
        "Q5_1" => Format::Q5_1,
        "Q8_0" => Format::Q8_0,
        "Q2_K" => Format::Q2K,
        "Q3_K" => Format::Q3K,
        "Q4_K" => Format::Q4K,
        "Q5_K" => Format::Q5K,
        "Q6_K" => Format::Q6K,
        other => panic!("type {other}"),
    }
}

/// Bytes from the hash; where a block has its f16, those of `halves` in turn.
fn blocks(format: Format, hash: u64, values: usize, halves: &[Vec<u16>]) -> Vec<u8> {
    let count = values / format.values() * format.bytes();
    let words = (0..count.div_ceil(8) as u64).flat_map(|i| bits(hash, i).to_le_bytes());
    let mut bytes: Vec<u8> = words.take(count).collect();
    for (block, halves) in bytes.chunks_exact_mut(format.bytes()).zip(halves.iter().cycle()) {
        for (at, half) in kept::scales(format).0.iter().zip(halves) {
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn parts_under_other_names_agree() {
    let files = Files::open();
    for name in ["files-bfl", "files-text", "files-all"] {
        files.check(name, Quantize::None);
    }
}

#[test]
fn fp8_agrees() {
    let files = Files::open();
    for name in ["files-fp8", "files-fp8-scaled", "files-fp8-e5m2"] {
        files.check(name, Quantize::Keep);
    }
}

#[test]
fn gguf_agrees() {
    let files = Files::open();
    for kind in ["Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q4_1", "Q3_K", "Q2_K"] {
        files.check(&format!("files-{kind}"), Quantize::Keep);
    }
    // Beside a wide transformer, in bf16 itself.
    files.check("files-t5-gguf", Quantize::None);
}

#[test]
fn a_guided_model_agrees() {
    Files::open().check("files-dev", Quantize::None);
}

#[test]
fn loras_agree() {
    let files = Files::open();
    for name in ["files-lora-diffusers", "files-lora-kohya", "files-loras"] {
        files.check(name, Quantize::None);
    }
    files.check("files-lora-on-gguf", Quantize::Keep);
}

/// Every case is one of the above.
#[test]
fn no_case_is_forgotten() {
    let source = include_str!("golden_files.rs");
    for case in Files::open().list["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let is_listed = |name: &str| source.contains(&format!("\"{name}\""));
        assert!(is_listed(name) || is_listed(name.trim_start_matches("files-")), "{name}");
    }
}
