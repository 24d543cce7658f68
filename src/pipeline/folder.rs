//! Where a model's files lie.

use std::path::{Path, PathBuf};

#[cfg(feature = "demo")]
use std::sync::Arc;

use crate::config::{PipelineConfig, file_parts};
#[cfg(feature = "demo")]
use crate::files::Temporary;
#[cfg(feature = "hub")]
use crate::weights::hub;
use crate::weights::{InFormats, InNf4, ModelFiles, Part, PartFiles};
use crate::{Error, Result};

/// Where tokenizers and configs are looked for that a file does not hold.
#[cfg(feature = "hub")]
const PUBLISHED: [&str; 2] = ["black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev"];

/// A model's folder in the diffusers layout, and files in place of some of its parts. Its config files and the headers of these
/// files suffice for a [`Plan`](super::Plan).
///
/// ```no_run
/// use schnell::{Model, ModelFolder};
/// # fn main() -> schnell::Result<()> {
/// let folder = ModelFolder::find("FLUX.1-schnell")?.transformer("flux1-schnell-Q4_K_S.gguf")?;
/// let model = Model::open_folder(&folder)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ModelFolder {
    files: ModelFiles,
    /// Its name on the hub, where it was found by that.
    #[cfg(feature = "hub")]
    hub_name: Option<String>,
    /// Goes with the last who uses it.
    #[cfg(feature = "demo")]
    _written: Option<Arc<Temporary>>,
}

impl ModelFolder {
    /// A folder by its path, or (feature `hub`) by the `org/name`, or `org/name@revision`, of one in the cache of the Hugging
    /// Face tools; or a file that holds a transformer, alone or with other parts. What it does not hold comes from
    /// FLUX.1-schnell or FLUX.1-dev in that cache: tokenizers and configs at least. Of a folder nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an `org/name` that is not there, saying how to get it; for a file
    /// [`Error::Weights`](crate::Error::Weights) when it holds no transformer, and those of reading it.
    pub fn find(model: impl AsRef<Path>) -> Result<ModelFolder> {
        let path = model.as_ref();
        if path.is_file() {
            return ModelFolder::of_file(path);
        }
        #[cfg(feature = "hub")]
        if let Some(name) = path.to_str()
            && hub::is_name(name)
            && !path.exists()
            && !path.extension().is_some_and(|end| ["safetensors", "gguf", "sft"].iter().any(|e| end == *e))
        {
            return Ok(ModelFolder::of_hub(hub::snapshot(name)?, name));
        }
        Ok(ModelFolder::at(path.to_path_buf()))
    }

    /// All that a file holds, and the rest from a published model.
    fn of_file(path: &Path) -> Result<ModelFolder> {
        let parts = file_parts(path)?;
        let Some(transformer) = parts.iter().find(|files| files.part() == Part::Transformer) else {
            let held: Vec<String> = parts.iter().map(|files| files.part().to_string()).collect();
            let what = format!(
                "this holds {} and no transformer; name it beside a model, with --{}",
                held.join(" and "),
                held.first().map_or("t5", String::as_str)
            );
            return Err(Error::weights(path, what));
        };
        let mut folder = ModelFolder::published(path, transformer)?;
        parts.into_iter().for_each(|part| folder.files.set(part));
        Ok(folder)
    }

    /// The published model in the cache that is most like this transformer.
    #[cfg(feature = "hub")]
    fn published(path: &Path, transformer: &PartFiles) -> Result<ModelFolder> {
        let guidance = transformer.has("time_text_embed.guidance_embedder.linear_1.weight");
        let mut names = PUBLISHED;
        if guidance {
            names.reverse();
        }
        let found = names.iter().find_map(|name| Some(ModelFolder::of_hub(hub::snapshot(name).ok()?, name)));
        found.ok_or_else(|| {
            Error::Input(format!(
                "{} holds no tokenizers and configs, and no published FLUX.1 is in the Hugging Face cache to take them from: \
                 {} gets them, or name a folder in the diffusers layout that has them with --model, and this file with \
                 --transformer",
                path.display(),
                hub::how_to_fetch_tokenizers(names[0])
            ))
        })
    }

    #[cfg(not(feature = "hub"))]
    fn published(path: &Path, _transformer: &PartFiles) -> Result<ModelFolder> {
        Err(Error::Input(format!(
            "{} holds no tokenizers and configs: name a folder in the diffusers layout that has them, and this file as its \
             transformer",
            path.display()
        )))
    }

    fn at(path: PathBuf) -> ModelFolder {
        ModelFolder {
            files: ModelFiles::folder(&path),
            #[cfg(feature = "hub")]
            hub_name: None,
            #[cfg(feature = "demo")]
            _written: None,
        }
    }

    /// With the transformer that `file` holds, safetensors or GGUF, or that lies in the folder `file` as diffusers saves it, in
    /// place of this folder's. Its sizes are told by its tensors; the sampler is that of FLUX.1-dev where it has a guidance
    /// embedder and the folder's has none, and the other way round.
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights) for a file that holds none, and those of reading its header.
    pub fn transformer(self, file: impl AsRef<Path>) -> Result<ModelFolder> {
        self.with(Part::Transformer, file.as_ref())
    }

    /// With the T5 encoder that `file` holds.
    ///
    /// # Errors
    /// As [`ModelFolder::transformer`].
    pub fn t5(self, file: impl AsRef<Path>) -> Result<ModelFolder> {
        self.with(Part::T5, file.as_ref())
    }

    /// With the CLIP text encoder that `file` holds.
    ///
    /// # Errors
    /// As [`ModelFolder::transformer`].
    pub fn clip(self, file: impl AsRef<Path>) -> Result<ModelFolder> {
        self.with(Part::Clip, file.as_ref())
    }

    /// With the VAE that `file` holds.
    ///
    /// # Errors
    /// As [`ModelFolder::transformer`].
    pub fn vae(self, file: impl AsRef<Path>) -> Result<ModelFolder> {
        self.with(Part::Vae, file.as_ref())
    }

    fn with(mut self, part: Part, file: &Path) -> Result<ModelFolder> {
        if file.is_dir() {
            self.files.set(PartFiles::own_folder(file, part)?);
            return Ok(self);
        }
        let parts = file_parts(file)?;
        let held: Vec<String> = parts.iter().map(|files| files.part().to_string()).collect();
        let Some(files) = parts.into_iter().find(|files| files.part() == part) else {
            let what = format!("this holds {}, not {part}; name it with --{}", held.join(", "), held[0]);
            return Err(Error::weights(file, what));
        };
        self.files.set(files);
        Ok(self)
    }

    /// Where the parts lie.
    pub(crate) fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// The snapshot at `path` of what the hub calls `name`.
    #[cfg(feature = "hub")]
    pub(crate) fn of_hub(path: PathBuf, name: &str) -> ModelFolder {
        ModelFolder { hub_name: Some(name.to_string()), ..ModelFolder::at(path) }
    }

    /// `error` of a file here, with what may mend it.
    pub(super) fn advised(&self, error: Error) -> Error {
        #[cfg(feature = "hub")]
        if let Some(name) = &self.hub_name {
            return match error {
                Error::Weights { path, what, source } if path.starts_with(self.path()) => {
                    Error::Weights { path, what: what + &hub::advice(name), source }
                }
                Error::Io { action, path, source }
                    if source.kind() == std::io::ErrorKind::NotFound && path.starts_with(self.path()) =>
                {
                    let text = format!("{source}{}", hub::advice(name));
                    Error::Io { action, path, source: std::io::Error::new(source.kind(), text) }
                }
                other => other,
            };
        }
        error
    }

    /// The bundled model, written to a temporary folder that goes with the last clone of this.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when it cannot be written.
    #[cfg(feature = "demo")]
    pub fn demo() -> Result<ModelFolder> {
        let written = Arc::new(Temporary::folder(crate::demo::write)?);
        Ok(ModelFolder { _written: Some(written.clone()), ..ModelFolder::at(written.path().to_path_buf()) })
    }

    /// The bundled model, which this build has not: it lacks the feature `demo`.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported), always.
    #[cfg(not(feature = "demo"))]
    pub fn demo() -> Result<ModelFolder> {
        let text = "schnell was built without the bundled model (feature `demo`): name a model";
        Err(crate::Error::Unsupported(text.to_string()))
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        self.files.dir()
    }

    /// What the config files say, and what the weight files hold in few bits, where they are there.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when a config file is missing or unreadable,
    /// [`Error::Weights`](crate::Error::Weights) when one is malformed or they contradict each other,
    /// [`Error::Unsupported`](crate::Error::Unsupported) when they describe a model with no code here.
    pub fn config(&self) -> Result<PipelineConfig> {
        let config = PipelineConfig::open(self.path()).and_then(|config| config.with_files(&self.files));
        let mut config = config.map_err(|error| self.advised(error))?;
        config.in_nf4 = InNf4::find(&self.files, &config)?;
        config.in_formats = InFormats::find(&self.files, &config)?;
        Ok(config)
    }
}
