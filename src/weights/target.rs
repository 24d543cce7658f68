//! What becomes of a tensor on its way from a file to the device, and where.

use half::bf16;

use crate::kernels::conv2d::Filter;
use crate::kernels::kept::{Format, KeptLayout};
use crate::kernels::nf4_quantize::Nf4Layout;
use crate::memory::arena::Slot;

/// What becomes of a tensor. Slots are those among all weights, one behind the other; where these are, [`Home`](crate::program::Home)s say.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The host reads it when it needs to; the device never sees it.
    Host,
    /// Kept as f32.
    F32 {
        /// As many elements as the tensor has.
        slot: Slot<f32>,
    },
    /// bf16 rows, `pitch` elements apart.
    Bf16 {
        /// `[rows, pitch]`.
        slot: Slot<bf16>,
        /// At least the row length.
        pitch: usize,
    },
    /// `[out, in, 3, 3]` to rows in the order of [`Filter::pack`].
    Conv {
        /// `[out, weight_pitch]`.
        slot: Slot<bf16>,
        /// Input channels.
        channels: usize,
        /// What the taps pass over.
        filter: Filter,
    },
    /// Quantized on the device.
    Nf4 {
        /// Order of the codes.
        layout: Nf4Layout,
        /// Of the whole Linear.
        codes: Slot<u8>,
        /// Of the whole Linear.
        absmax: Slot<f32>,
        /// Row of the Linear where this tensor begins.
        first_row: usize,
        /// Rows of the Linear.
        num_rows: usize,
    },
    /// In the bits of its file, put in the kernels' order by the host.
    Kept {
        /// Of the file.
        format: Format,
        /// Order of the codes.
        layout: KeptLayout,
        /// Of all rows of the format that run as one product.
        slot: Slot<u8>,
        /// Among these, where this tensor begins: in panels, where one does.
        first_row: usize,
        /// How many these are.
        num_rows: usize,
    },
}

impl Target {
    /// Where it begins among all weights, if the device gets it.
    pub fn offset(&self) -> Option<usize> {
        match self {
            Target::Host => None,
            Target::F32 { slot } => Some(slot.offset()),
            Target::Bf16 { slot, .. } | Target::Conv { slot, .. } => Some(slot.offset()),
            Target::Nf4 { codes, .. } => Some(codes.offset()),
            Target::Kept { slot, .. } => Some(slot.offset()),
        }
    }

    /// The same, as far behind byte `to` of the arena as it is behind byte `from` of all weights.
    pub fn moved(self, from: usize, to: usize) -> Target {
        match self {
            Target::Host => Target::Host,
            Target::F32 { slot } => Target::F32 { slot: slot.moved(from, to) },
            Target::Bf16 { slot, pitch } => Target::Bf16 { slot: slot.moved(from, to), pitch },
            Target::Conv { slot, channels, filter } => {
                Target::Conv { slot: slot.moved(from, to), channels, filter }
            }
            Target::Nf4 { layout, codes, absmax, first_row, num_rows } => {
                let (codes, absmax) = (codes.moved(from, to), absmax.moved(from, to));
                Target::Nf4 { layout, codes, absmax, first_row, num_rows }
            }
            Target::Kept { format, layout, slot, first_row, num_rows } => {
                Target::Kept { format, layout, slot: slot.moved(from, to), first_row, num_rows }
            }
        }
    }
}
