//! The model that is always there: a tiny FLUX pipeline that draws colored shapes, embedded in the binary.
//!
//! What it draws, how it was trained and how often it is right: `models/demo/README.md`.

use std::path::Path;

use crate::{Error, Result};

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../models/demo/pipeline/", $path)))),*]
    };
}

/// As in `models/demo/pipeline`.
const FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Writes the model into `dir` as a diffusers-layout folder (under 8 MB).
///
/// # Errors
/// [`Error::Io`] when a file cannot be written.
pub fn write(dir: &Path) -> Result<()> {
    for (path, bytes) in FILES {
        let path = dir.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
    }
    Ok(())
}
