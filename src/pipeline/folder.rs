//! Where a model's files lie.

use std::path::{Path, PathBuf};

#[cfg(feature = "demo")]
use std::sync::Arc;

use crate::config::PipelineConfig;
#[cfg(feature = "demo")]
use crate::files::Temporary;
use crate::weights::InNf4;
#[cfg(feature = "hub")]
use crate::weights::hub;
use crate::{Error, Result};

/// A model's folder in the diffusers layout. Its config files suffice for a [`Plan`](super::Plan).
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    /// Its name on the hub, where it was found by that.
    #[cfg(feature = "hub")]
    hub_name: Option<String>,
    /// Goes with the last who uses it.
    #[cfg(feature = "demo")]
    _written: Option<Arc<Temporary>>,
}

impl ModelFolder {
    /// A folder by its path, or (feature `hub`) by the `org/name`, or `org/name@revision`, of one in the cache of the Hugging
    /// Face tools. Nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an `org/name` that is not there, saying how to get it.
    pub fn find(model: impl AsRef<Path>) -> Result<ModelFolder> {
        let path = model.as_ref();
        #[cfg(feature = "hub")]
        if let Some(name) = path.to_str()
            && hub::is_name(name)
            && !path.exists()
        {
            return Ok(ModelFolder::of_hub(hub::snapshot(name)?, name));
        }
        Ok(ModelFolder::at(path.to_path_buf()))
    }

    fn at(path: PathBuf) -> ModelFolder {
        ModelFolder {
            path,
            #[cfg(feature = "hub")]
            hub_name: None,
            #[cfg(feature = "demo")]
            _written: None,
        }
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
                Error::Weights { path, what, source } => {
                    Error::Weights { path, what: what + &hub::advice(name), source }
                }
                Error::Io { action, path, source } if source.kind() == std::io::ErrorKind::NotFound => {
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the config files say, and what the weight files hold in 4 bits, where they are there.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when a config file is missing or unreadable,
    /// [`Error::Weights`](crate::Error::Weights) when one is malformed or they contradict each other,
    /// [`Error::Unsupported`](crate::Error::Unsupported) when they describe a model with no code here.
    pub fn config(&self) -> Result<PipelineConfig> {
        let mut config = PipelineConfig::open(&self.path).map_err(|error| self.advised(error))?;
        config.in_nf4 = InNf4::find(&self.path, &config)?;
        Ok(config)
    }
}
