//! Tensors in fp8, plain casts or with one scale a tensor, as ComfyUI's files have them.
//!
//! | name | what |
//! |---|---|
//! | `P.weight` | `F8_E4M3` or `F8_E5M2` |
//! | `P.scale_weight`, in newer files `P.weight_scale` | F32, one number: the weight is fp8 times it; 1 where it is absent |
//! | `P.scale_input`, `P.input_scale` | for products in fp8, which there are none of here |
//! | `P.comfy_quant` | U8, JSON that names the format |
//!
//! They read as f32, so that nothing is lost on the way to bf16 or NF4.
//!
//! Source: ComfyUI, `QUANTIZATION.md`, for the newer names.

use super::formats::Format;
use super::tensor::Encoding;
use super::{Component, Dtype, TensorInfo};
use crate::{Error, Result};

/// What the names of scales end in, in place of `weight`.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];

/// What else there is beside a weight.
const OTHERS: [&str; 3] = ["scale_input", "input_scale", "comfy_quant"];

/// The weight that a tensor of this name describes, if it is one that does.
pub(super) fn owner(name: &str) -> Option<String> {
    let stem = SCALES.iter().chain(&OTHERS).find_map(|suffix| name.strip_suffix(suffix))?;
    stem.ends_with('.').then(|| format!("{stem}weight"))
}

/// `info` as an f32 tensor when it is in fp8; `None` when it is not.
///
/// # Errors
/// [`Error::Unsupported`] for scales of rows or blocks, and for 4 bits of the same family (nvfp4, mxfp4); [`Error::Weights`]
/// for a scale that is no positive number.
pub(super) fn open(component: &Component, info: &TensorInfo) -> Result<Option<TensorInfo>> {
    let stem = info.name.strip_suffix("weight").filter(|stem| stem.ends_with('.'));
    let beside = |suffix: &str| component.get(&format!("{}{suffix}", stem?));
    let format = match info.dtype {
        Dtype::F8_E4M3 => Format::F8E4M3,
        Dtype::F8_E5M2 => Format::F8E5M2,
        Dtype::U8 if SCALES.iter().any(|suffix| beside(suffix).is_some()) => {
            return Err(Error::Unsupported(format!(
                "{}: tensor {}: 4 bits with scales of blocks (nvfp4, mxfp4) are not supported: use NF4, fp8 or GGUF",
                info.file.path().display(),
                info.name
            )));
        }
        _ => return Ok(None),
    };
    let scale = match SCALES.iter().find_map(|suffix| beside(suffix)) {
        None => 1.0,
        Some(scale) if scale.elements() != 1 => {
            return Err(Error::Unsupported(format!(
                "{}: tensor {} has {} numbers: only one scale a tensor is supported",
                scale.file.path().display(),
                scale.name,
                scale.elements()
            )));
        }
        Some(scale) => {
            let value = scale.read_f32()?[0];
            if value <= 0.0 {
                let what = format!("tensor {} is {value}: expected a positive scale", scale.name);
                return Err(Error::weights(scale.file.path(), what));
            }
            value
        }
    };
    Ok(Some(TensorInfo {
        dtype: Dtype::F32,
        bytes: 4 * info.elements() as u64,
        encoding: Encoding::Packed { format, scale },
        ..info.clone()
    }))
}
