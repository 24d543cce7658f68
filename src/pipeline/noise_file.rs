//! Starting noise from a file, as a dump holds it.

use std::path::{Path, PathBuf};

use crate::pipeline::{Noise, Plan};
use crate::weights::{Dtype, SafeTensors, TensorInfo};
use crate::{Error, Result};

/// A safetensors file with one f32 tensor, packed `[1, tokens, channels]`, of which the header has been read.
#[derive(Clone, Debug)]
pub struct NoiseFile {
    path: PathBuf,
    tensor: TensorInfo,
}

impl NoiseFile {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Weights`] when it is anything else.
    pub fn open(path: impl AsRef<Path>) -> Result<NoiseFile> {
        let path = path.as_ref();
        let wrong = |what: &str| {
            Error::weights(path, format!("{what}; expected one f32 tensor [1, tokens, channels]"))
        };
        let file = SafeTensors::open(path)?;
        let mut tensors = file.iter();
        match (tensors.next(), tensors.next()) {
            (Some(tensor), None) if tensor.dtype == Dtype::F32 && tensor.shape.len() == 3 => {
                Ok(NoiseFile { path: path.to_path_buf(), tensor: tensor.clone() })
            }
            (Some(tensor), None) => {
                Err(wrong(&format!("{} is {:?} {:?}", tensor.name, tensor.dtype, tensor.shape)))
            }
            _ => Err(wrong("not exactly one tensor")),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the values, once the header says that they are those that `plan` takes.
    ///
    /// # Errors
    /// [`Error::Input`] for noise of another size, [`Error::Weights`] when a value is not finite, [`Error::Io`].
    pub fn read(&self, plan: &Plan) -> Result<Noise> {
        let (tokens, channels) = (plan.shape().image_tokens(plan.config()), plan.config().flux.in_channels);
        let expected = [1, tokens, channels];
        if self.tensor.shape != expected {
            return Err(Error::Input(format!(
                "noise {:?} of {} values; this size takes {expected:?}: {tokens} tokens x {channels} channels",
                self.tensor.shape,
                self.tensor.elements()
            )));
        }
        Ok(Noise::Given(self.tensor.read_f32()?))
    }
}
