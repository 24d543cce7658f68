//! The model that is always there: a tiny FLUX pipeline with generated, untrained weights. It shows that everything
//! runs; what it draws is texture, not what the prompt says.

use std::path::Path;

use crate::weights::generated::Manifest;
use crate::{Error, Result};

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../models/demo/pipeline/", $path)))),*]
    };
}

/// Config files and tokenizers, as in `models/demo/pipeline`.
const FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "vae/config.json",
];

/// What a user should be told about it.
pub const NOTICE: &str = "using the bundled model, whose weights are generated, not trained: the picture is texture, whatever the prompt";

/// Writes the model into `dir` as a diffusers-layout folder (about 15 MB).
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
    Manifest::parse(include_str!("../models/demo/manifest.json"))?.write_weights(dir)
}
