//! LoRA files of random numbers, in diffusers' names.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use schnell::config::PipelineConfig;
use schnell::weights::Part;

use crate::Rng;

/// What it changes: `down [rank, k]` and `up [n, rank]` of a matrix, without `.weight`.
pub struct Change {
    pub part: Part,
    pub target: String,
    pub rank: usize,
    pub n: usize,
    pub k: usize,
    pub down: Vec<f32>,
    pub up: Vec<f32>,
}

impl Change {
    /// `up . down`, `[n, k]`.
    pub fn delta(&self) -> Vec<f32> {
        let mut delta = vec![0f64; self.n * self.k];
        for (row, up) in delta.chunks_mut(self.k).zip(self.up.chunks(self.rank)) {
            for (factor, down) in up.iter().zip(self.down.chunks(self.k)) {
                row.iter_mut()
                    .zip(down)
                    .for_each(|(sum, down)| *sum += f64::from(*factor) * f64::from(*down));
            }
        }
        delta.into_iter().map(|sum| sum as f32).collect()
    }
}

/// Of rank `rank`, as large beside the matrix as `size` says: of those of the transformer whose names `is_changed` takes, and of CLIP.
pub fn changes(
    config: &PipelineConfig,
    (rank, size): (usize, f32),
    seed: u64,
    is_changed: impl Fn(Part, &str) -> bool,
) -> Vec<Change> {
    let mut rng = Rng(seed);
    let mut changes = Vec::new();
    for part in [Part::Transformer, Part::Clip] {
        for needed in part.needed(config).unwrap() {
            let (Some(target), [n, k]) = (needed.name.strip_suffix(".weight"), &needed.shape[..]) else {
                continue;
            };
            if !is_changed(part, target) || target.contains("embedding") {
                continue;
            }
            let scale = (size / (*k as f32 * rank as f32).sqrt()).sqrt();
            let (down, up) = (rng.f32s(rank * k, scale), rng.f32s(n * rank, scale));
            changes.push(Change { part, target: target.to_string(), rank, n: *n, k: *k, down, up });
        }
    }
    changes
}

/// Writes them as diffusers does, in f32.
pub fn write(dir: &Path, name: &str, changes: &[Change]) -> PathBuf {
    let mut tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    for change in changes {
        let prefix = if change.part == Part::Clip { "text_encoder" } else { "transformer" };
        let name = format!("{prefix}.{}", change.target);
        tensors.insert(format!("{name}.lora_A.weight"), (vec![change.rank, change.k], bytes(&change.down)));
        tensors.insert(format!("{name}.lora_B.weight"), (vec![change.n, change.rank], bytes(&change.up)));
    }
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let path = dir.join(name);
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}
