//! What a launch may touch, and the tensor maps that Hopper's kernels fetch boxes by.

use super::{Device, View};
use crate::abi;
use crate::{Error, Result};

/// Some device memory that a launch touches: `address..address + bytes`, and of that the rows that it reads or writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub address: u64,
    /// Of the whole view.
    pub bytes: usize,
    pub rows: Rows,
    pub mode: Mode,
}

/// `num` rows of `bytes` each, `pitch` bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub num: usize,
    pub pitch: usize,
    pub bytes: usize,
}

/// What a launch does to a [`Span`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    /// All of the rows, whatever was there.
    Write,
    /// Reads first.
    Update,
}

/// What a launch touches, and how much it computes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    pub spans: Vec<Span>,
    /// Multiply-adds times two, of matrix products and attention alone.
    pub flops: u64,
}

/// The device memory that one launch may touch. Whoever fills a params struct takes its addresses from here: so a kernel
/// never gets another machine's memory, the emulator knows what is out of bounds, and a program what depends on what.
#[derive(Debug)]
pub(crate) struct Footprint<'a> {
    pub(super) device: &'a Device,
    pub(super) work: Work,
}

impl<'a> Footprint<'a> {
    /// Nothing yet, on `device`.
    pub fn new(device: &'a Device) -> Self {
        Footprint { device, work: Work { spans: Vec::with_capacity(8), flops: 0 } }
    }

    fn add<T>(&mut self, view: &View<T>, rows: Rows, mode: Mode) -> Result<u64> {
        self.device.check_own(&view.memory.device)?;
        self.work.spans.push(Span { address: view.address(), bytes: view.num_bytes(), rows, mode });
        Ok(view.address())
    }

    /// The address of `view`, all of which the launch may read from now on.
    pub fn reads<T>(&mut self, view: &View<T>) -> Result<u64> {
        self.add(view, Rows::all(view), Mode::Read)
    }

    /// The address of `view`, all of which the launch writes.
    pub fn writes<T>(&mut self, view: &View<T>) -> Result<u64> {
        self.add(view, Rows::all(view), Mode::Write)
    }

    /// The address of `view`, which the launch reads and writes.
    pub fn updates<T>(&mut self, view: &View<T>) -> Result<u64> {
        self.add(view, Rows::all(view), Mode::Update)
    }

    /// As [`Footprint::reads`], of which `rows` rows of `width` elements, `pitch` elements apart, matter.
    pub fn reads_rows<T>(&mut self, view: &View<T>, rows: usize, pitch: usize, width: usize) -> Result<u64> {
        self.add(view, Rows::of::<T>(rows, pitch, width), Mode::Read)
    }

    /// As [`Footprint::writes`], of such rows.
    pub fn writes_rows<T>(&mut self, view: &View<T>, rows: usize, pitch: usize, width: usize) -> Result<u64> {
        self.add(view, Rows::of::<T>(rows, pitch, width), Mode::Write)
    }

    /// As [`Footprint::updates`], of such rows.
    pub fn updates_rows<T>(
        &mut self,
        view: &View<T>,
        rows: usize,
        pitch: usize,
        width: usize,
    ) -> Result<u64> {
        self.add(view, Rows::of::<T>(rows, pitch, width), Mode::Update)
    }

    /// As [`Footprint::reads`]; null for nothing.
    pub fn reads_optional<T>(&mut self, view: Option<&View<T>>) -> Result<u64> {
        view.map_or(Ok(0), |view| self.reads(view))
    }

    /// What has been collected.
    pub fn into_work(self) -> Work {
        self.work
    }

    /// Multiply-adds times two, added to what there is.
    pub fn computes(&mut self, flops: u64) {
        self.work.flops += flops;
    }

    /// How a kernel fetches boxes of a matrix, which begins where `view` does and may be touched from now on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the hardware cannot; [`Error::Internal`] when the view is too short.
    pub fn tensor_map<T>(&mut self, view: &View<T>, tile: &TensorTile) -> Result<abi::tensor_map> {
        let row_bytes = tile.width.saturating_mul(tile.element_bytes());
        let rows = Rows { num: tile.num_rows, pitch: tile.pitch_bytes, bytes: row_bytes };
        let address = self.add(view, rows, Mode::Read)?;
        let arch = self.device.capability().arch;
        if arch / 10 != 9 {
            return Err(Error::Unsupported(format!("tensor maps need compute capability 9.0, not {arch}")));
        }
        tile.check(address, view.num_bytes())?;
        self.device.machine().tensor_map(address, tile)
    }
}

impl Rows {
    fn all<T>(view: &View<T>) -> Rows {
        Rows { num: 1, pitch: view.num_bytes(), bytes: view.num_bytes() }
    }

    fn of<T>(num: usize, pitch: usize, width: usize) -> Rows {
        let bytes = |len: usize| len.saturating_mul(size_of::<T>());
        Rows { num, pitch: bytes(pitch), bytes: bytes(width) }
    }
}

/// In place of a map that a launch does not use.
pub(crate) const NO_MAP: abi::tensor_map = abi::tensor_map { opaque: [0; 16] };

/// A row-major matrix in device memory and the box of it that one `tma_load_2d` of gpu_sm90.cuh fetches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorTile {
    pub element: TensorElement,
    /// Elements of a row.
    pub width: usize,
    pub num_rows: usize,
    pub pitch_bytes: usize,
    /// Elements of a row of the box.
    pub box_width: usize,
    pub box_num_rows: usize,
    /// In shared memory the 16-byte columns of the box's rows, which have 128 bytes, are XORed with the row modulo 8.
    pub swizzled: bool,
}

/// What a [`TensorTile`] consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorElement {
    Bf16,
    U8,
}

impl TensorTile {
    pub(super) fn element_bytes(&self) -> usize {
        match self.element {
            TensorElement::Bf16 => 2,
            TensorElement::U8 => 1,
        }
    }

    /// What cuTensorMapEncodeTiled refuses, and what would leave the view.
    fn check(&self, address: u64, view_bytes: usize) -> Result<()> {
        let (row_bytes, box_row_bytes) =
            (self.width * self.element_bytes(), self.box_width * self.element_bytes());
        let box_rule = if self.swizzled { box_row_bytes == 128 } else { box_row_bytes % 16 == 0 };
        let is_encodable = address % 16 == 0
            && self.pitch_bytes % 16 == 0
            && self.pitch_bytes < 1 << 40
            && (1..=1 << 32).contains(&self.width)
            && (1..=1 << 32).contains(&self.num_rows)
            && (1..=256).contains(&self.box_width)
            && (1..=256).contains(&self.box_num_rows)
            && row_bytes <= self.pitch_bytes
            && box_rule;
        if !is_encodable {
            return Err(Error::Unsupported(format!("no tensor map at {address:#x} can be {self:?}")));
        }
        let needed = (self.num_rows - 1).saturating_mul(self.pitch_bytes).saturating_add(row_bytes);
        if view_bytes < needed {
            return Err(Error::Internal(format!("{self:?} has {needed} bytes, its view {view_bytes}")));
        }
        Ok(())
    }
}
