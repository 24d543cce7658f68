//! LoRAs of a model and of a pipeline: room for them is planned, and what lies there may change between generations.

use crate::device::StreamId;
use crate::error::shown;
use crate::weights::Part;
use crate::weights::adapters::{self, Adapters, Strengths};
use crate::weights::upload::{Destination, check_replaceable, replace_loras};
use crate::{Error, Result};

use super::{Model, Pipeline};

impl Model {
    /// The same with these LoRAs and no others: every matrix that they change gets room for them in the plan, and they are loaded with
    /// the weights.
    ///
    /// ```no_run
    /// # use schnell::{Lora, Model, Pipeline};
    /// # fn main() -> schnell::Result<()> {
    /// let model = Model::open("FLUX.1-dev")?;
    /// let hyper = Lora::open("Hyper-FLUX.1-dev-8steps-lora.safetensors", model.config())?;
    /// let model = model.with_loras(&[(hyper, 0.125)])?;
    /// let pipeline = Pipeline::builder(&model).load()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Input`] for a strength that is no number, [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn with_loras(mut self, loras: Strengths<'_>) -> Result<Model> {
        adapters::check_strengths(loras)?;
        self.config = self.config.with_loras(loras);
        self.source.set_loras(&self.config, loras)?;
        self.loras = loras.to_vec();
        Ok(self)
    }

    /// The LoRAs that it has, as pictures say it: `style.safetensors:0.8 1a2b3c4d, ...`, each with its strength and a digest.
    pub fn loras(&self) -> String {
        in_words(&self.loras)
    }

    /// The same with room for LoRAs that come later, by [`Pipeline::set_loras`]: of `rank`, all that are used at once together, beside
    /// every matrix of the transformer. For FLUX.1 that is 10.8 MB for each of the rank.
    ///
    /// # Errors
    /// [`Error::Input`] for a rank of 0 or more than 1,024, [`Error::Unsupported`] for a model that the kernels cannot run.
    pub fn with_room_for_loras(mut self, rank: usize) -> Result<Model> {
        if rank == 0 || rank > MOST_ROOM {
            return Err(Error::Input(format!("room for LoRAs of rank {rank}: ask for 1 to {MOST_ROOM}")));
        }
        let room = Adapters::everywhere(Part::Transformer, rank, &self.config)?;
        self.config.adapters = self.config.adapters.or(room);
        // What was in use takes its place in the larger room.
        self.source.set_loras(&self.config, &self.loras)?;
        Ok(self)
    }
}

/// Of all LoRAs at once.
const MOST_ROOM: usize = 1024;

/// See [`Model::loras`].
pub(super) fn in_words(loras: Strengths<'_>) -> String {
    let each = loras.iter().map(|(lora, strength)| {
        let name = lora.path().file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        format!("{}:{strength} {}", shown(&name), lora.digest())
    });
    each.collect::<Vec<_>>().join(", ")
}

impl Pipeline {
    /// Puts other LoRAs, or none, in the place of those in use. Nothing is allocated on the device: the plan has room for what
    /// [`Model::with_loras`] or [`Model::with_room_for_loras`] said. Without any the pictures are those of a model that never had
    /// some; the room's products are computed all the same. Returns the bytes that went to the device or to pinned memory, and comes back when
    /// they are there.
    ///
    /// # Errors
    /// [`Error::Input`] where there is not enough room, or for a strength that is no number, before anything has changed;
    /// [`Error::Unsupported`] where streamed weights stay on disk; [`Error::Weights`] and [`Error::Io`] from the files and [`Error::Device`]
    /// from the machine, after which none of the LoRAs is in use: the pipeline draws without, or is [poisoned](Pipeline::is_poisoned) if
    /// they could not be taken out.
    pub fn set_loras(&mut self, loras: Strengths<'_>) -> Result<u64> {
        self.check_usable()?;
        adapters::check_strengths(loras)?;
        self.plan.config().adapters.check(loras)?;
        let _entered = self.device.enter()?;
        self.device.synchronize(StreamId::Compute)?;
        self.device.synchronize(StreamId::Copy)?;
        let homes = &self.plan.shapes[0].placed.homes;
        let (arena, pinned) = (&self.arena, self.pinned.as_mut());
        let mut destination = Destination { arena, homes, unit_in_the_making: 0, pinned };
        let weights = &self.plan.weights.list;
        check_replaceable(&destination, weights)?;
        let replaced = replace_loras(&self.device, &mut destination, weights, loras);
        // The last wait has told nobody.
        let replaced = replaced.and_then(|bytes| self.device.check_alive().map(|()| bytes));
        self.cache.clear();
        // Zeros come from no file.
        let kept = if replaced.is_ok() { loras } else { &[] };
        let emptied = match &replaced {
            Ok(_) => Ok(0),
            Err(_) => replace_loras(&self.device, &mut destination, weights, &[]),
        };
        (self.loras, self.loras_in_use) = (in_words(kept), kept.to_vec());
        if let Err(error) = emptied {
            // What lies there now is neither these nor none.
            self.poison(&error);
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PipelineConfig;
    use crate::pipeline::{Plan, Quantize, Shape};

    #[test]
    fn room_takes_what_is_said_of_it() {
        let config = PipelineConfig::schnell();
        let adapters = Adapters::everywhere(Part::Transformer, 16, &config).unwrap();
        let plan =
            Plan::new(&PipelineConfig { adapters, ..config }, Shape::default(), Quantize::Nf4).unwrap();
        assert_eq!(plan.lora_bytes() / 16, 10_823_936);
        assert!(plan.to_string().contains("of it room for LoRAs"));
    }
}
