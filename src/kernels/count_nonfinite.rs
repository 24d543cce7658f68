//! How many NaN and infinities a buffer holds.

use super::{check_len, kernel, to_i32};
use crate::Result;
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};

kernel!(
    /// Sixteen elements per thread.
    COUNT_NONFINITE, "count_nonfinite", count_nonfinite_f32,
    abi::COUNT_NONFINITE_THREADS, abi::COUNT_NONFINITE_SMEM_BYTES
);

/// `counter[index] +=` the number of NaN and infinities in `x`, modulo 2^32. The counter is not cleared first, so that one
/// may serve many buffers.
///
/// - `x`: f32 `[n]`; `counter`: u32, one per index
/// - source: ours
#[derive(Clone, Copy, Debug)]
pub struct CountNonfinite<'a> {
    /// All of it is looked at.
    pub x: &'a View<f32>,
    /// Added to.
    pub counter: &'a View<u32>,
    /// i32 `[1]`, below `counter.len()`; nothing for 0.
    pub index: Option<&'a View<i32>>,
}

const NAME: &str = "count_nonfinite";

impl<'a> CountNonfinite<'a> {
    /// Of all of `x`, into the one counter.
    pub fn all(x: &'a View<f32>, counter: &'a View<u32>) -> Self {
        CountNonfinite { x, counter, index: None }
    }

    /// Enqueues the count.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when `counter` or `index` is empty.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        check_len(NAME, "counter", self.counter, 1)?;
        if let Some(index) = self.index {
            check_len(NAME, "index", index, 1)?;
        }
        let mut footprint = Footprint::new(device);
        let params = abi::count_nonfinite_params {
            x: footprint.reads(self.x)?,
            counter: footprint.updates(self.counter)?,
            index: footprint.reads_optional(self.index)?,
            count: self.x.len() as i64,
        };
        let per_cta = (abi::COUNT_NONFINITE_THREADS * abi::COUNT_NONFINITE_PER_THREAD) as usize;
        let grid = [to_i32(NAME, "the grid", self.x.len().div_ceil(per_cta))? as u32, 1, 1];
        // SAFETY: params is this entry's generated type; no thread reaches beyond `x.len()` elements, and only the
        // one counter is written, whose index the caller keeps below their number.
        unsafe { device.launch(stream, Config { kernel: &COUNT_NONFINITE, grid }, &params, &footprint) }
    }
}
