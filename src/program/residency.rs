//! What stays on the device. Weights that do not fit lie in pinned memory, and are copied a [`Unit`] at a time on the copy
//! stream, ahead of the operations that read them: the copy of a unit may begin when the unit before the last has been read, so
//! that it hides behind what is computed with the last one, and two units of a [`Tier`] at a time are on the device.
//!
//! In a repeated stage the first unit of the next turn is copied behind the last of this one. What the last turn copies so is
//! for nothing, and costs nothing: nobody waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::op::{Buffer, Kind, Op, Origin, Program, Run, Stage, Tier, Touch, What};
use super::place::ALIGNMENT;
use crate::device::{Mode, Rows, StreamId, Work};
use crate::{Error, Result};

/// Weights that networks ask for under one name, one behind the other: a layer, a block.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub name: String,
    pub tier: Tier,
    /// By number.
    buffers: Vec<usize>,
    /// Where it lies if all weights lie one behind the other in the order in which they are asked for.
    pub image: Range<usize>,
}

/// All weights of a program, in that order.
pub(crate) fn units(program: &Program) -> Vec<Unit> {
    let (mut units, mut end) = (Vec::<Unit>::new(), 0);
    for (i, buffer) in program.buffers.iter().enumerate() {
        let Kind::Weight(tier) = buffer.kind else { continue };
        let start = end;
        end += buffer.bytes.next_multiple_of(ALIGNMENT);
        match units.last_mut().filter(|unit| unit.name == buffer.name && unit.tier == tier) {
            Some(unit) => {
                unit.buffers.push(i);
                unit.image.end = end;
            }
            None => {
                let name = buffer.name.clone();
                units.push(Unit { name, tier, buffers: vec![i], image: start..end });
            }
        }
    }
    units
}

/// Where a unit's weights are when no operation needs them.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub unit: Unit,
    pub place: HomePlace,
}

/// See [`Home`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HomePlace {
    /// From this byte of the arena on.
    Arena(usize),
    /// From this byte of the streamed weights in pinned memory on.
    Pinned(usize),
    /// In the cache's file, which is read each time.
    Disk,
}

/// The homes of `units`, whose resident buffers lie at `offsets`.
pub(crate) fn homes(units: Vec<Unit>, streamed: &Streamed, offsets: &[usize]) -> Vec<Home> {
    let mut pinned = 0;
    let home = |unit: Unit| {
        let place = if streamed.is_on_disk(&unit) {
            HomePlace::Disk
        } else if streamed.has(&unit) {
            pinned += unit.image.len();
            HomePlace::Pinned(pinned - unit.image.len())
        } else {
            HomePlace::Arena(unit.buffers.first().map_or(0, |&first| offsets[first]))
        };
        Home { unit, place }
    };
    units.into_iter().map(home).collect()
}

/// Names of units that are streamed; the same in every program of a pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streamed {
    names: BTreeSet<String>,
    /// Those of them for which pinned memory has no room.
    on_disk: BTreeSet<String>,
    /// Whether modulations wait until a block is done.
    is_tight: bool,
}

impl Streamed {
    /// In which order units leave the device: `tiers` one after the other; of the encoders and modulations the larger first, of the
    /// blocks such that those that have gone are spread evenly, and each has the most to hide behind.
    pub fn order(units: &[Unit], tiers: [Tier; 3]) -> Vec<String> {
        let mut order: Vec<(usize, usize, usize)> = Vec::new();
        for (turn, tier) in tiers.into_iter().enumerate() {
            let of_tier: Vec<usize> = (0..units.len()).filter(|&i| units[i].tier == tier).collect();
            for (rank, &i) in of_tier.iter().enumerate() {
                let first = match tier {
                    Tier::Block => (rank as u32).reverse_bits() as usize,
                    _ => usize::MAX - units[i].image.len(),
                };
                order.push((turn, first, i));
            }
        }
        order.sort_unstable();
        order.into_iter().map(|(_, _, i)| units[i].name.clone()).collect()
    }

    pub fn of<'a>(names: impl IntoIterator<Item = &'a String>) -> Streamed {
        Streamed { names: names.into_iter().cloned().collect(), ..Streamed::default() }
    }

    /// The same in less memory, which may take longer.
    pub fn tight(self) -> Streamed {
        Streamed { is_tight: true, ..self }
    }

    /// The same with these of them on disk.
    pub fn with_on_disk(self, names: impl IntoIterator<Item = String>) -> Streamed {
        Streamed { on_disk: names.into_iter().collect(), ..self }
    }

    pub fn has(&self, unit: &Unit) -> bool {
        unit.tier != Tier::Fixed && self.names.contains(&unit.name)
    }

    pub fn is_on_disk(&self, unit: &Unit) -> bool {
        self.has(unit) && self.on_disk.contains(&unit.name)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.names.len()
    }
}

/// What the buffer is called in which a streamed unit is put together.
pub(crate) const UNIT_IN_THE_MAKING: &str = "load.unit";

/// Operations that begin at `first`, which read of all streamed units of one tier only this one.
struct Visit {
    unit: usize,
    tier: Tier,
    first: usize,
}

/// `program` with the `streamed` units in buffers that operations fill, by copies that are inserted.
///
/// # Errors
/// [`Error::Internal`] for an operation that reads two of them.
pub(crate) fn residency(mut program: Program, streamed: &Streamed) -> Result<Program> {
    let all = units(&program).into_iter().enumerate();
    let (numbers, units): (Vec<usize>, Vec<Unit>) = all.filter(|(_, unit)| streamed.has(unit)).unzip();
    if units.is_empty() {
        return Ok(program);
    }
    // Where each lies in pinned memory, or that it does not.
    let (mut origins, mut end) = (Vec::new(), 0);
    let first_unit = program.buffers.len();
    for (i, unit) in units.iter().enumerate() {
        let bytes = unit.image.len();
        program.buffers.push(Buffer { name: unit.name.clone(), bytes, kind: Kind::Streamed });
        let mut start = 0;
        for &buffer in &unit.buffers {
            program.buffers[buffer].kind = Kind::Part { of: first_unit + i, start };
            start += program.buffers[buffer].bytes.next_multiple_of(ALIGNMENT);
        }
        if streamed.is_on_disk(unit) {
            origins.push(Origin::Disk(numbers[i]));
        } else {
            origins.push(Origin::Pinned(end));
            end += bytes;
        }
    }
    let kinds: Vec<Kind> = program.buffers.iter().map(|buffer| buffer.kind).collect();
    let to_whole = |touch: &mut Touch| {
        if let Kind::Part { of, start } = kinds[touch.buffer] {
            *touch = Touch { buffer: of, start: touch.start + start, ..*touch };
        }
    };
    program.ops.iter_mut().flat_map(|op| &mut op.touches).for_each(to_whole);

    let visits = visits(&program, &units, first_unit)?;
    let mut copies: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (before, unit) in places(&program.stages, &visits, streamed.is_tight) {
        copies.entry(before).or_default().push(unit);
    }
    let upload = |unit: usize| {
        let bytes = units[unit].image.len();
        let rows = Rows { num: 1, pitch: bytes, bytes };
        let touch = Touch { buffer: first_unit + unit, start: 0, rows, mode: Mode::Write };
        let what = What::Upload { from: origins[unit] };
        Op { what, stream: StreamId::Copy, touches: vec![touch], work: Work::default() }
    };
    let mut ops = Vec::with_capacity(program.ops.len() + copies.len());
    let mut recorded = program.ops.into_iter().enumerate();
    for stage in &mut program.stages {
        let start = ops.len();
        for (before, op) in recorded.by_ref().take(stage.ops.len()) {
            ops.extend(copies.get(&before).into_iter().flatten().map(|unit| upload(*unit)));
            ops.push(op);
        }
        stage.ops = start..ops.len();
    }
    program.ops = ops;
    // Loading puts a unit together on the device before it goes to its home.
    let bytes = units.iter().map(|unit| unit.image.len()).max().unwrap_or(0);
    program.buffers.push(Buffer { name: UNIT_IN_THE_MAKING.to_string(), bytes, kind: Kind::Load });
    Ok(program)
}

/// Which units are read, in the order of the operations, stage by stage; `first_unit` is the buffer of the first.
fn visits(program: &Program, units: &[Unit], first_unit: usize) -> Result<Vec<Vec<Visit>>> {
    let of_stage = |stage: &Stage| {
        let mut visits: Vec<Visit> = Vec::new();
        for i in stage.ops.clone() {
            let touches = program.ops[i].touches.iter();
            let touched: BTreeSet<usize> =
                touches.filter_map(|touch| touch.buffer.checked_sub(first_unit)).collect();
            if touched.len() > 1 {
                return Err(Error::Internal(format!("operation {i} reads {} streamed units", touched.len())));
            }
            let Some(&unit) = touched.first() else { continue };
            let tier = units[unit].tier;
            let last = visits.iter().rev().find(|visit| visit.tier == tier);
            if last.is_none_or(|visit| visit.unit != unit) {
                visits.push(Visit { unit, tier, first: i });
            }
        }
        Ok(visits)
    };
    program.stages.iter().map(of_stage).collect()
}

/// Which units are copied where: the operation before which it is, and the unit. Where a stage reads modulations and blocks by
/// turns, a block is copied while the one before computes, and before it the modulation of both: beside two blocks, or, where
/// it is tight, when there is room for it again.
fn places(stages: &[Stage], visits: &[Vec<Visit>], is_tight: bool) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for (i, (stage, own)) in stages.iter().zip(visits).enumerate() {
        let before = stages_before(stages, i);
        for (at, visit) in own.iter().enumerate() {
            let of_tier = |other: &&Visit| other.tier == visit.tier;
            let is_beside = visit.tier == Tier::Modulation && own.iter().any(|other| !of_tier(&other));
            if is_beside && is_tight {
                places.push((visit.first, visit.unit));
                continue;
            }
            if let Some(last) = own[..at].iter().rev().find(|other| is_beside || of_tier(other)) {
                places.push((last.first, visit.unit));
                continue;
            }
            if before.is_empty() {
                places.push((stage.ops.start, visit.unit));
                continue;
            }
            for &earlier in &before {
                let last = visits[earlier].iter().rev().find(of_tier).or(visits[earlier].last());
                let place = last.map_or(stages[earlier].ops.start, |last| last.first);
                places.push((place, visit.unit));
            }
            // For the next turn.
            let last = own.iter().rev().find(of_tier).filter(|last| last.first != visit.first);
            places.extend(last.filter(|_| stage.repeats > 1).map(|last| (last.first, visit.unit)));
        }
    }
    places
}

/// The stages that come right before stage `i`, in some run, where what that reads first can be copied in each of them: none is
/// repeated.
fn stages_before(stages: &[Stage], i: usize) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    for run in Run::ALL.into_iter().filter(|run| !stages[i].turns(*run).is_empty()) {
        let before = (0..i).rev().find(|&j| !stages[j].turns(run).is_empty());
        match before.filter(|&j| stages[j].repeats == 1 && !stages[j].ops.is_empty()) {
            Some(before) => drop(all.insert(before)),
            None => return BTreeSet::new(),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that leave are spread: no two neighbors before half of them are gone.
    #[test]
    fn blocks_leave_evenly() {
        let unit = |i: usize| Unit {
            name: format!("block.{i}"),
            tier: Tier::Block,
            buffers: vec![i],
            image: i * 256..(i + 1) * 256,
        };
        let units: Vec<Unit> = (0..16).map(unit).collect();
        let order = Streamed::order(&units, Tier::ONE_BY_ONE);
        let first: BTreeSet<&String> = order[..8].iter().collect();
        for pair in units.windows(2) {
            assert!(!first.contains(&pair[0].name) || !first.contains(&pair[1].name), "{order:?}");
        }
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 16);
    }
}
