//! Reading a JSON file and naming the field at fault.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// No real width or length comes near this (vocabularies do); products of three such numbers still fit 64 bits.
const LARGEST_SIZE: u64 = 1 << 20;
/// Of layers and heads: the largest models of any kind have some hundred. A plan names every tensor of every layer.
const LARGEST_COUNT: u64 = 1 << 9;

/// Reads a config file; what is malformed is named with line and column.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    crate::files::read_json(path, crate::files::Kind::Config)
}

/// A class by its name, or by the file and the name of code that came with the model.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ClassName {
    Known(String),
    Custom(Vec<String>),
}

/// `quantization_config`: what quantizers leave in the config of a model, as far as it decides whether we can read that.
#[derive(Deserialize)]
pub(super) struct QuantizationFile {
    quant_method: Option<String>,
    quant_type: Option<serde_json::Value>,
    load_in_8bit: Option<bool>,
    load_in_4bit: Option<bool>,
    bnb_4bit_quant_type: Option<String>,
}

/// The file whose fields are being checked.
pub(super) struct Fields<'a>(pub &'a Path);

impl Fields<'_> {
    pub fn wrong(&self, what: impl Into<String>) -> Error {
        Error::weights(PathBuf::from(self.0), what)
    }

    pub fn unsupported(&self, field: &str, got: impl std::fmt::Display, expected: &str) -> Error {
        Error::Unsupported(format!("{}: {field} {got} is not supported: {expected}", self.0.display()))
    }

    /// A width or count, `default` where the file has none.
    pub fn size(&self, field: &str, value: Option<u64>, default: u64) -> Result<usize> {
        let value = value.unwrap_or(default);
        if value == 0 || value > LARGEST_SIZE {
            return Err(self.wrong(format!("{field} is {value}: expected 1 to {LARGEST_SIZE}")));
        }
        Ok(value as usize)
    }

    /// A number of layers or heads.
    pub fn count(&self, field: &str, value: Option<u64>, default: u64) -> Result<usize> {
        let count = self.size(field, value, default)?;
        if count as u64 > LARGEST_COUNT {
            return Err(self.wrong(format!("{field} is {count}: expected 1 to {LARGEST_COUNT}")));
        }
        Ok(count)
    }

    /// A factor, of which the sampler or the VAE makes an f32: positive, and no further from 1 than a real one.
    pub fn factor(&self, field: &str, value: f64) -> Result<f64> {
        if !(1e-3..=1e3).contains(&value) {
            return Err(self.wrong(format!("{field} is {value}: expected 0.001 to 1000")));
        }
        Ok(value)
    }

    /// A number that is added, of either sign.
    pub fn offset(&self, field: &str, value: f64) -> Result<f64> {
        if !(-1e3..=1e3).contains(&value) {
            return Err(self.wrong(format!("{field} is {value}: expected -1000 to 1000")));
        }
        Ok(value)
    }

    pub fn eps(&self, field: &str, value: Option<f64>, default: f64) -> Result<f32> {
        let value = value.unwrap_or(default);
        // As the f32 that it becomes.
        if !((value as f32).is_normal() && value > 0.0 && value < 1.0) {
            return Err(self.wrong(format!("{field} is {value}: expected a small positive number")));
        }
        Ok(value as f32)
    }

    /// An absent class name is taken for the right one: hand-made folders often leave it out.
    pub fn class(&self, field: &str, found: Option<&ClassName>, expected: &str) -> Result<()> {
        match found {
            Some(ClassName::Known(class)) if class == expected => Ok(()),
            Some(ClassName::Known(class)) => {
                Err(self.unsupported(field, class, &format!("only {expected} is")))
            }
            Some(ClassName::Custom(names)) => {
                let text = format!("only {expected} is, and no code that comes with a model");
                Err(self.unsupported(field, names.join("."), &text))
            }
            None => Ok(()),
        }
    }

    /// Weights that were quantized otherwise than [`crate::weights::bitsandbytes`] reads are refused before they are looked at.
    pub fn quantization(&self, found: Option<&QuantizationFile>) -> Result<()> {
        let Some(found) = found else { return Ok(()) };
        let refused = |got: String| {
            let expected = "only bitsandbytes' nf4 is, and weights in bf16, f16 or f32";
            Err(self.unsupported("quantization_config", got, expected))
        };
        match found.quant_method.as_deref().unwrap_or("bitsandbytes") {
            "bitsandbytes" => {}
            other => {
                let kind = found.quant_type.as_ref().map_or(String::new(), |kind| format!(" ({kind})"));
                return refused(format!("of {other}{kind}"));
            }
        }
        if found.load_in_8bit == Some(true) {
            return refused("of bitsandbytes in int8".to_string());
        }
        match found.bnb_4bit_quant_type.as_deref() {
            Some(kind) if kind != "nf4" && found.load_in_4bit != Some(false) => {
                refused(format!("of bitsandbytes in {kind}"))
            }
            _ => Ok(()),
        }
    }
}
