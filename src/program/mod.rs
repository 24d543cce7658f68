//! A generation as a list of operations: what runs in which order, what each operation reads and writes, how much it
//! computes. Streaming, timing, progress, dumps, memory and predictions are all questions about this list.
//!
//! ```text
//! networks record ─► Program ─ passes ─► Plan ─ bind ─► Bound ─ run ─► picture
//! ```
//!
//! Reading order: [`op`] is the list; [`record`] is how networks write it, with the code that would launch; the passes turn
//! it into places and waits, each a pure function: [`liveness`] (which buffer holds something when), [`residency`] (what
//! stays on the device), [`place`] (offsets), [`order`] (streams and the events between them); [`check`] looks at the
//! result without sharing code with them; [`show`] prints it.
//!
//! Left out: any rewriting of operations. It is a list and functions over it, not a compiler.

pub(crate) mod check;
pub(crate) mod liveness;
pub(crate) mod op;
pub(crate) mod order;
pub(crate) mod place;
pub(crate) mod record;
pub(crate) mod residency;
pub(crate) mod show;
#[cfg(test)]
mod tests;

pub(crate) use op::{Kind, Op, Origin, Program, Run, Stage, Tier, Touch, What, When};
pub(crate) use record::{HostRange, Recorder, STREAM};
pub(crate) use residency::{Home, HomePlace, Streamed};

use std::ops::Range;

use crate::Result;

/// A program with a place for every buffer and the waits between its streams.
#[derive(Debug)]
pub(crate) struct Placed {
    pub program: Program,
    /// Byte offset of every buffer in the arena.
    pub offsets: Vec<usize>,
    /// Size of the arena.
    pub bytes: usize,
    /// Bytes at the arena's start that resident weights fill, in every program of a pipeline alike.
    pub resident_bytes: usize,
    /// What is between regions, where a test has asked for it.
    pub guards: Vec<Range<usize>>,
    /// Where the weights are, in the order in which they were asked for; alike, too.
    pub homes: Vec<residency::Home>,
    /// For every buffer the operations during which it holds something that matters.
    pub live: Vec<liveness::Live>,
    /// Across streams.
    pub waits: Vec<order::Wait>,
}

impl Placed {
    /// The size that the arena would have.
    ///
    /// # Errors
    /// Those of [`Placed::new`], but for the check's.
    pub fn bytes_of(program: Program, streamed: &Streamed) -> Result<usize> {
        let program = residency::residency(program, streamed)?;
        Ok(place::place(&program, &liveness::liveness(&program), 0).bytes)
    }

    /// All passes, and the check of what they made; `streamed` weights do not stay. Of a `guard` see
    /// [`place::place`].
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when the check finds a fault, which is one of this crate.
    pub fn new(program: Program, streamed: &Streamed, guard: usize) -> Result<Placed> {
        let units = residency::units(&program);
        let program = residency::residency(program, streamed)?;
        let live = liveness::liveness(&program);
        let place::Places { offsets, bytes, resident_bytes, guards } = place::place(&program, &live, guard);
        let waits = order::order(&program, &offsets);
        let homes = residency::homes(units, streamed, &offsets);
        let placed = Placed { program, offsets, bytes, resident_bytes, guards, homes, live, waits };
        check::check(&placed)?;
        Ok(placed)
    }
}
