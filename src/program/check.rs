//! Whether a placed program is right, by carrying it out on paper: which bytes belong to whom after every operation, and what
//! each stream knows of the other. Shares no code with the passes whose result it looks at, nor their shortcuts: rows are
//! rows of bytes here.

use std::collections::BTreeMap;
use std::fmt;

use crate::device::{Mode, StreamId};

use super::Placed;
use super::op::{Kind, Touch, What};

/// What is wrong, with the operations and buffers that it concerns in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub kind: FaultKind,
    pub what: String,
}

/// See [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// A buffer leaves the arena, or a touch its buffer.
    OutOfBounds,
    /// A buffer that does not begin where vectors may.
    Misaligned,
    /// A read of bytes that nothing has written.
    Unwritten,
    /// A read of bytes that another buffer has taken since.
    Reused,
    /// An operation that writes where another buffer that it touches lies: its threads run in any order.
    Overlap,
    /// Two operations of two streams on the same bytes, one of them writing, with nothing that orders them.
    Unordered,
    /// A write into a weight, or a buffer that is none among them.
    WritesResident,
    /// An operation that lies in no stage, or in two.
    Stages,
    /// A copy or fill with more or less than one touch, or in the wrong direction.
    Malformed,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

impl From<Fault> for crate::Error {
    fn from(fault: Fault) -> Self {
        crate::Error::Internal(fault.to_string())
    }
}

const ALIGNMENT: usize = 256;
/// The instance of what happened before the first operation.
const BEFORE: usize = usize::MAX;

/// Some bytes of the arena: whose they are, which instance wrote them, and who of each stream read them last.
#[derive(Clone, Copy)]
struct Piece {
    end: usize,
    buffer: usize,
    writer: usize,
    readers: [Option<usize>; StreamId::COUNT],
}

/// The first fault, if there is one.
pub(crate) fn check(placed: &Placed) -> Result<(), Fault> {
    bounds(placed)?;
    stages(placed)?;
    let mut paper = Paper {
        placed,
        is_one_stream: placed.program.ops.iter().all(|op| op.stream == StreamId::Compute),
        order: Vec::new(),
        streams: Vec::new(),
        knows: Vec::new(),
        memory: BTreeMap::new(),
    };
    for (i, buffer) in placed.program.buffers.iter().enumerate() {
        if buffer.kind == Kind::Weight && buffer.bytes > 0 {
            paper.take(i, placed.offsets[i], placed.offsets[i] + buffer.bytes, BEFORE)?;
        }
    }
    for stage in &placed.program.stages {
        for _ in 0..stage.repeats.min(2) {
            for op in stage.ops.clone() {
                paper.carry_out(op)?;
            }
            for kept in &stage.kept {
                paper.read(&kept.touch, &format!("what is kept as {}", kept.name))?;
            }
        }
    }
    Ok(())
}

fn fault(kind: FaultKind, what: String) -> Result<(), Fault> {
    Err(Fault { kind, what })
}

fn bounds(placed: &Placed) -> Result<(), Fault> {
    let buffers = &placed.program.buffers;
    let mut is_used: Vec<bool> = buffers.iter().map(|buffer| buffer.kind == Kind::Weight).collect();
    for touch in placed.program.ops.iter().flat_map(|op| &op.touches) {
        is_used[touch.buffer] = true;
    }
    let weights = buffers.iter().zip(&placed.offsets).filter(|(buffer, _)| buffer.kind == Kind::Weight);
    let resident = weights.map(|(buffer, offset)| offset.saturating_add(buffer.bytes)).max().unwrap_or(0);
    let places = buffers.iter().zip(&placed.offsets).zip(is_used);
    for ((buffer, &offset), _) in places.filter(|(_, is_used)| *is_used) {
        if offset % ALIGNMENT != 0 {
            return fault(FaultKind::Misaligned, format!("{} begins at {offset}", buffer.name));
        }
        if buffer.kind != Kind::Weight && offset < resident {
            let what = format!("{} at {offset} lies among the weights, which end at {resident}", buffer.name);
            return fault(FaultKind::WritesResident, what);
        }
        if offset.checked_add(buffer.bytes).is_none_or(|end| end > placed.bytes) {
            let what = format!("{} at {offset} with {} bytes leaves the arena", buffer.name, buffer.bytes);
            return fault(FaultKind::OutOfBounds, what);
        }
    }
    for (i, op) in placed.program.ops.iter().enumerate() {
        for touch in &op.touches {
            let rows = touch.rows;
            let extent =
                (rows.num.max(1) - 1).checked_mul(rows.pitch).and_then(|n| n.checked_add(rows.bytes));
            let end = extent.and_then(|n| n.checked_add(touch.start));
            let buffer = &buffers[touch.buffer];
            if end.is_none_or(|end| end > buffer.bytes) {
                let what =
                    format!("operation {i} touches {touch:?} of {}, {} bytes", buffer.name, buffer.bytes);
                return fault(FaultKind::OutOfBounds, what);
            }
            if touch.mode != Mode::Read && buffer.kind == Kind::Weight {
                return fault(FaultKind::WritesResident, format!("operation {i} writes {}", buffer.name));
            }
        }
        let place = |t: &Touch| {
            let hull = t.hull();
            placed.offsets[t.buffer] + hull.start..placed.offsets[t.buffer] + hull.end
        };
        for write in op.touches.iter().filter(|t| t.mode != Mode::Read) {
            let bytes = place(write);
            let meets = |other: &&Touch| {
                let also = place(other);
                other.buffer != write.buffer && bytes.start < also.end && also.start < bytes.end
            };
            if let Some(other) = op.touches.iter().find(meets) {
                let names = [write, other].map(|t| &buffers[t.buffer].name);
                return fault(
                    FaultKind::Overlap,
                    format!("operation {i} writes {} over {}", names[0], names[1]),
                );
            }
        }
        let is_well_formed = match op.what {
            What::Launch { .. } => true,
            #[cfg(test)]
            What::Nothing => true,
            What::Send { .. } | What::Fill { .. } => {
                matches!(op.touches[..], [Touch { mode: Mode::Write, .. }])
            }
            What::Fetch { .. } => matches!(op.touches[..], [Touch { mode: Mode::Read, .. }]),
        };
        if !is_well_formed {
            return fault(
                FaultKind::Malformed,
                format!("operation {i} is a copy or fill of {:?}", op.touches),
            );
        }
    }
    Ok(())
}

fn stages(placed: &Placed) -> Result<(), Fault> {
    let mut next = 0;
    for stage in &placed.program.stages {
        if stage.ops.start != next || stage.ops.end < next || stage.repeats == 0 {
            return fault(FaultKind::Stages, format!("{} has operations {:?}", stage.name, stage.ops));
        }
        next = stage.ops.end;
    }
    match next == placed.program.ops.len() {
        true => Ok(()),
        false => fault(FaultKind::Stages, format!("operations from {next} on are in no stage")),
    }
}

struct Paper<'a> {
    placed: &'a Placed,
    /// Then nothing is unordered, and who wrote or read a piece does not matter: pieces of one buffer are one.
    is_one_stream: bool,
    /// By instance: its operation, its stream's number, and up to which instance of the other stream it knows all done.
    order: Vec<usize>,
    streams: Vec<usize>,
    knows: Vec<Option<usize>>,
    /// By first byte.
    memory: BTreeMap<usize, Piece>,
}

impl Paper<'_> {
    fn carry_out(&mut self, op: usize) -> Result<(), Fault> {
        let operation = &self.placed.program.ops[op];
        let (at, stream) = (self.order.len(), operation.stream.index());
        let before = (0..at).rev().find(|&i| self.streams[i] == stream).and_then(|i| self.knows[i]);
        let waits = self.placed.waits.iter().filter(|wait| wait.waiter == op);
        let signals = waits.filter_map(|wait| (0..at).rev().find(|&i| self.order[i] == wait.signal));
        let knows = signals.filter(|&i| self.streams[i] != stream).chain(before).max();
        self.order.push(op);
        self.streams.push(stream);
        self.knows.push(knows);
        let name = format!("operation {op}");
        // Reads first: an update reads what was there.
        for touch in operation.touches.iter().filter(|t| t.mode != Mode::Write) {
            self.read(touch, &name)?;
        }
        for touch in operation.touches.iter().filter(|t| t.mode != Mode::Read) {
            let base = self.placed.offsets[touch.buffer] + touch.start;
            let all = self.piece_at(base).filter(|piece| piece.end >= base + touch.hull().len());
            if self.is_one_stream && all.is_some_and(|piece| piece.buffer == touch.buffer) {
                continue;
            }
            for row in joined(touch) {
                self.take(touch.buffer, base + row.0, base + row.1, at)?;
            }
        }
        Ok(())
    }

    /// Whether what instance `other` did is done when the last instance begins.
    fn is_ordered(&self, other: usize) -> bool {
        let Some(last) = self.order.len().checked_sub(1) else { return true };
        other == BEFORE
            || self.streams[other] == self.streams[last]
            || self.knows[last].is_some_and(|k| other <= k)
    }

    fn unordered(&self, other: usize, bytes: std::ops::Range<usize>) -> Result<(), Fault> {
        let last = self.order.last().copied().unwrap_or_default();
        let what = format!("operations {} and {last} meet at {bytes:?} on two streams", self.order[other]);
        fault(FaultKind::Unordered, what)
    }

    fn read(&mut self, touch: &Touch, who: &str) -> Result<(), Fault> {
        let program = &self.placed.program;
        let base = self.placed.offsets[touch.buffer] + touch.start;
        let name = |i: usize| &program.buffers[i].name;
        let at = self.order.len().saturating_sub(1);
        let stream = self.streams.last().copied().unwrap_or_default();
        let hull = touch.hull();
        let all = self.piece_at(base).filter(|piece| piece.end >= base + hull.len());
        if self.is_one_stream && all.is_some_and(|piece| piece.buffer == touch.buffer) {
            return Ok(());
        }
        for (from, to) in joined(touch) {
            let (from, to) = (base + from, base + to);
            let mut next = from;
            self.split(from);
            self.split(to);
            let pieces: Vec<(usize, Piece)> = self.memory.range(from..to).map(|(&s, &p)| (s, p)).collect();
            for (start, piece) in pieces {
                if start != next {
                    break;
                }
                next = piece.end;
                if piece.buffer != touch.buffer {
                    let what = format!(
                        "{who} reads {} where {} was written since",
                        name(touch.buffer),
                        name(piece.buffer)
                    );
                    return fault(FaultKind::Reused, what);
                }
                if !self.is_ordered(piece.writer) {
                    return self.unordered(piece.writer, start..piece.end);
                }
                if let Some(piece) = self.memory.get_mut(&start).filter(|_| !self.is_one_stream) {
                    piece.readers[stream] = Some(at);
                }
            }
            if next < to {
                let what = format!(
                    "{who} reads {} at byte {}, which nothing wrote",
                    name(touch.buffer),
                    next - base
                );
                return fault(FaultKind::Unwritten, what);
            }
        }
        Ok(())
    }

    /// Bytes `from..to` become `buffer`'s, written by instance `writer`.
    fn take(&mut self, buffer: usize, from: usize, to: usize, writer: usize) -> Result<(), Fault> {
        if from == to {
            return Ok(());
        }
        self.split(from);
        self.split(to);
        let old: Vec<(usize, Piece)> = self.memory.range(from..to).map(|(&s, &p)| (s, p)).collect();
        for (start, piece) in old {
            let others = std::iter::once(piece.writer).chain(piece.readers.into_iter().flatten());
            for other in others {
                if !self.is_ordered(other) {
                    return self.unordered(other, start..piece.end);
                }
            }
            self.memory.remove(&start);
        }
        let mut piece = Piece { end: to, buffer, writer, readers: [None; StreamId::COUNT] };
        let mut start = from;
        if self.is_one_stream {
            piece.writer = BEFORE;
            if let Some(next) = self.memory.get(&to).copied().filter(|next| next.buffer == buffer) {
                self.memory.remove(&to);
                piece.end = next.end;
            }
            if let Some((&before, _)) =
                self.memory.range(..from).next_back().filter(|(_, p)| p.buffer == buffer && p.end == from)
            {
                start = before;
            }
        }
        self.memory.insert(start, piece);
        Ok(())
    }

    /// The piece that holds byte `at`.
    fn piece_at(&self, at: usize) -> Option<Piece> {
        self.memory.range(..=at).next_back().map(|(_, &piece)| piece).filter(|piece| piece.end > at)
    }

    /// Makes a piece begin at `at`, if one holds it.
    fn split(&mut self, at: usize) {
        if let Some((&start, &piece)) = self.memory.range(..at).next_back()
            && piece.end > at
        {
            self.memory.insert(start, Piece { end: at, ..piece });
            self.memory.insert(at, piece);
        }
    }
}

/// First byte and one past the last of each row, from the touch's start; rows without a gap are one.
fn joined(touch: &Touch) -> Vec<(usize, usize)> {
    let rows = touch.rows;
    if rows.num == 0 || rows.bytes == 0 {
        return Vec::new();
    }
    if rows.num == 1 || rows.pitch == rows.bytes {
        return vec![(0, (rows.num - 1) * rows.pitch + rows.bytes)];
    }
    (0..rows.num).map(|row| (row * rows.pitch, row * rows.pitch + rows.bytes)).collect()
}
