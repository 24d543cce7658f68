//! The smallest model that has one of everything, in files of random numbers: its pictures take milliseconds.
#![allow(dead_code)] // every test file uses a part of it

use std::path::Path;

use half::bf16;
use safetensors::tensor::TensorView;
use schnell::config::{ClipConfig, FluxConfig, PipelineConfig, T5Config, VaeConfig};
use schnell::pipeline::{Model, Request, Shape};
use schnell::weights::{Dtype, Part};

use crate::Rng;

/// The smallest picture, in two steps: the first, and one as all others.
pub const SHAPE: Shape = Shape { width: 16, height: 16, steps: 2, t5_length: 8, true_cfg: false };

pub fn request() -> Request {
    Request::new("a red circle").seed(3)
}

/// A head is as wide as kernels want it, there is one of it, and every network has `layers` layers of a kind.
fn config(bundled: PipelineConfig, layers: usize) -> PipelineConfig {
    let (flux, t5, clip, vae) = (bundled.flux, bundled.t5, bundled.clip, bundled.vae);
    PipelineConfig {
        flux: FluxConfig {
            heads: 1,
            head_dim: 128,
            axes: [16, 56, 56],
            layers,
            single_layers: layers,
            joint_width: 64,
            pooled_width: 64,
            ..flux
        },
        t5: T5Config { width: 64, head_dim: 64, heads: 1, ff: 64, layers, ..t5 },
        clip: ClipConfig { width: 64, heads: 1, ff: 64, layers, ..clip },
        vae: VaeConfig { block_channels: vec![16; 4], layers_per_block: 1, groups: 8, ..vae },
        steps: SHAPE.steps,
        t5_length: SHAPE.t5_length,
        ..bundled
    }
}

/// Its files, in bf16 and in the layout of diffusers, and the model that they make.
pub fn smallest(layers: usize) -> (tempfile::TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    let model = smallest_in(dir.path(), layers);
    (dir, model)
}

/// The same in an empty folder.
pub fn smallest_in(dir: &Path, layers: usize) -> Model {
    schnell::demo::write(dir).unwrap();
    let config = config(PipelineConfig::open(dir).unwrap(), layers);
    let mut rng = Rng(11);
    for (part, file) in [
        (Part::Transformer, "transformer/diffusion_pytorch_model.safetensors"),
        (Part::Clip, "text_encoder/model.safetensors"),
        (Part::T5, "text_encoder_2/model.safetensors"),
        (Part::Vae, "vae/diffusion_pytorch_model.safetensors"),
    ] {
        let tensors: Vec<(String, Vec<usize>, Vec<bf16>)> = part
            .needed(&config)
            .unwrap()
            .into_iter()
            .map(|needed| {
                let elements = needed.elements() as usize;
                let (scale, mean) = match needed.shape[..] {
                    // Norms and biases.
                    [_] if needed.name.ends_with("weight") => (0.1, 1.0),
                    [_] => (0.1, 0.0),
                    [rows, ..] => ((elements as f32 / rows as f32).powf(-0.5), 0.0),
                    [] => (1.0, 0.0),
                };
                let values =
                    rng.f32s(elements, scale).into_iter().map(|v| bf16::from_f32(mean + v)).collect();
                (needed.name, needed.shape, values)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, values)| {
            (name, TensorView::new(Dtype::BF16, shape.clone(), bytemuck::cast_slice(values)).unwrap())
        });
        std::fs::write(dir.join(file), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    Model::open_as(config, dir).unwrap()
}
