//! Pipelines whose machine is lost, or whose weights are not known any more: what they say, and how they come back.
//!
//! `device/lost.rs` says when a machine is lost. Errors of all other kinds leave a pipeline as it was: the next picture is what it
//! would have been.

use std::ops::ControlFlow::Continue;

use crate::device::lost::{RECOVER, poisoned, words};
use crate::memory::arena::Arena;
use crate::{Error, Result};

use super::{Model, Pipeline, Plan, human_bytes};

impl Pipeline {
    /// Whether every call is refused with [`Error::Poisoned`] until [`Pipeline::recover`]: what a program that serves pictures tells
    /// whoever asks if it is ready.
    pub fn is_poisoned(&self) -> bool {
        self.check_usable().is_err()
    }

    /// Refuses to work with what cannot be trusted.
    pub(super) fn check_usable(&self) -> Result<()> {
        match &self.poisoned {
            Some(cause) => Err(poisoned(&self.capability().name, cause, RECOVER)),
            None => self.device.check_alive(),
        }
    }

    /// From now on nothing here is to be trusted.
    pub(super) fn poison(&mut self, error: &Error) {
        self.poisoned.get_or_insert_with(|| words(error));
    }

    /// Loads it again after [`Error::Poisoned`]: gives back what it holds, opens the device anew if that is lost, and loads the weights of
    /// `model` as the builder did, with the LoRAs that were in use. What has been learnt of times is kept, prompts are forgotten. Does nothing where
    /// nothing is wrong.
    ///
    /// Nothing is there twice: all device and pinned memory of the old pipeline is given back before anything new is asked for. If it
    /// fails, the pipeline holds none and is poisoned as before; it may be tried again.
    ///
    /// A device is lost for all pipelines on it, and is opened again when the last of them has let go: `recover` of the others fails
    /// until then, and is called once more. On a GPU the whole primary context goes. Where something else in the process holds that,
    /// such as the CUDA runtime or another library, the driver gives the broken one again; then only another process helps.
    ///
    /// ```no_run
    /// # use schnell::{Error, Model, Pipeline, Request};
    /// # fn main() -> schnell::Result<()> {
    /// let model = Model::open("FLUX.1-schnell")?;
    /// let mut pipeline = Pipeline::builder(&model).load()?;
    /// let request = Request::new("a cat");
    /// let drawn = pipeline.generate(&request);
    /// if drawn.is_err() && pipeline.is_poisoned() {
    ///     pipeline.recover(&model)?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Input`] for a model that is not the one that was loaded, before anything has changed; [`Error::Poisoned`] when the device is
    /// still held or still lost, which the text tells apart; those of [`PipelineBuilder::load`](super::PipelineBuilder::load).
    pub fn recover(&mut self, model: &Model) -> Result<()> {
        let Err(error) = self.check_usable() else { return Ok(()) };
        if model.config() != self.plan.config() || model.digest()? != self.digest {
            return Err(Error::Input(
                "a pipeline recovers with the model that it was loaded from".to_string(),
            ));
        }
        if let Error::Poisoned { cause, .. } = error {
            self.poisoned.get_or_insert(cause);
        }
        self.let_go();
        let binding = self.binding.clone();
        let mut again =
            Pipeline::bind(model, self.plan.clone(), &self.device, binding, &mut |_| Continue(()))?;
        if again.loras != self.loras {
            again.set_loras(&self.loras_in_use)?;
        }
        again.times = std::mem::take(&mut self.times);
        *self = again;
        Ok(())
    }

    /// Gives back all that is on the device, or pinned for it.
    fn let_go(&mut self) {
        self.bound.clear();
        self.disk = None;
        self.pinned = None;
        self.dump_host = None;
        self.host = self.device.no_host_memory();
        self.filled = None;
        self.arena = Arena::none(&self.device);
    }
}

impl Plan {
    /// Of lack of device memory for this plan: what would fit.
    pub(super) fn with_fitting_budget(&self, error: Error) -> Error {
        let Error::Capacity { what, needed_bytes, available_bytes, .. } = error else { return error };
        let budget = available_bytes.min(needed_bytes.saturating_sub(1));
        let advice = match self.clone().within(budget) {
            Ok(plan) => format!(
                "free device memory, or load it within a budget of {} ({}): the same pictures, with weights that are streamed",
                plan.arena_bytes(),
                human_bytes(plan.arena_bytes())
            ),
            Err(Error::Capacity { needed_bytes, .. }) => format!(
                "free device memory, or ask for a smaller image: no budget below {needed_bytes} ({}) fits this one",
                human_bytes(needed_bytes)
            ),
            Err(_) => "free device memory, or ask for a smaller image".to_string(),
        };
        Error::Capacity { what, needed_bytes, available_bytes, advice }
    }
}
