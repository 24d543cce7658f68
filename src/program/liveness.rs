//! Which buffers hold something that matters, during which operations: from the first write to the last read, byte for
//! byte, derived and not declared.
//!
//! A buffer is cut into cells along the rows and columns at which any operation on it begins or ends, so that a set of
//! bytes is a set of cells, however many rows it has. The classical backward pass over the operations then says of each
//! buffer whether any cell is still to be read.

use std::collections::BTreeSet;

use super::op::{Buffer, Program, Touch};

/// The operations during which a buffer is occupied: disjoint, ascending, first and last included.
pub(crate) type Live = Vec<(usize, usize)>;

/// How a buffer is cut. With `pitch` 0 it is one row.
struct Cells {
    pitch: usize,
    /// Ascending; cells lie between neighbors.
    rows: Vec<usize>,
    columns: Vec<usize>,
}

impl Cells {
    /// Rows and columns if all that has rows has them at one pitch, and what has none begins and ends with whole rows; else
    /// a single row, cut at every row of every touch.
    fn of(touches: &[Touch]) -> Cells {
        let is_plain = |t: &Touch| t.rows.num <= 1 || t.rows.pitch == t.rows.bytes;
        let pitches: BTreeSet<usize> =
            touches.iter().filter(|t| !is_plain(t)).map(|t| t.rows.pitch).collect();
        let pitch = if pitches.len() == 1 { pitches.first().copied().unwrap_or(0) } else { 0 };
        let mut cells = Cells { pitch, rows: Vec::new(), columns: Vec::new() };
        let fits = |t: &Touch| match is_plain(t) {
            true => {
                let hull = t.hull();
                hull.start % pitch == 0 && hull.end % pitch == 0
                    || hull.start / pitch == hull.end.saturating_sub(1) / pitch
            }
            false => t.start % pitch + t.rows.bytes <= pitch,
        };
        if pitch == 0 || !touches.iter().all(fits) {
            cells.pitch = 0;
            cells.rows = vec![0, 1];
            cells.columns = cut(touches.iter().flat_map(|t| {
                let rows = if is_plain(t) { 1 } else { t.rows.num };
                let bytes = if is_plain(t) { t.hull().len() } else { t.rows.bytes };
                (0..rows).flat_map(move |r| {
                    let start = t.start + r * t.rows.pitch;
                    [start, start + bytes]
                })
            }));
            return cells;
        }
        cells.rows = cut(touches.iter().flat_map(|t| {
            let hull = t.hull();
            [hull.start / pitch, hull.end.div_ceil(pitch)]
        }));
        cells.columns = cut(touches.iter().flat_map(|t| {
            let hull = t.hull();
            match is_plain(t) {
                true if hull.start % pitch == 0 && hull.end % pitch == 0 => [0, pitch],
                true => [hull.start % pitch, hull.start % pitch + hull.len()],
                false => [t.start % pitch, t.start % pitch + t.rows.bytes],
            }
        }));
        cells
    }

    fn count(&self) -> usize {
        self.rows.len().saturating_sub(1) * self.columns.len().saturating_sub(1)
    }

    /// Calls `f` with every cell of a touch.
    fn each(&self, t: &Touch, mut f: impl FnMut(usize)) {
        let hull = t.hull();
        if hull.is_empty() {
            return;
        }
        let width = self.columns.len() - 1;
        let span = |cuts: &[usize], from: usize, to: usize| {
            cuts.partition_point(|&c| c < from)..cuts.partition_point(|&c| c < to)
        };
        if self.pitch == 0 {
            let plain = t.rows.num <= 1 || t.rows.pitch == t.rows.bytes;
            let (rows, bytes) = if plain { (1, hull.len()) } else { (t.rows.num, t.rows.bytes) };
            for r in 0..rows {
                let start = t.start + r * t.rows.pitch;
                span(&self.columns, start, start + bytes).for_each(&mut f);
            }
            return;
        }
        let pitch = self.pitch;
        let rows = span(&self.rows, hull.start / pitch, hull.end.div_ceil(pitch));
        let whole = hull.start % pitch == 0 && hull.end % pitch == 0;
        let plain = t.rows.num <= 1 || t.rows.pitch == t.rows.bytes;
        let columns = match plain {
            true if whole => 0..width,
            true => span(&self.columns, hull.start % pitch, hull.start % pitch + hull.len()),
            false => span(&self.columns, t.start % pitch, t.start % pitch + t.rows.bytes),
        };
        for row in rows {
            columns.clone().for_each(|column| f(row * width + column));
        }
    }
}

fn cut(at: impl Iterator<Item = usize>) -> Vec<usize> {
    let set: BTreeSet<usize> = at.collect();
    set.into_iter().collect()
}

/// For every buffer, when it is occupied; empty for resident weights, which always are, and for what nothing touches.
pub(crate) fn liveness(program: &Program) -> Vec<Live> {
    let n = program.ops.len();
    // What is kept at the end of a stage is read by its last operation, as it were.
    let mut touches: Vec<Vec<Touch>> = program.ops.iter().map(|op| op.touches.clone()).collect();
    for stage in &program.stages {
        if let Some(last) = stage.ops.clone().last() {
            touches[last].extend(stage.kept.iter().map(|kept| kept.touch));
        }
    }
    let mut by_buffer: Vec<Vec<(usize, Touch)>> = vec![Vec::new(); program.buffers.len()];
    for (op, touches) in touches.iter().enumerate() {
        for touch in touches {
            by_buffer[touch.buffer].push((op, *touch));
        }
    }
    // Whatever kind of run it is: the operations in order, and where each is among them.
    let runs: Vec<(Vec<usize>, Vec<Vec<usize>>)> = program
        .runs()
        .into_iter()
        .map(|run| {
            let order = program.unrolled(run);
            let mut instances: Vec<Vec<usize>> = vec![Vec::new(); n];
            for (at, &op) in order.iter().enumerate() {
                instances[op].push(at);
            }
            (order, instances)
        })
        .collect();
    let live = |(buffer, touches): (&Buffer, &Vec<(usize, Touch)>)| {
        let mut occupied = vec![false; n];
        if buffer.kind.is_work() {
            for (order, instances) in &runs {
                occupy(touches, order, instances, &mut occupied);
            }
        }
        intervals(&occupied)
    };
    program.buffers.iter().zip(&by_buffer).map(live).collect()
}

/// Marks the operations of a run during which the buffer that is touched so is occupied.
fn occupy(touches: &[(usize, Touch)], order: &[usize], instances: &[Vec<usize>], occupied: &mut [bool]) {
    let all: Vec<Touch> = touches.iter().map(|(_, touch)| *touch).collect();
    let cells = Cells::of(&all);
    let mut live = vec![false; cells.count()];
    let mut num_live = 0usize;
    // Instances of operations that touch the buffer, last first.
    let mut events: Vec<(usize, usize)> = Vec::new();
    for (i, (op, _)) in touches.iter().enumerate() {
        events.extend(instances[*op].iter().map(|&at| (at, i)));
    }
    events.sort_unstable_by(|a, b| b.cmp(a));
    let mut i = 0;
    while i < events.len() {
        let at = events[i].0;
        let here: Vec<&Touch> =
            events[i..].iter().take_while(|e| e.0 == at).map(|e| &touches[e.1].1).collect();
        i += here.len();
        occupied[order[at]] = true;
        for touch in here.iter().filter(|t| !t.reads()) {
            cells.each(touch, |cell| {
                num_live -= live[cell] as usize;
                live[cell] = false;
            });
        }
        for touch in here.iter().filter(|t| t.reads()) {
            cells.each(touch, |cell| {
                num_live += !live[cell] as usize;
                live[cell] = true;
            });
        }
        // Occupied from here back to the event before.
        if num_live > 0 {
            let before = events.get(i).map_or(0, |e| e.0);
            order[before..at].iter().for_each(|&op| occupied[op] = true);
        }
    }
}

fn intervals(occupied: &[bool]) -> Live {
    let mut intervals = Live::new();
    for (op, _) in occupied.iter().enumerate().filter(|(_, is_occupied)| **is_occupied) {
        match intervals.last_mut() {
            Some((_, last)) if *last + 1 == op => *last = op,
            _ => intervals.push((op, op)),
        }
    }
    intervals
}
