//! The one allocation: planned region by region before anything loads, then bound to a device.
//!
//! A [`Layout`] collects [`Region`]s with their lifetimes, measured in [`Phase`]s of a generation, and places them so
//! that regions that are never alive together may share bytes. [`Arena::bind`] makes the allocation and turns
//! [`Slot`]s (places in the plan) into [`View`]s (places in memory), phase by phase: a slot whose region is not alive is
//! refused.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use crate::device::{Device, DeviceMemory, StreamId, View};
use crate::{Error, Result};

/// Every region starts at a multiple of this: vector loads need 16, L2 sectors 32, TMA would need 128.
pub const ALIGNMENT: usize = 256;

/// The parts of a pipeline's life, in order. Nothing of one phase runs while another does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Weights travel in and are quantised.
    Load,
    /// CLIP.
    Clip,
    /// T5.
    T5,
    /// Modulation vectors of all steps.
    Modulation,
    /// The transformer, step by step.
    Steps,
    /// VAE decode and the copy out.
    Decode,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Phase::Load => "load",
            Phase::Clip => "clip",
            Phase::T5 => "t5",
            Phase::Modulation => "modulation",
            Phase::Steps => "steps",
            Phase::Decode => "decode",
        })
    }
}

/// First and last phase in which a region's content matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Written here first.
    pub first: Phase,
    /// Read here last.
    pub last: Phase,
}

impl Lifetime {
    /// From the first phase to the last: weights and tables.
    pub const ALWAYS: Lifetime = Lifetime { first: Phase::Load, last: Phase::Decode };

    /// Within one phase.
    pub fn only(phase: Phase) -> Self {
        Lifetime { first: phase, last: phase }
    }

    /// From `first` to `last`, both included.
    pub fn span(first: Phase, last: Phase) -> Self {
        Lifetime { first, last }
    }

    fn holds(&self, phase: Phase) -> bool {
        self.first <= phase && phase <= self.last
    }

    fn overlaps(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A named piece of the arena.
#[derive(Clone, Debug)]
pub struct Region {
    /// `flux.double.3.weights`, `vae.map0`, ...
    pub name: String,
    /// Size, before alignment.
    pub bytes: usize,
    /// Where it lies; set by [`Layout::place`].
    pub offset: usize,
    /// When it is alive.
    pub lifetime: Lifetime,
}

/// `len` elements of `T` from byte `start` of a region on: a place in the plan.
#[derive(Debug)]
pub struct Slot<T> {
    region: usize,
    start: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> Slot<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in bytes.
    pub fn num_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

/// Regions in the making.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    regions: Vec<Region>,
    total_bytes: usize,
}

impl Layout {
    /// A new region with room for `len` elements.
    pub fn region<T>(&mut self, name: impl Into<String>, len: usize, lifetime: Lifetime) -> Slot<T> {
        self.regions.push(Region { name: name.into(), bytes: len * size_of::<T>(), offset: 0, lifetime });
        Slot { region: self.regions.len() - 1, start: 0, len, element: PhantomData }
    }

    /// A growing region for many small things of one lifetime: `append` adds to it.
    pub fn group(&mut self, name: impl Into<String>, lifetime: Lifetime) -> Group {
        self.regions.push(Region { name: name.into(), bytes: 0, offset: 0, lifetime });
        Group { region: self.regions.len() - 1 }
    }

    /// Room for `len` elements at the next aligned place of `group`.
    pub fn append<T>(&mut self, group: Group, len: usize) -> Slot<T> {
        let region = &mut self.regions[group.region];
        let start = region.bytes.next_multiple_of(ALIGNMENT);
        region.bytes = start + len * size_of::<T>();
        Slot { region: group.region, start, len, element: PhantomData }
    }

    /// Gives every region its place: what always lives first, in order; then the others, largest first, each at the
    /// lowest offset that no region alive at the same time covers.
    pub fn place(&mut self) {
        let mut end = 0;
        for region in self.regions.iter_mut().filter(|r| r.lifetime == Lifetime::ALWAYS) {
            region.offset = end;
            end += region.bytes.next_multiple_of(ALIGNMENT);
        }
        let base = end;
        let mut order: Vec<usize> =
            (0..self.regions.len()).filter(|&i| self.regions[i].lifetime != Lifetime::ALWAYS).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(self.regions[i].bytes), i));
        let mut placed: Vec<usize> = Vec::new();
        for i in order {
            let bytes = self.regions[i].bytes.next_multiple_of(ALIGNMENT);
            let mut neighbours: Vec<(usize, usize)> = placed
                .iter()
                .map(|&j| &self.regions[j])
                .filter(|r| r.lifetime.overlaps(&self.regions[i].lifetime))
                .map(|r| (r.offset, r.offset + r.bytes.next_multiple_of(ALIGNMENT)))
                .collect();
            neighbours.sort_unstable();
            let mut offset = base;
            for (start, stop) in neighbours {
                if offset + bytes <= start {
                    break;
                }
                offset = offset.max(stop);
            }
            self.regions[i].offset = offset;
            end = end.max(offset + bytes);
            placed.push(i);
        }
        self.total_bytes = end.max(ALIGNMENT);
    }

    /// Size of the allocation.
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// All regions, in the order they were asked for.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// `len` elements of `slot` from element `start` on.
    ///
    /// # Panics
    /// When the range leaves the slot, which would be a mistake in the plan's own arithmetic.
    pub fn part<T>(slot: &Slot<T>, start: usize, len: usize) -> Slot<T> {
        assert!(start + len <= slot.len, "{start}..+{len} of {}", slot.len);
        Slot { region: slot.region, start: slot.start + start * size_of::<T>(), len, element: PhantomData }
    }
}

/// See [`Layout::group`].
#[derive(Clone, Copy, Debug)]
pub struct Group {
    region: usize,
}

/// A placed [`Layout`] in device memory.
#[derive(Debug)]
pub struct Arena {
    memory: Arc<DeviceMemory>,
    regions: Vec<Region>,
    phase: Mutex<Phase>,
}

impl Arena {
    /// Makes the one allocation.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the device has not that much left.
    pub fn bind(layout: &Layout, device: &Device) -> Result<Arena> {
        let free = device.free_bytes()?;
        if layout.total_bytes() as u64 > free {
            return Err(Error::Capacity {
                what: format!("the arena on {}", device.capability().name),
                needed_bytes: layout.total_bytes() as u64,
                available_bytes: free,
                advice: "free device memory, or ask for a smaller image".to_string(),
            });
        }
        let memory = device.allocate(layout.total_bytes())?;
        Ok(Arena { memory, regions: layout.regions.clone(), phase: Mutex::new(Phase::Load) })
    }

    /// What is enqueued from here on belongs to `phase`. On the emulator, what no region alive in it covers is filled with
    /// NaN patterns, so that a view kept from an earlier phase, or one that reaches too far, does not read what was there.
    ///
    /// # Errors
    /// [`Error::Device`] when the machine refuses.
    pub fn enter(&self, phase: Phase) -> Result<()> {
        *self.phase.lock().unwrap_or_else(|e| e.into_inner()) = phase;
        let device = self.memory.device();
        if !device.capability().is_emulator {
            return Ok(());
        }
        let alive = self.regions.iter().filter(|r| r.lifetime.holds(phase));
        let mut spans: Vec<(usize, usize)> = alive.map(|r| (r.offset, r.offset + r.bytes)).collect();
        spans.push((self.memory.num_bytes(), self.memory.num_bytes()));
        spans.sort_unstable();
        let mut end = 0;
        for (start, stop) in spans {
            if end < start {
                device.fill(StreamId::Compute, &self.memory.view::<u8>(end, start - end)?, 0xff)?;
            }
            end = end.max(stop);
        }
        Ok(())
    }

    /// Where a slot lies.
    ///
    /// # Errors
    /// [`Error::Input`] when the slot is of another layout, or its region is not alive in the phase last entered.
    pub fn view<T>(&self, slot: &Slot<T>) -> Result<View<T>> {
        let region = self.regions.get(slot.region);
        let region = region.ok_or_else(|| Error::Input("a slot of another layout".to_string()))?;
        let phase = *self.phase.lock().unwrap_or_else(|e| e.into_inner());
        if !region.lifetime.holds(phase) {
            let Region { name, lifetime: Lifetime { first, last }, .. } = region;
            return Err(Error::Input(format!("{name} lives from {first} to {last}, not in {phase}")));
        }
        self.memory.view(region.offset + slot.start, slot.len)
    }

    /// The whole of it.
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_alive_together_never_share_bytes_and_others_do() {
        let phases = [Phase::Clip, Phase::T5, Phase::Modulation, Phase::Steps, Phase::Decode];
        let mut layout = Layout::default();
        layout.region::<f32>("weights", 1000, Lifetime::ALWAYS);
        let mut state = 7u64;
        for i in 0..60 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let a = (state >> 33) as usize % phases.len();
            let b = a + (state >> 50) as usize % (phases.len() - a);
            layout.region::<u8>(
                format!("r{i}"),
                (state >> 40) as usize % 5000,
                Lifetime::span(phases[a], phases[b]),
            );
        }
        layout.place();
        let regions = layout.regions();
        for (i, a) in regions.iter().enumerate() {
            assert_eq!(a.offset % ALIGNMENT, 0);
            assert!(a.offset + a.bytes <= layout.total_bytes());
            for b in &regions[i + 1..] {
                let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                assert!(apart || !a.lifetime.overlaps(&b.lifetime), "{} and {}", a.name, b.name);
            }
        }
        let sum: usize = regions.iter().map(|r| r.bytes).sum();
        assert!(layout.total_bytes() < sum, "nothing shares bytes");
    }

    #[test]
    fn the_dead_are_refused_and_overwritten() {
        let device = Device::emulator(crate::device::EmulatorOptions::default());
        let mut layout = Layout::default();
        let early = layout.region::<u8>("early", 300, Lifetime::only(Phase::Clip));
        let late = layout.region::<u8>("late", 100, Lifetime::span(Phase::Clip, Phase::T5));
        layout.place();
        let arena = Arena::bind(&layout, &device).unwrap();
        assert!(arena.view(&early).is_err(), "nothing of CLIP is alive while weights are loaded");
        let bytes = |view: &View<u8>| {
            let mut host = device.allocate_host(view.len()).unwrap();
            device.copy_to_host(StreamId::Compute, &mut host, 0, view).unwrap();
            host.as_slice().to_vec()
        };
        arena.enter(Phase::Clip).unwrap();
        let (old, kept) = (arena.view(&early).unwrap(), arena.view(&late).unwrap());
        device.fill(StreamId::Compute, &old, 7).unwrap();
        device.fill(StreamId::Compute, &kept, 8).unwrap();
        arena.enter(Phase::T5).unwrap();
        let message = arena.view(&early).unwrap_err().to_string();
        assert!(message.contains("early lives from clip to clip, not in t5"), "{message}");
        assert_eq!(bytes(&old), [0xff; 300]);
        assert_eq!(bytes(&arena.view(&late).unwrap()), [8; 100]);
    }

    #[test]
    fn groups_align_every_entry() {
        let mut layout = Layout::default();
        let group = layout.group("biases", Lifetime::ALWAYS);
        let a = layout.append::<f32>(group, 3);
        let b = layout.append::<f32>(group, 5);
        layout.place();
        assert_eq!((a.start, b.start), (0, ALIGNMENT));
        assert_eq!(layout.regions()[0].bytes, ALIGNMENT + 20);
        assert_eq!(Layout::part(&b, 2, 3).start, ALIGNMENT + 8);
    }
}
