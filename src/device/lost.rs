//! Failures after which nothing on a machine is to be trusted, and what is done about them.
//!
//! Most refusals leave a machine as it was: the operation did not happen. But a kernel that fails is only seen by whoever waits for
//! it, takes everything behind it along, and on a GPU the context with it: the driver answers every later call with the same error. A
//! wait that fails for any other reason leaves it unknown what has been done. From then on a machine is *lost*: it says so
//! ([`Device::check_alive`]), and a pipeline hands out no picture that was, or might have been, computed on it.
//!
//! It is opened again in place ([`Device::revive`]), for all clones, when nothing is left that was made on it before: handles and
//! addresses of a context that is gone must reach nobody.

use super::Device;
use crate::{Error, Result};

/// What can be done about a machine that is lost.
pub(crate) const RECOVER: &str = "recover the pipeline, or load it again";

/// The same while memory of it is held elsewhere.
pub(crate) const IN_USE: &str = "something else still holds memory of it: drop or recover the other pipelines that were loaded there, then recover this one";

/// The same where opening it again has not helped.
pub(crate) const STILL_BROKEN: &str = "opening it again has not helped, because the GPU does not answer or something else in this process holds its \
                                       context: restart the process, if it cannot let go of it";

/// An [`Error::Poisoned`].
pub(crate) fn poisoned(device: &str, cause: &str, advice: &str) -> Error {
    Error::Poisoned { device: device.to_string(), cause: cause.to_string(), advice: advice.to_string() }
}

impl Device {
    /// Whether it can still be worked with.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when it cannot.
    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.machine().lost() {
            None => Ok(()),
            Some(cause) => Err(poisoned(self.machine().name(), &cause, RECOVER)),
        }
    }

    /// Opens a lost machine again, for all clones; does nothing to one that is not.
    ///
    /// # Errors
    /// [`Error::Poisoned`] while something that was made on it is left, and where it is lost as before.
    pub(crate) fn revive(&self) -> Result<()> {
        let Some(cause) = self.machine().lost() else { return Ok(()) };
        match self.machine().revive() {
            Ok(true) => Ok(()),
            Ok(false) => Err(poisoned(self.machine().name(), &cause, IN_USE)),
            Err(error) => {
                tracing::warn!("{} could not be opened again: {error}", self.machine().name());
                Err(poisoned(self.machine().name(), &cause, STILL_BROKEN))
            }
        }
    }
}

/// What a machine knows of the failure that it was lost by: the first one, in words.
#[derive(Debug, Default)]
pub(crate) struct Loss(std::sync::Mutex<Option<String>>);

impl Loss {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The machine is lost by this, unless it has been before.
    pub fn note(&self, error: &Error) {
        self.lock().get_or_insert_with(|| words(error));
    }

    /// What it is lost by.
    pub fn cause(&self) -> Option<String> {
        self.lock().clone()
    }

    /// It has been opened again.
    pub fn forget(&self) {
        *self.lock() = None;
    }
}

/// An operation and why it failed.
pub(crate) fn words(error: &Error) -> String {
    match error {
        Error::Device { operation, reason, .. } => format!("{operation}: {reason}"),
        other => other.to_string(),
    }
}
