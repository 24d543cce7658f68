//! Model folders whose weights are computed, not trained: every value is a hash of its tensor's name and its index, so
//! that this crate and the Python recipe of the golden tests write the same bytes, and a model of any size needs no
//! download. The pictures they draw are texture.
//!
//! A [`Manifest`] lists the tensors with their scale and mean; `tests/golden/README.md` has the formula with vectors.
//! [`Source::generated`](super::Source::generated) needs neither list nor files: a model of full size is computed while it
//! loads.

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

/// Of a word of a name: splitmix64's output.
pub fn bits(name_hash: u64, index: u64) -> u64 {
    let z = name_hash.wrapping_add(index).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `mean + scale * r(name, index)` with `r` in [-1, 1), every step rounded to f32.
pub fn value(name_hash: u64, index: u64, scale: f32, mean: f32) -> f32 {
    let r = ((bits(name_hash, index) >> 40) as i64 - (1 << 23)) as f32 / (1 << 23) as f32;
    mean + scale * r
}

/// FNV-1a, 64 bits.
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// What computes a tensor of a [`Source::generated`](super::Source::generated).
#[derive(Clone, Copy, Debug)]
pub struct Values {
    hash: u64,
    scale: f32,
    mean: f32,
}

/// Bytes that one thread computes at a time: starting a thread for fewer costs more than it saves.
const BYTES_PER_THREAD: usize = 1 << 19;

impl Values {
    /// Such that activations keep their size: weights of variance 1 / fan-in, norms near 1, small biases.
    pub fn of(name: &str, shape: &[usize]) -> Values {
        let fan_in: usize = shape.iter().skip(1).product();
        let (scale, mean) = match shape.len() {
            _ if name.ends_with(".bias") => (0.02, 0.0),
            0 | 1 => (0.1, 1.0),
            _ => ((3.0 / fan_in as f32).sqrt(), 0.0),
        };
        Values { hash: name_hash(name), scale, mean }
    }

    /// The tensor's bytes from `start` on, as bf16, little-endian.
    ///
    /// # Errors
    /// [`Error::Input`] for half a value.
    pub fn read_bf16(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        if !start.is_multiple_of(2) || !buf.len().is_multiple_of(2) {
            return Err(Error::Input("generated weights are read in whole bf16 values".to_string()));
        }
        let fill = |first: u64, buf: &mut [u8]| {
            for (index, bytes) in (first..).zip(buf.chunks_exact_mut(2)) {
                let value = value(self.hash, index, self.scale, self.mean);
                bytes.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
            }
        };
        if buf.len() <= BYTES_PER_THREAD {
            fill(start / 2, buf);
            return Ok(());
        }
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let piece = buf.len().div_ceil(threads).max(BYTES_PER_THREAD).next_multiple_of(2);
        std::thread::scope(|scope| {
            for (i, part) in buf.chunks_mut(piece).enumerate() {
                scope.spawn(move || fill(start / 2 + (i * piece / 2) as u64, part));
            }
        });
        Ok(())
    }
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
                Ok((tensor.name.as_str(), view.map_err(|e| Error::weights(&path, e.to_string()).because(e))?))
            });
            let views = views.collect::<Result<Vec<_>>>()?;
            let bytes = safetensors::serialize(views, None)
                .map_err(|e| Error::weights(&path, e.to_string()).because(e))?;
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            }
            std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the pieces and threads, the same values; and such that a Linear keeps the size of its input.
    #[test]
    fn any_part_of_a_generated_tensor_is_that_part_of_the_whole() {
        let values = Values::of("transformer/x.weight", &[2048, 512]);
        let mut whole = vec![0; 2 * 2048 * 512];
        values.read_bf16(0, &mut whole).unwrap();
        for (start, len) in [(0, 2), (2, 6), (BYTES_PER_THREAD - 2, 8), (12346, whole.len() - 12346)] {
            let mut part = vec![0; len];
            values.read_bf16(start as u64, &mut part).unwrap();
            assert!(part == whole[start..start + len], "{start}..+{len}");
        }
        let floats = whole.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64());
        let variance = floats.map(|v| v * v).sum::<f64>() / (2048.0 * 512.0);
        assert!((variance * 512.0 - 1.0).abs() < 0.01, "{variance}");
        for (start, len) in [(1, 2), (0, 3)] {
            let refused = values.read_bf16(start, &mut vec![0; len]).unwrap_err().to_string();
            assert!(refused.contains("whole bf16 values"), "{refused}");
        }
    }
}
