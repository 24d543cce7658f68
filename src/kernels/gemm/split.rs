//! Which tiles of a launch are split along k, into how many slices: by counting waves, never by timing.
//!
//! A GPU runs as many CTAs at once as it has slots. Tiles that fill no whole wave would leave most of them empty: 240 tiles on 56
//! slots take 5 waves, the last of 16 tiles. Split into 3 slices each, these are 48 CTAs of a third of the work.

use crate::abi;
use crate::device::{Capability, Kernel};

/// CTAs on an SM, by registers: of no entry of a GEMM more than two.
const CTAS_BY_REGISTERS: u32 = 2;

/// Percent of the time of one of two CTAs on an SM that a CTA takes which has it alone: it gets 0.81 of what both get together.
/// From a cycle model of `nf4_gemm`'s loop on sm_86, 5082 clocks a k-step instead of 8280.
const ALONE: usize = 61;

/// What splitting a tile costs, in percent of such a k-step: another prologue, the barriers and the fence; and, for each slice, that
/// its 64 KB go to the L2 cache and come back to the CTA that adds them. An sm_86 takes about half of this, whose k-steps are long.
const JOINING: usize = 150;
const JOINING_EACH: usize = 75;

/// A shorter slice would be little but prologue.
const MIN_STEPS: usize = 4;
/// The last one adds them one after the other.
const MAX_SLICES: usize = 16;

/// The tiles of a launch: the first `whole` have a CTA each, the `split` behind them `slices` CTAs each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Tiles.
    pub whole: usize,
    /// Tiles.
    pub split: usize,
    /// Of each of these; 1 when there are none.
    pub slices: usize,
}

impl Split {
    /// Nothing is split.
    pub(super) fn none(tiles: usize) -> Split {
        Split { whole: tiles, split: 0, slices: 1 }
    }

    /// For `tiles` of `steps` k-steps at most, `fewest` at least: those of the last, partial wave are split such that they take least.
    pub(super) fn new(
        tiles: usize,
        [fewest, steps]: [usize; 2],
        kernel: &Kernel,
        capability: &Capability,
    ) -> Split {
        let sms = capability.num_sms.max(1) as usize;
        let per_sm = ctas_per_sm(kernel, capability) as usize;
        let rest = tiles % (sms * per_sm);
        // All at once, in percent of a k-step of a full SM.
        let time = |slices: usize| {
            let is_alone = per_sm > 1 && rest * slices <= sms;
            let joining = if slices > 1 { JOINING + slices * JOINING_EACH } else { 0 };
            steps.div_ceil(slices) * if is_alone { ALONE } else { 100 } + joining
        };
        let most = (sms * per_sm).checked_div(rest).unwrap_or(1).min(fewest / MIN_STEPS).min(MAX_SLICES);
        match (1..=most).min_by_key(|&slices| time(slices)) {
            None | Some(1) => Split::none(tiles),
            Some(slices) => Split { whole: tiles - rest, split: rest, slices },
        }
    }

    /// CTAs of the launch.
    pub fn ctas(&self) -> usize {
        self.whole + self.split * self.slices
    }

    /// Numbers that the slices' sums take.
    pub fn partials_len(&self) -> usize {
        self.split * self.slices * (abi::GEMM_BLOCK_N * abi::GEMM_BLOCK_M) as usize
    }
}

/// CTAs that an SM holds: what one CTA may have is an SM's shared memory but for 1 KiB, which each CTA takes, too.
fn ctas_per_sm(kernel: &Kernel, capability: &Capability) -> u32 {
    let by_smem = (capability.smem_per_cta_bytes + 1024) / (kernel.smem_bytes + 1024).next_multiple_of(128);
    by_smem.clamp(1, CTAS_BY_REGISTERS)
}
