//! The golden pipelines of `tests/golden`: their weights written from the manifest, their cases, their tensors.

#![allow(dead_code)] // every test file uses a part of it

use std::path::{Path, PathBuf};

use schnell::device::Device;
use schnell::pipeline::{Model, Noise, Output, Pipeline, Plan, Quantize, Request, Shape};
use schnell::sampling::{NoiseKind, TimeRounding};
use schnell::weights::SafeTensors;
use schnell::weights::generated::Manifest;
use serde_json::Value;

pub struct Golden {
    folder: PathBuf,
    dir: tempfile::TempDir,
    pub cases: Vec<Value>,
    tensors: SafeTensors,
}

impl Golden {
    /// `a` or `b`, with its weights in a temporary folder.
    pub fn open(name: &'static str) -> Golden {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let dir = tempfile::tempdir().unwrap();
        copy_tree(&folder.join("pipeline"), dir.path());
        let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        Manifest::parse(&manifest).unwrap().write_weights(dir.path()).unwrap();
        let cases: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
        let tensors = SafeTensors::open(&folder.join("goldens.safetensors")).unwrap();
        Golden { dir, cases: cases["cases"].as_array().unwrap().clone(), tensors, folder }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn case(&self, name: &str) -> &Value {
        self.cases.iter().find(|c| c["name"] == name).unwrap()
    }

    /// `<case>.<stage>` as f32 (ids too).
    pub fn tensor(&self, case: &str, stage: &str) -> Vec<f32> {
        let info = self.tensors.get(&format!("{case}.{stage}")).unwrap();
        if stage.contains("tokens") {
            let mut bytes = vec![0; info.bytes as usize];
            info.read_at(0, &mut bytes).unwrap();
            return bytes.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect();
        }
        info.read_f32().unwrap()
    }

    /// 8-bit RGB of a case's picture.
    pub fn image(&self, case: &str) -> Vec<u8> {
        let file = std::fs::read(self.folder.join(format!("images/{case}.png"))).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    }

    pub fn mistakes(&self) -> (Value, SafeTensors) {
        let list = std::fs::read_to_string(self.folder.join("mistakes.json")).unwrap();
        (
            serde_json::from_str(&list).unwrap(),
            SafeTensors::open(&self.folder.join("mistakes.safetensors")).unwrap(),
        )
    }

    pub fn shape(case: &Value) -> Shape {
        let n = |key: &str| case[key].as_u64().unwrap() as usize;
        Shape {
            width: n("width"),
            height: n("height"),
            steps: n("steps"),
            t5_length: n("t5_length"),
            true_cfg: case["true_cfg_scale"].is_number(),
        }
    }

    pub fn bind(&self, case: &Value, device: &Device) -> Pipeline {
        let model = Model::open(self.dir()).unwrap();
        let quantize = if case["weights"] == "nf4" { Quantize::Nf4All } else { Quantize::None };
        let plan = Plan::new(model.config(), Self::shape(case), quantize).unwrap();
        Pipeline::builder(&model).with_plan(plan).device(device).dumps().load().unwrap()
    }

    pub fn request(case: &Value) -> Request {
        let prompt = case["prompt"].as_str().unwrap();
        Request {
            prompt_2: case["prompt_2"].as_str().map(str::to_string),
            negative_prompt: case["negative_prompt"].as_str().map(str::to_string),
            true_cfg_scale: case["true_cfg_scale"].as_f64().unwrap_or(1.0) as f32,
            allow_empty_prompt: prompt.is_empty(),
            noise: Noise::Seeded(NoiseKind::F32),
            timesteps: if case["timesteps"] == "bf16" { TimeRounding::Bf16 } else { TimeRounding::Exact },
            dump: true,
            ..Request::new(prompt).seed(case["seed"].as_u64().unwrap())
        }
    }

    pub fn generate(&self, case: &Value, device: &Device) -> Output {
        self.bind(case, device).generate(&Self::request(case)).unwrap()
    }
}

/// What a tensor may differ by: 2 %, or twice what torch's own bf16 differs by.
pub fn limit(case: &Value, stage: &str) -> f64 {
    let bf16 = case["tensors"][stage]["bf16_rel_l2"].as_f64().unwrap_or(0.0);
    (2.0 * bf16).max(2e-2)
}

/// As in zlib.
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, b| (0..8).fold(crc ^ u32::from(*b), |crc, _| step(crc)))
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
