//! Which tiles of a launch are split along k, into how many slices: by counting waves, never by timing.
//!
//! A GPU runs as many CTAs at once as it has slots. Tiles that fill no whole wave would leave most of them empty: 240 tiles on 56
//! slots take 5 waves, the last of 16 tiles. Split into 3 slices each, these are 48 CTAs of a third of the work.

use super::{Entries, HEAD_WIDTH, Tile};
use crate::device::{Capability, Kernel};

/// CTAs on an SM, by registers: of no entry of a GEMM more than two.
const CTAS_BY_REGISTERS: u32 = 2;

/// Percent of the time of one of two CTAs on an SM that a CTA takes which has it alone: it gets 0.81 of what both get together.
/// From a cycle model of `nf4_gemm`'s loop on sm_86, 5082 clocks a k-step instead of 8280.
const ALONE: usize = 61;

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
    /// Rows of a tile.
    pub tokens: usize,
}

impl Split {
    /// Nothing is split.
    pub(super) fn none(tiles: usize, tile: &Tile) -> Split {
        Split { whole: tiles, split: 0, slices: 1, tokens: tile.tokens }
    }

    /// For `tiles` of `steps` k-steps at most, `fewest` at least: those of the last, partial wave are split such that they take least.
    pub(super) fn new(
        tiles: usize,
        [fewest, steps]: [usize; 2],
        &Entries { tile, kernels: [(_, kernel), ..] }: &Entries,
        capability: &Capability,
    ) -> Split {
        // All entries of a format take the same of an SM.
        let sms = capability.num_sms.max(1) as usize;
        let per_sm = ctas_per_sm(kernel, capability) as usize;
        let rest = tiles % (sms * per_sm);
        // All at once, in percent of a k-step of a full SM.
        let time = |slices: usize| {
            let is_alone = per_sm > 1 && rest * slices <= sms;
            let joining = if slices > 1 { tile.joining + slices * tile.joining_each } else { 0 };
            steps.div_ceil(slices) * if is_alone { ALONE } else { 100 } + joining
        };
        let most = (sms * per_sm).checked_div(rest).unwrap_or(1).min(fewest / MIN_STEPS).min(MAX_SLICES);
        match (1..=most).min_by_key(|&slices| time(slices)) {
            None | Some(1) => Split::none(tiles, tile),
            Some(slices) => Split { whole: tiles - rest, split: rest, slices, tokens: tile.tokens },
        }
    }

    /// CTAs of the launch.
    pub fn ctas(&self) -> usize {
        self.whole + self.split * self.slices
    }

    /// Numbers that the slices' sums take.
    pub fn partials_len(&self) -> usize {
        self.split * self.slices * HEAD_WIDTH * self.tokens
    }
}

/// CTAs that an SM holds: what one CTA may have is an SM's shared memory but for 1 KiB, which each CTA takes, too.
fn ctas_per_sm(kernel: &Kernel, capability: &Capability) -> u32 {
    let by_smem = (capability.smem_per_cta_bytes + 1024) / (kernel.smem_bytes + 1024).next_multiple_of(128);
    by_smem.clamp(1, CTAS_BY_REGISTERS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gemm::{TILE, TILE_SM90};
    use crate::kernels::nf4_gemm::entries;
    use crate::pipeline::Card;

    fn on(card: &str) -> Capability {
        Card::named(card).unwrap().capability()
    }

    /// FLUX's at 512 x 512, and T5's, in tiles and k-steps, on 28 SMs of two CTAs each.
    #[test]
    fn the_last_waves_of_an_rtx_3060_are_filled() {
        let card = on("rtx3060");
        let split = |tiles, steps| Split::new(tiles, [steps; 2], &entries(&card), &card);
        let parts = |whole, split, slices| Split { whole, split, slices, tokens: 128 };
        let whole = |tiles| Split::none(tiles, &TILE);
        assert_eq!(split(240, 48), parts(224, 16, 3), "out");
        assert_eq!(split(240, 192), parts(224, 16, 3), "mlp_out");
        assert_eq!(split(240, 240), parts(224, 16, 3), "linear2");
        assert_eq!(split(64, 64), parts(56, 8, 7), "T5's out");
        assert_eq!(split(64, 160), parts(56, 8, 7), "T5's wo");
        assert_eq!(split(960, 48), parts(952, 8, 3), "mlp_in");
        // Whole waves, and a last one that is more than half full.
        assert_eq!(split(1680, 48), whole(1680), "linear1");
        assert_eq!(split(720, 48), whole(720), "qkv");
        // Too short for what joining costs.
        assert_eq!(split(4, 7), whole(4));
        assert_eq!(split(0, 48), whole(0));
    }

    /// FLUX's at 1024 x 1024, and T5's, on 132 SMs of one CTA each.
    #[test]
    fn the_last_waves_of_an_h200_are_filled() {
        let card = on("h200");
        let split = |tiles, steps| Split::new(tiles, [steps; 2], &entries(&card), &card);
        let parts = |whole, split, slices| Split { whole, split, slices, tokens: 256 };
        assert_eq!(split(408, 48), parts(396, 12, 4), "out");
        assert_eq!(split(408, 192), parts(396, 12, 8), "mlp_out");
        assert_eq!(split(64, 160), parts(0, 64, 2), "T5's wo");
        assert_eq!(split(2856, 48), Split::none(2856, &TILE_SM90), "linear1");
    }

    #[test]
    fn an_sm_holds_the_ctas_that_ptxas_allows() {
        let table = include_str!("../../../docs/resources.tsv");
        for line in table.lines().filter(|line| line.contains("_gemm_")) {
            let fields: Vec<&str> = line.split('\t').collect();
            let (arch, ctas) =
                (fields[1].trim_end_matches('a').parse().unwrap(), fields[6].parse::<u32>().unwrap());
            let smem_per_cta_bytes = match arch {
                80 => 163 << 10,
                90 => 227 << 10,
                _ => 99 << 10,
            };
            let capability = Capability { arch, smem_per_cta_bytes, ..Capability::unknown() };
            let kernel = crate::kernels::all().into_iter().find(|kernel| kernel.name() == fields[0]).unwrap();
            assert_eq!(ctas_per_sm(kernel, &capability), ctas, "{line}");
        }
    }

    /// Slices run all at once, are no shorter than they may be, and cost less than the tiles did.
    #[test]
    fn nothing_is_split_in_vain() {
        for num_sms in 1..140 {
            let capability = Capability { num_sms, ..on("rtx3060") };
            let slots = 2 * num_sms as usize;
            for (tiles, steps) in (0..600).step_by(7).flat_map(|tiles| [5, 20, 48, 240].map(|k| (tiles, k))) {
                let split = Split::new(tiles, [steps; 2], &entries(&capability), &capability);
                assert_eq!(split.whole + split.split, tiles);
                if split.split == 0 {
                    assert_eq!((split.slices, split.ctas(), split.partials_len()), (1, tiles, 0));
                    continue;
                }
                assert_eq!(split.whole % slots, 0);
                assert!(split.slices > 1 && split.split * split.slices <= slots);
                assert!(steps / split.slices >= MIN_STEPS && split.slices <= MAX_SLICES);
            }
        }
    }
}
