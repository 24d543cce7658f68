//! A plan for another machine; the machine for a plan, where the caller names none, and whether the emulator would finish.

use super::Plan;
use crate::device::{Capability, Device};
use crate::{Error, Result};

/// FLOP/s per thread that the emulator is assumed to reach; the kernels' benches measured more.
#[cfg(feature = "emulator")]
const EMULATOR_FLOPS_PER_THREAD: f64 = 5e9;
/// A run that would take longer on the emulator is refused.
#[cfg(feature = "emulator")]
const EMULATOR_LIMIT_S: f64 = 20.0 * 60.0;

impl Plan {
    /// The same for a machine: matrix products are divided by how many SMs there are, and take memory for it. Loading a
    /// [`Pipeline`](super::Pipeline) does this for its device. The budgets are those from before.
    ///
    /// ```
    /// # use schnell::{Card, Model, Plan, Quantize, Shape};
    /// # fn main() -> schnell::Result<()> {
    /// let plan = Plan::new(Model::demo()?.config(), Shape::square(64), Quantize::Nf4)?;
    /// let plan = plan.on(&Card::named("rtx4090").unwrap().capability())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Capacity`] when it exceeds a budget there.
    pub fn on(mut self, capability: &Capability) -> Result<Plan> {
        let depends_on = |c: &Capability| (c.arch, c.num_sms, c.smem_per_cta_bytes);
        if depends_on(&self.capability) == depends_on(capability) {
            return Ok(self);
        }
        self.capability = capability.clone();
        match self.budget {
            Some(budget) => self.again()?.within(budget),
            None => self.again()?.fit_host(),
        }
    }

    /// The first GPU, or the emulator where there is none; and what a person should know of the choice.
    ///
    /// # Errors
    /// Those of [`Device::cuda`] when there is a GPU, of [`Plan::emulator`] when there is none.
    #[doc(hidden)]
    pub fn first_device(&self, num_pictures: usize) -> Result<(Device, Option<String>)> {
        match Device::cuda(0) {
            Ok(device) => Ok((device, None)),
            Err(why @ Error::Unsupported(_)) => self.emulator(num_pictures, Some(why)),
            Err(other) => Err(other),
        }
    }

    /// The emulator, and what a person should know of it; `why` there is no GPU is said, too.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for work that it would not finish in 20 minutes, and in builds without it.
    #[doc(hidden)]
    #[cfg(feature = "emulator")]
    pub fn emulator(&self, num_pictures: usize, why: Option<Error>) -> Result<(Device, Option<String>)> {
        let device = Device::emulator(Default::default());
        let flops = num_pictures as f64 * self.work().total(self.shape().steps) as f64;
        let seconds = flops / (device.capability().threads.max(1) as f64 * EMULATOR_FLOPS_PER_THREAD);
        let reason = why.map(|why| format!(" ({why})")).unwrap_or_default();
        if seconds > EMULATOR_LIMIT_S {
            let what = match num_pictures {
                1 => "this model at".to_string(),
                n => format!("{n} pictures by this model at"),
            };
            return Err(Error::Unsupported(format!(
                "{what} {} x {} would take about {} on the emulator{reason}; use a GPU, a smaller image or a smaller model",
                self.shape().width,
                self.shape().height,
                human_time(seconds)
            )));
        }
        let no_gpu = if reason.is_empty() { String::new() } else { format!("no GPU{reason}: ") };
        Ok((device, Some(format!("{no_gpu}running on the emulator, about {}", human_time(seconds)))))
    }

    /// The emulator, which this build has not.
    ///
    /// # Errors
    /// [`Error::Unsupported`], always.
    #[doc(hidden)]
    #[cfg(not(feature = "emulator"))]
    pub fn emulator(&self, _num_pictures: usize, why: Option<Error>) -> Result<(Device, Option<String>)> {
        Err(why.unwrap_or_else(|| {
            Error::Unsupported("schnell was built without the feature `emulator`".to_string())
        }))
    }
}

#[cfg(feature = "emulator")]
fn human_time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} minutes", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} hours", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}
