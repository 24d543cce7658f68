//! Programs and their places, for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::op::{Kind, Origin, What, When};
use super::{Placed, Touch};

/// Buffers of one name, together.
pub(crate) struct Region {
    pub name: String,
    pub kind: Kind,
    /// Of the first.
    pub offset: usize,
    /// Of all, each rounded up to where the next may begin.
    pub bytes: usize,
    /// Names of the first and the last stage in which any of them is occupied.
    pub alive: Option<(&'static str, &'static str)>,
}

/// What the arena consists of: resident regions in the order of their places, then the others.
pub(crate) fn regions(placed: &Placed) -> Vec<Region> {
    let program = &placed.program;
    let stage_of = |op: usize| program.stages.iter().position(|stage| stage.ops.contains(&op));
    // With the first and the last stage, by their places in the program.
    type Lived = (Region, Option<(usize, usize)>);
    let mut by_name: BTreeMap<(bool, &str), Lived> = BTreeMap::new();
    let buffers = program.buffers.iter().enumerate();
    for (i, buffer) in buffers.filter(|(_, buffer)| !matches!(buffer.kind, Kind::Part { .. })) {
        let first = placed.live[i].first().and_then(|l| stage_of(l.0));
        let last = placed.live[i].last().and_then(|l| stage_of(l.1));
        let is_resident = buffer.kind.is_resident();
        let bytes = buffer.bytes.next_multiple_of(super::place::ALIGNMENT);
        let alive = first.zip(last);
        let region = || Region {
            name: buffer.name.clone(),
            kind: buffer.kind,
            offset: placed.offsets[i],
            bytes: 0,
            alive: None,
        };
        let entry = by_name.entry((!is_resident, &buffer.name)).or_insert_with(|| (region(), alive));
        entry.0.bytes += bytes;
        entry.0.offset = entry.0.offset.min(placed.offsets[i]);
        entry.1 = match (entry.1, alive) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
    }
    let mut regions: Vec<Region> = by_name
        .into_values()
        .map(|(region, alive)| Region {
            alive: alive.map(|(a, b)| (program.stages[a].name, program.stages[b].name)),
            ..region
        })
        .filter(|region| region.bytes > 0)
        .collect();
    regions.sort_by_key(|r| (!r.kind.is_resident(), r.offset, r.name.clone()));
    regions
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alive = match (self.kind, self.alive) {
            (Kind::Weight(_), _) => "always".to_string(),
            (Kind::Load, _) => "load".to_string(),
            (Kind::Streamed, Some((first, last))) if first == last => format!("{first}, streamed"),
            (Kind::Streamed, Some((first, last))) => format!("{first} to {last}, streamed"),
            (_, Some((first, last))) if first == last => first.to_string(),
            (_, Some((first, last))) => format!("{first} to {last}"),
            (_, None) => "never".to_string(),
        };
        write!(f, "{:<22} {:>14} {:>14}   {alive}", self.name, self.offset, self.bytes)
    }
}

/// Every operation, a line each: stage, kernel, CTAs, their threads and shared memory, multiply-adds, bytes, what it touches.
pub(crate) fn launches(placed: &Placed) -> String {
    let program = &placed.program;
    let mut text = String::new();
    for stage in &program.stages {
        let when = match stage.when {
            When::Always => "",
            When::Encoding => ", of a new prompt",
            When::Encoded => ", of a prompt seen before",
            When::Modulating => ", of new steps",
            When::Modulated => ", of steps seen before",
        };
        let begun = if stage.begun.is_some() { ", those that are left" } else { "" };
        let _ = writeln!(text, "{} x {}{when}{begun}", stage.name, stage.repeats);
        for i in stage.ops.clone() {
            let op = &program.ops[i];
            let what = match &op.what {
                What::Launch { config, .. } => config.to_string(),
                What::Send { .. } => "send".to_string(),
                What::Fetch { .. } => "fetch".to_string(),
                What::Fill { value } => format!("fill {value:#04x}"),
                What::Upload { from: Origin::Pinned(_) } => "upload".to_string(),
                What::Upload { from: Origin::Disk(_) } => "upload from disk".to_string(),
                #[cfg(test)]
                What::Nothing => "nothing".to_string(),
            };
            let touch = |touch: &Touch| {
                let sign = match (touch.reads(), touch.writes()) {
                    (true, true) => "<>",
                    (_, true) => ">",
                    _ => "<",
                };
                format!("{sign}{}", program.buffers[touch.buffer].name)
            };
            let touches: Vec<String> = op.touches.iter().map(touch).collect();
            let giga = op.work.flops as f64 * 1e-9;
            let mega = op.bytes() as f64 * 1e-6;
            let _ = writeln!(
                text,
                "{i:>6}  {what:<60} {giga:>10.3} GFLOP {mega:>10.3} MB  {}",
                touches.join(" ")
            );
        }
    }
    text
}
