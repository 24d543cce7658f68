//! How many NaN and infinities a buffer holds.

use super::{check_len, kernel, to_i32};
use crate::Result;
use crate::abi;
use crate::device::{Device, Footprint, StreamId, View};

kernel!(
    /// Sixteen elements per thread.
    COUNT_NONFINITE, "count_nonfinite", count_nonfinite_f32,
    abi::COUNT_NONFINITE_THREADS, abi::COUNT_NONFINITE_SMEM_BYTES
);

/// `counter[0] +=` the number of NaN and infinities in `x`, modulo 2^32. The counter is not cleared first, so that one
/// may serve many buffers.
///
/// - `x`: f32 `[n]`; `counter`: u32 `[1]`
/// - source: ours
#[derive(Debug)]
pub struct CountNonfinite<'a> {
    /// All of it is looked at.
    pub x: &'a View<f32>,
    /// Added to.
    pub counter: &'a View<u32>,
}

const NAME: &str = "count_nonfinite";

impl CountNonfinite<'_> {
    /// Enqueues the count.
    ///
    /// # Errors
    /// [`crate::Error::Input`] when `counter` is empty.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        check_len(NAME, "counter", self.counter, 1)?;
        let mut footprint = Footprint::new(device);
        let params = abi::count_nonfinite_params {
            x: footprint.reads(self.x)?,
            counter: footprint.updates(self.counter)?,
            count: self.x.len() as i64,
        };
        let per_cta = (abi::COUNT_NONFINITE_THREADS * abi::COUNT_NONFINITE_PER_THREAD) as usize;
        let grid = [to_i32(NAME, "the grid", self.x.len().div_ceil(per_cta))? as u32, 1, 1];
        // SAFETY: params is this entry's generated type; no thread reaches beyond `x.len()` elements, and only the one
        // counter is written.
        unsafe { device.launch(stream, &COUNT_NONFINITE, grid, &params, &footprint) }
    }
}
