//! One row of a table, chosen by a number in device memory.

use super::{check_len, check_pitch, kernel, matrix_len, to_i32};
use crate::Result;
use crate::abi;
use crate::device::{Config, Device, Footprint, StreamId, View};

kernel!(
    /// One thread per element.
    SELECT_ROW, "select_row", select_row_f32, abi::SELECT_ROW_THREADS, abi::SELECT_ROW_SMEM_BYTES
);

/// `out = table[index[0], :]`, the index brought into `0..rows`.
///
/// - `table`: f32 `[rows, width]` with row pitch `pitch`; `out`: f32 `[width]`
/// - source: ours
#[derive(Clone, Copy, Debug)]
pub struct SelectRow<'a> {
    /// The rows.
    pub table: &'a View<f32>,
    /// Elements from row to row.
    pub pitch: usize,
    /// How many.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// i32 `[1]`.
    pub index: &'a View<i32>,
    /// May not overlap `table`.
    pub out: &'a View<f32>,
}

const NAME: &str = "select_row";

impl SelectRow<'_> {
    /// Enqueues the copy.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when a view is shorter than its shape, or `pitch` less than `width`.
    pub fn launch(&self, device: &Device, stream: StreamId) -> Result<()> {
        check_pitch(NAME, "pitch", self.pitch, self.width)?;
        check_len(NAME, "table", self.table, matrix_len(self.rows.max(1), self.pitch, self.width))?;
        check_len(NAME, "index", self.index, 1)?;
        check_len(NAME, "out", self.out, self.width)?;
        let mut footprint = Footprint::new(device);
        let params = abi::select_row_params {
            table: footprint.reads_rows(self.table, self.rows, self.pitch, self.width)?,
            index: footprint.reads(self.index)?,
            out: footprint.writes_rows(self.out, 1, self.width, self.width)?,
            pitch: self.pitch as i64,
            width: self.width as i64,
            rows: to_i32(NAME, "rows", self.rows.max(1))?,
            reserved: 0,
        };
        let ctas = self.width.div_ceil(abi::SELECT_ROW_THREADS as usize);
        let grid = [to_i32(NAME, "the grid", ctas)? as u32, 1, 1];
        // SAFETY: params is this entry's generated type; the kernel keeps the index within `rows`, all of which the table
        // covers at their pitch, and no thread reaches beyond `width` (checked above).
        unsafe { device.launch(stream, Config { kernel: &SELECT_ROW, grid }, &params, &footprint) }
    }
}
