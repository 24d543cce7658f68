//! What streamed weights cost beside device memory: pinned memory, and what the bus brings when.

use std::collections::BTreeMap;

use super::Plan;
use crate::program::{HomePlace, Placed, Tier, What};

/// Bytes of weights that do not stay on the device: see [`Plan::within`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// In pinned host memory.
    pub pinned: u64,
    /// In the cache's file, and read from there whenever they are copied.
    pub on_disk: u64,
    /// Copied while the prompt is encoded.
    pub encoders: u64,
    /// Copied in the first step.
    pub modulation: u64,
    /// Copied in each step.
    pub step: u64,
}

impl Plan {
    /// What streamed weights cost beside device memory, for [`Plan::shape`].
    pub fn traffic(&self) -> Traffic {
        let Placed { program, homes, .. } = &self.shapes[0].placed;
        let tiers: BTreeMap<&str, Tier> =
            homes.iter().map(|home| (&home.unit.name[..], home.unit.tier)).collect();
        // Those of blocks in the turn that is repeated, of all others where they are.
        let step = program.stages.iter().rfind(|stage| stage.name == "step");
        let copied = |tier: Tier| -> u64 {
            let ops = if tier == Tier::Block {
                step.map_or(0..0, |step| step.ops.clone())
            } else {
                0..program.ops.len()
            };
            let uploads = program.ops[ops].iter().filter(|op| matches!(op.what, What::Upload { .. }));
            let touches = uploads.flat_map(|op| &op.touches);
            let of_tier =
                touches.filter(|touch| tiers.get(&program.buffers[touch.buffer].name[..]) == Some(&tier));
            of_tier.map(|touch| touch.hull().len() as u64).sum()
        };
        let on_disk = homes.iter().filter(|home| home.place == HomePlace::Disk);
        Traffic {
            pinned: self.pinned_weights(),
            on_disk: on_disk.map(|home| home.unit.image.len() as u64).sum(),
            encoders: copied(Tier::Encoder),
            modulation: copied(Tier::Modulation),
            step: copied(Tier::Block),
        }
    }

    /// Bytes of pinned memory for streamed weights.
    pub(crate) fn pinned_weights(&self) -> u64 {
        let homes = self.shapes[0].placed.homes.iter();
        let pinned = homes.filter(|home| matches!(home.place, HomePlace::Pinned(_)));
        pinned.map(|home| home.unit.image.len() as u64).sum()
    }
}
