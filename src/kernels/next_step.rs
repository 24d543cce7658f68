//! The number of the denoising step, in device memory.

use super::{check_len, kernel};
use crate::Result;
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};

kernel!(
    /// One thread.
    NEXT_STEP, "next_step", next_step, abi::NEXT_STEP_THREADS, abi::NEXT_STEP_SMEM_BYTES
);

/// `step[0] += 1`.
///
/// - `step`: i32 `[1]`
/// - source: ours
#[derive(Debug)]
pub struct NextStep<'a> {
    /// Updated in place.
    pub step: &'a View<i32>,
}

impl NextStep<'_> {
    /// Enqueues the increment.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when `step` is empty.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        check_len("next_step", "step", self.step, 1)?;
        let mut footprint = Footprint::new(device);
        let params = abi::next_step_params { step: footprint.updates(self.step)? };
        // SAFETY: params is this entry's generated type; one thread updates the one element.
        unsafe { device.launch(stream, Config { kernel: &NEXT_STEP, grid: [1, 1, 1] }, &params, &footprint) }
    }
}
