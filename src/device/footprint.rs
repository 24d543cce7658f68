//! What a launch may touch, and the tensor maps that Hopper's kernels fetch boxes by.

use super::{Device, View};
use crate::abi;
use crate::{Error, Result};

/// Some device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub address: u64,
    pub bytes: usize,
}

/// The device memory that one launch may touch. Whoever fills a params struct takes its addresses from here: so a kernel
/// never gets another machine's memory, and the emulator knows what is out of bounds.
#[derive(Debug)]
pub(crate) struct Footprint<'a> {
    pub(super) device: &'a Device,
    pub(super) spans: Vec<Span>,
}

impl<'a> Footprint<'a> {
    /// Nothing yet, on `device`.
    pub fn new(device: &'a Device) -> Self {
        Footprint { device, spans: Vec::with_capacity(8) }
    }

    /// The address of `view`, which the launch may touch from now on.
    pub fn add<T>(&mut self, view: &View<T>) -> Result<u64> {
        self.device.check_own(&view.memory.device)?;
        self.spans.push(Span { address: view.address(), bytes: view.num_bytes() });
        Ok(view.address())
    }

    /// How a kernel fetches boxes of a matrix, which begins where `view` does and may be touched from now on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the hardware cannot; [`Error::Input`] when the view is too short.
    pub fn tensor_map<T>(&mut self, view: &View<T>, tile: &TensorTile) -> Result<abi::tensor_map> {
        let address = self.add(view)?;
        let arch = self.device.capability().arch;
        if arch / 10 != 9 {
            return Err(Error::Unsupported(format!("tensor maps need compute capability 9.0, not {arch}")));
        }
        tile.check(address, view.num_bytes())?;
        self.device.machine().tensor_map(address, tile)
    }

    /// As [`Footprint::add`]; null for nothing.
    pub fn add_optional<T>(&mut self, view: Option<&View<T>>) -> Result<u64> {
        view.map_or(Ok(0), |view| self.add(view))
    }
}

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
        let bytes = |elements: usize| elements.saturating_mul(self.element_bytes());
        let (row_bytes, box_row_bytes) = (bytes(self.width), bytes(self.box_width));
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
            return Err(Error::Input(format!("{self:?} has {needed} bytes, its view {view_bytes}")));
        }
        Ok(())
    }
}
