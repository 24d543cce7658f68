//! Whether a placed program is right, by carrying it out on paper: which bytes belong to whom after every operation, and what
//! each stream knows of the other. Shares no code with the passes whose result it looks at, nor their shortcuts: rows are
//! rows of bytes here.

use std::collections::BTreeMap;
use std::fmt;

use crate::device::{Mode, Rows, StreamId};

use super::Placed;
use super::op::{Kind, Run, Touch, What};

/// What is wrong, with the operations and buffers that it concerns in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub kind: FaultKind,
    pub what: String,
}

/// See [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// A buffer leaves the arena, a touch its buffer, or a part what it is a part of.
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
    /// A write into a weight (other than its copy from pinned memory), or a buffer that is none among them.
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

/// The first fault, if there is one.
pub(crate) fn check(placed: &Placed) -> Result<(), Fault> {
    bounds(placed)?;
    parts(placed)?;
    stages(placed)?;
    placed.program.runs().into_iter().try_for_each(|run| check_run(placed, run))
}

/// One kind of run.
fn check_run(placed: &Placed, run: Run) -> Result<(), Fault> {
    let mut paper = Paper { placed, memory: BTreeMap::new() };
    let mut streams =
        placed.program.ops.iter().any(|op| op.stream != StreamId::Compute).then(Streams::default);
    for (i, buffer) in placed.program.buffers.iter().enumerate() {
        if buffer.kind.is_resident() && buffer.bytes > 0 {
            paper.take(i, placed.offsets[i], placed.offsets[i] + buffer.bytes);
        }
    }
    for stage in &placed.program.stages {
        for _ in stage.turns(run).take(2) {
            for op in stage.ops.clone() {
                paper.carry_out(op)?;
                if let Some(streams) = &mut streams {
                    streams.carry_out(placed, op)?;
                }
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
    let mut is_used: Vec<bool> = buffers.iter().map(|buffer| buffer.kind.is_resident()).collect();
    for touch in placed.program.ops.iter().flat_map(|op| &op.touches) {
        is_used[touch.buffer] = true;
    }
    let weights = buffers.iter().zip(&placed.offsets).filter(|(buffer, _)| buffer.kind.is_resident());
    let resident = weights.map(|(buffer, offset)| offset.saturating_add(buffer.bytes)).max().unwrap_or(0);
    let places = buffers.iter().zip(&placed.offsets).zip(is_used);
    for ((buffer, &offset), _) in places.filter(|(_, is_used)| *is_used) {
        if offset % ALIGNMENT != 0 {
            return fault(FaultKind::Misaligned, format!("{} begins at {offset}", buffer.name));
        }
        if !buffer.kind.is_resident() && offset < resident {
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
            let is_upload = matches!(op.what, What::Upload { .. });
            let may_write = match buffer.kind {
                Kind::Weight(_) | Kind::Part { .. } => false,
                Kind::Streamed => is_upload,
                Kind::Load | Kind::Work => !is_upload,
            };
            if touch.mode != Mode::Read && !may_write {
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
            What::Send { .. } | What::Fill { .. } | What::Upload { .. } => {
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

/// Whether parts lie where they are said to.
fn parts(placed: &Placed) -> Result<(), Fault> {
    let buffers = &placed.program.buffers;
    for (buffer, &offset) in buffers.iter().zip(&placed.offsets) {
        if let Kind::Part { of, start } = buffer.kind {
            let fits = start.checked_add(buffer.bytes).is_some_and(|end| end <= buffers[of].bytes);
            if !fits || placed.offsets[of].checked_add(start) != Some(offset) {
                let what = format!("{} is no part of {}", buffer.name, buffers[of].name);
                return fault(FaultKind::OutOfBounds, what);
            }
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

/// Which bytes are whose, operation by operation.
struct Paper<'a> {
    placed: &'a Placed,
    /// By first byte: one past the last, and the buffer.
    memory: BTreeMap<usize, (usize, usize)>,
}

impl Paper<'_> {
    fn carry_out(&mut self, op: usize) -> Result<(), Fault> {
        let operation = &self.placed.program.ops[op];
        let name = format!("operation {op}");
        // Reads first: an update reads what was there.
        for touch in operation.touches.iter().filter(|t| t.mode != Mode::Write) {
            self.read(touch, &name)?;
        }
        for touch in operation.touches.iter().filter(|t| t.mode != Mode::Read) {
            let base = self.placed.offsets[touch.buffer] + touch.start;
            let (rows, mut row) = (joined(touch), 0);
            while row < rows.num {
                let (from, to) = (base + row * rows.pitch, base + row * rows.pitch + rows.bytes);
                row = match self.end_of_own(touch.buffer, from) {
                    own if own >= to => rows_within(rows, own - base),
                    _ => {
                        self.take(touch.buffer, from, to);
                        row + 1
                    }
                };
            }
        }
        Ok(())
    }

    /// Where the piece of `buffer` ends that byte `at` is in; 0 if it is in none.
    fn end_of_own(&self, buffer: usize, at: usize) -> usize {
        let last = self.memory.range(..=at).next_back();
        last.map_or(0, |(_, &(end, whose))| if whose == buffer && end > at { end } else { 0 })
    }

    fn read(&mut self, touch: &Touch, who: &str) -> Result<(), Fault> {
        let base = self.placed.offsets[touch.buffer] + touch.start;
        let name = |i: usize| &self.placed.program.buffers[i].name;
        let (rows, mut row) = (joined(touch), 0);
        while row < rows.num {
            let (from, to) = (base + row * rows.pitch, base + row * rows.pitch + rows.bytes);
            let own = self.end_of_own(touch.buffer, from);
            if own >= to {
                row = rows_within(rows, own - base);
                continue;
            }
            row += 1;
            let before = self.memory.range(..=from).next_back().map(|(&start, _)| start);
            let mut next = from;
            for (&start, &(end, buffer)) in self.memory.range(before.unwrap_or(from)..to) {
                if end <= from {
                    continue;
                }
                if start > next {
                    break;
                }
                if buffer != touch.buffer {
                    let what = format!(
                        "{who} reads {} where {} was written since",
                        name(touch.buffer),
                        name(buffer)
                    );
                    return fault(FaultKind::Reused, what);
                }
                next = end;
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

    /// Bytes `from..to` become `buffer`'s; neighbors of one buffer are one piece.
    fn take(&mut self, buffer: usize, mut from: usize, mut to: usize) {
        if from == to {
            return;
        }
        split(&mut self.memory, from);
        split(&mut self.memory, to);
        let old: Vec<usize> = self.memory.range(from..to).map(|(&start, _)| start).collect();
        for start in old {
            self.memory.remove(&start);
        }
        if let Some(&(end, _)) = self.memory.get(&to).filter(|(_, whose)| *whose == buffer) {
            self.memory.remove(&to);
            to = end;
        }
        if let Some((&start, _)) =
            self.memory.range(..from).next_back().filter(|(_, piece)| **piece == (from, buffer))
        {
            from = start;
        }
        self.memory.insert(from, (to, buffer));
    }
}

/// What each stream knows of the other. Bytes between rows count as touched: a plan has no reason to have another stream
/// work there.
#[derive(Default)]
struct Streams {
    /// By instance: its operation, its stream's number, and up to which instance of the other stream it knows all done.
    order: Vec<usize>,
    streams: Vec<usize>,
    knows: Vec<Option<usize>>,
    /// By stream and by operation, the last instance.
    last: [Option<usize>; StreamId::COUNT],
    last_of: BTreeMap<usize, usize>,
    /// By first byte.
    memory: BTreeMap<usize, Piece>,
}

/// Some bytes of the arena: which instance wrote them, and which of each stream read them last.
#[derive(Clone, Copy)]
struct Piece {
    end: usize,
    writer: Option<usize>,
    readers: [Option<usize>; StreamId::COUNT],
}

impl Streams {
    fn carry_out(&mut self, placed: &Placed, op: usize) -> Result<(), Fault> {
        let operation = &placed.program.ops[op];
        let (at, stream) = (self.order.len(), operation.stream.index());
        let before = self.last[stream].and_then(|i| self.knows[i]);
        let waits = placed.waits.iter().filter(|wait| wait.waiter == op);
        let signals = waits.filter_map(|wait| self.last_of.get(&wait.signal).copied());
        let knows = signals.filter(|&i| self.streams[i] != stream).chain(before).max();
        self.order.push(op);
        self.streams.push(stream);
        self.knows.push(knows);
        self.last[stream] = Some(at);
        self.last_of.insert(op, at);
        for touch in &operation.touches {
            let hull = touch.hull();
            let base = placed.offsets[touch.buffer];
            self.touch(at, base + hull.start, base + hull.end, touch.mode)?;
        }
        Ok(())
    }

    /// Instance `at`, the last one, touches bytes `from..to`.
    fn touch(&mut self, at: usize, from: usize, to: usize, mode: Mode) -> Result<(), Fault> {
        if from == to {
            return Ok(());
        }
        split(&mut self.memory, from);
        split(&mut self.memory, to);
        let mut next = from;
        let known: Vec<(usize, Piece)> = self.memory.range(from..to).map(|(&s, &p)| (s, p)).collect();
        for (start, mut piece) in known {
            let readers = piece.readers.iter().copied().filter(|_| mode != Mode::Read);
            if let Some(other) = readers.chain([piece.writer]).flatten().find(|&i| !self.is_ordered(i)) {
                let (other, last) = (self.order[other], self.order[at]);
                let what =
                    format!("operations {other} and {last} meet at {start}..{} on two streams", piece.end);
                return fault(FaultKind::Unordered, what);
            }
            if next < start {
                self.put(at, next, start, mode);
            }
            next = piece.end;
            if mode == Mode::Read {
                piece.readers[self.streams[at]] = Some(at);
                self.memory.insert(start, piece);
            } else {
                self.memory.remove(&start);
            }
        }
        match mode {
            Mode::Read if next < to => self.put(at, next, to, mode),
            Mode::Read => {}
            _ => self.put(at, from, to, mode),
        }
        Ok(())
    }

    fn put(&mut self, at: usize, from: usize, to: usize, mode: Mode) {
        let mut piece = Piece { end: to, writer: None, readers: [None; StreamId::COUNT] };
        match mode {
            Mode::Read => piece.readers[self.streams[at]] = Some(at),
            _ => piece.writer = Some(at),
        }
        self.memory.insert(from, piece);
    }

    /// Whether what instance `other` did is done when the last instance begins.
    fn is_ordered(&self, other: usize) -> bool {
        let Some(last) = self.order.len().checked_sub(1) else { return true };
        self.streams[other] == self.streams[last] || self.knows[last].is_some_and(|k| other <= k)
    }
}

/// What lies from some byte to another.
trait Extent: Copy {
    fn end(&self) -> usize;
    /// The same up to `end`.
    fn up_to(self, end: usize) -> Self;
}

impl Extent for (usize, usize) {
    fn end(&self) -> usize {
        self.0
    }

    fn up_to(self, end: usize) -> Self {
        (end, self.1)
    }
}

impl Extent for Piece {
    fn end(&self) -> usize {
        self.end
    }

    fn up_to(self, end: usize) -> Self {
        Piece { end, ..self }
    }
}

/// Makes a piece begin at `at`, if one holds it.
fn split<P: Extent>(memory: &mut BTreeMap<usize, P>, at: usize) {
    if let Some((&start, &piece)) = memory.range(..at).next_back()
        && piece.end() > at
    {
        memory.insert(start, piece.up_to(at));
        memory.insert(at, piece);
    }
}

/// Its rows; those without a gap are one, those without a byte none.
fn joined(touch: &Touch) -> Rows {
    let Rows { num, pitch, bytes } = touch.rows;
    match (num, bytes) {
        (0, _) | (_, 0) => Rows { num: 0, ..touch.rows },
        (1, _) => Rows { pitch: bytes, ..touch.rows },
        _ if pitch == bytes => Rows { num: 1, pitch: num * bytes, bytes: num * bytes },
        _ => touch.rows,
    }
}

/// How many of them end within so many bytes, in which there is one at least.
fn rows_within(rows: Rows, bytes: usize) -> usize {
    (bytes - rows.bytes) / rows.pitch + 1
}
