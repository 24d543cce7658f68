//! Reading a JSON file and naming the field at fault.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// No real width, count or length comes near this; products of three such numbers still fit 64 bits.
const LARGEST_SIZE: u64 = 1 << 20;

/// Reads a JSON file; what is malformed is named with line and column.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::weights(path, format!("malformed JSON: {e}")))
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

    pub fn eps(&self, field: &str, value: Option<f64>, default: f64) -> Result<f32> {
        let value = value.unwrap_or(default);
        if !(value > 0.0 && value < 1.0) {
            return Err(self.wrong(format!("{field} is {value}: expected a small positive number")));
        }
        Ok(value as f32)
    }

    /// An absent class name is taken for the right one: hand-made folders often leave it out.
    pub fn class(&self, field: &str, found: Option<&str>, expected: &str) -> Result<()> {
        match found {
            Some(class) if class != expected => {
                Err(self.unsupported(field, class, &format!("only {expected} is")))
            }
            _ => Ok(()),
        }
    }
}
