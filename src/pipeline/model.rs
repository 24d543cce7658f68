//! A model's files, opened and checked; nothing is loaded yet.

use std::path::Path;
use std::sync::Arc;

use crate::config::{ClipPooling, PipelineConfig};
use crate::pipeline::{ModelFolder, Shape};
use crate::text::tokenizer::{ClipTokenizer, T5Tokenizer};
use crate::weights::Source;
use crate::weights::lora::Lora;
use crate::{Error, Result};

/// A model: configs read, tokenizers loaded, every tensor found and checked.
#[derive(Debug)]
pub struct Model {
    pub(super) config: PipelineConfig,
    pub(super) folder: ModelFolder,
    pub(super) source: Source,
    pub(super) clip_tokenizer: Arc<ClipTokenizer>,
    pub(super) t5_tokenizer: Arc<T5Tokenizer>,
    /// In use from the beginning.
    pub(super) loras: Vec<(Lora, f32)>,
}

impl Model {
    /// Opens a folder that holds `model_index.json`, by its path or as [`ModelFolder::find`] finds it, or a file that holds a
    /// transformer.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Weights`] or [`Error::Unsupported`], naming the file and tensor; nothing is loaded yet.
    pub fn open(model: impl AsRef<Path>) -> Result<Model> {
        Model::open_folder(&ModelFolder::find(model)?)
    }

    /// The bundled model, which draws colored shapes.
    ///
    /// # Errors
    /// Those of [`ModelFolder::demo`].
    pub fn demo() -> Result<Model> {
        Model::open_folder(&ModelFolder::demo()?)
    }

    /// Opens a folder that has been found.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_folder(folder: &ModelFolder) -> Result<Model> {
        let opened = Model::with(folder.config()?, folder, |config| Source::of(folder.files(), config));
        opened.map_err(|error| folder.advised(error))
    }

    /// A shape of this size with the steps and T5 tokens that this model is meant for.
    pub fn shape(&self, width: usize, height: usize) -> Shape {
        let PipelineConfig { steps, t5_length, .. } = self.config;
        Shape::new(width, height).steps(steps).t5_length(t5_length)
    }

    /// A model of any size without weight files: see [`Source::generated`]. `tokenizers` is a folder with `tokenizer` and
    /// `tokenizer_2`.
    ///
    /// # Errors
    /// Those of [`Model::open`] that concern tokenizers.
    #[cfg(feature = "check")]
    pub fn generated(config: PipelineConfig, tokenizers: &Path) -> Result<Model> {
        Model::with(config, &ModelFolder::find(tokenizers)?, Source::generated)
    }

    /// The weights and tokenizers of the folder `dir`, whose config files do not count.
    ///
    /// # Errors
    /// Those of [`Model::open`] that concern weights and tokenizers.
    #[cfg(feature = "check")]
    pub fn open_as(config: PipelineConfig, dir: &Path) -> Result<Model> {
        Model::with(config, &ModelFolder::find(dir)?, |config| Source::open(dir, config))
    }

    /// Whether a folder has configs and tokenizers that fit together, whatever weights there are.
    ///
    /// # Errors
    /// Those of [`Model::open`] that concern them.
    #[cfg(feature = "fetch")]
    pub(crate) fn check_tokenizers(folder: &ModelFolder) -> Result<()> {
        Model::tokenizers(&PipelineConfig::open(folder.path())?, folder.path()).map(drop)
    }

    fn with(
        config: PipelineConfig,
        folder: &ModelFolder,
        source: impl FnOnce(&PipelineConfig) -> Result<Source>,
    ) -> Result<Model> {
        let (clip_tokenizer, t5_tokenizer) = Model::tokenizers(&config, folder.path())?;
        let source = source(&config)?;
        Ok(Model { config, folder: folder.clone(), source, clip_tokenizer, t5_tokenizer, loras: Vec::new() })
    }

    /// CLIP's and T5's.
    fn tokenizers(config: &PipelineConfig, dir: &Path) -> Result<(Arc<ClipTokenizer>, Arc<T5Tokenizer>)> {
        let clip_tokenizer = Arc::new(ClipTokenizer::open(&dir.join("tokenizer"))?);
        let t5_tokenizer = Arc::new(T5Tokenizer::open(&dir.join("tokenizer_2"))?);
        for (what, ids, rows) in [
            ("tokenizer", clip_tokenizer.vocab_size(), config.clip.vocab_rows),
            ("tokenizer_2", t5_tokenizer.vocab_size(), config.t5.vocab_rows),
        ] {
            if ids > rows {
                let text = format!("has {ids} ids, but the embedding table of its encoder only {rows} rows");
                return Err(Error::weights(dir.join(what), text));
            }
        }
        if let ClipPooling::FirstOf(id) = config.clip.pooling
            && id != clip_tokenizer.eos_id()
        {
            let text = format!(
                "ends prompts with id {}, but text_encoder/config.json looks for eos_token_id {id}",
                clip_tokenizer.eos_id()
            );
            return Err(Error::weights(dir.join("tokenizer"), text));
        }
        Ok((clip_tokenizer, t5_tokenizer))
    }

    /// What the config files say.
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// Bytes of tensors that were read from its files so far: how a test knows what loading costs.
    #[cfg(feature = "check")]
    pub fn bytes_read(&self) -> u64 {
        self.source.bytes_read()
    }

    /// What a person should know of its files: weights that nothing uses, and which of two sets was taken.
    pub fn warnings(&self) -> &[String] {
        self.source.warnings()
    }

    /// Tells models apart: the first 64 bits, in hex, of a SHA-256 over every tensor's name, shape and first 4096 bytes.
    /// LoRAs do not count.
    ///
    /// # Errors
    /// [`Error::Io`] when a weight file cannot be read.
    pub fn digest(&self) -> Result<String> {
        self.source.digest()
    }
}
