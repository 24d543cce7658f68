//! Model folders whose weights are computed, not trained: every value is a hash of its tensor's name and its index, so
//! that this crate and the Python recipe of the golden tests write the same bytes, and a model of any size needs no
//! download. The pictures they draw are texture.
//!
//! A [`Manifest`] lists the tensors with their scale and mean; `tests/golden/README.md` has the formula with vectors.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::Dtype;
use crate::{Error, Result};

/// The tensors of a generated model.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// Salt of every name.
    pub pipeline: String,
    /// In file order.
    pub tensors: Vec<Tensor>,
}

/// One tensor of a [`Manifest`].
#[derive(Debug, Deserialize)]
pub struct Tensor {
    /// Relative to the model folder; its first part is the component.
    pub file: String,
    /// As in the file.
    pub name: String,
    /// As in the file.
    pub shape: Vec<usize>,
    /// `F32` or `BF16`.
    pub dtype: String,
    /// Half the width of the values' range.
    pub scale: f32,
    /// Middle of the values' range.
    pub mean: f32,
}

/// `mean + scale * r(name, index)` with `r` in [-1, 1), every step rounded to f32.
pub fn value(name_hash: u64, index: u64, scale: f32, mean: f32) -> f32 {
    let mut z = name_hash.wrapping_add(index).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let r = ((z >> 40) as i64 - (1 << 23)) as f32 / (1 << 23) as f32;
    mean + scale * r
}

/// FNV-1a, 64 bits.
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Manifest {
    /// Reads a manifest's JSON.
    ///
    /// # Errors
    /// [`Error::Input`] when it is none.
    pub fn parse(json: &str) -> Result<Manifest> {
        serde_json::from_str(json).map_err(|e| Error::Input(format!("a manifest of generated weights: {e}")))
    }

    /// Writes the weight files below `dir`, where the config files and tokenizers already are.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be written, [`Error::Input`] for a dtype other than F32 and BF16.
    pub fn write_weights(&self, dir: &Path) -> Result<()> {
        type Contents<'a> = Vec<(&'a Tensor, Dtype, Vec<u8>)>;
        let mut files: BTreeMap<&str, Contents<'_>> = BTreeMap::new();
        for tensor in &self.tensors {
            let component = tensor.file.split('/').next().unwrap_or_default();
            let hash = name_hash(&format!("{}/{component}/{}", self.pipeline, tensor.name));
            let count = tensor.shape.iter().product::<usize>() as u64;
            let values = (0..count).map(|i| value(hash, i, tensor.scale, tensor.mean));
            let (dtype, bytes) = match tensor.dtype.as_str() {
                "F32" => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
                "BF16" => {
                    let bytes = values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
                    (Dtype::BF16, bytes)
                }
                other => return Err(Error::Input(format!("generated weights of dtype {other}"))),
            };
            files.entry(&tensor.file).or_default().push((tensor, dtype, bytes));
        }
        for (file, tensors) in files {
            let path = dir.join(file);
            let views = tensors.iter().map(|(tensor, dtype, bytes)| {
                let view = safetensors::tensor::TensorView::new(*dtype, tensor.shape.clone(), bytes);
                Ok((tensor.name.as_str(), view.map_err(|e| Error::weights(&path, e.to_string()))?))
            });
            let views = views.collect::<Result<Vec<_>>>()?;
            let bytes =
                safetensors::serialize(views, None).map_err(|e| Error::weights(&path, e.to_string()))?;
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            }
            std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }
}
