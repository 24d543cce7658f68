//! Waits between streams: wherever an operation touches bytes that one of another stream touched before, and one of the two
//! writes, the later one waits for an event behind the earlier.

use crate::device::StreamId;

use super::op::{Op, Program, Touch};

/// Operation `waiter` waits until its stream sees that `signal`, which is of another stream, is done. In a repeated stage
/// a `signal` that stands behind its `waiter` is that of the turn before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub waiter: usize,
    pub signal: usize,
}

/// The waits that `program` needs with its buffers at `offsets`; none where a wait before implies it.
pub(crate) fn order(program: &Program, offsets: &[usize]) -> Vec<Wait> {
    if program.ops.iter().all(|op| op.stream == StreamId::Compute) {
        return Vec::new();
    }
    let mut waits: Vec<Wait> = Vec::new();
    for run in program.runs() {
        order_run(program, offsets, &program.unrolled(run), &mut waits);
    }
    waits
}

/// Adds what a run of these operations needs.
fn order_run(program: &Program, offsets: &[usize], unrolled: &[usize], waits: &mut Vec<Wait>) {
    // By stream: its instances so far, and up to which of the other's it has waited.
    let mut instances: [Vec<usize>; StreamId::COUNT] = Default::default();
    let mut seen = [None::<usize>; StreamId::COUNT];
    for (at, &op) in unrolled.iter().enumerate() {
        let (later, stream) = (&program.ops[op], program.ops[op].stream.index());
        let others = instances.iter().enumerate().filter(|(other, _)| *other != stream);
        let unseen = others.flat_map(|(_, list)| list.iter().rev().copied());
        let unseen = unseen.take_while(|&i| seen[stream].is_none_or(|so_far| so_far < i));
        let conflict = unseen.into_iter().find(|&i| conflicts(&program.ops[unrolled[i]], later, offsets));
        if let Some(signal) = conflict {
            seen[stream] = Some(signal);
            let wait = Wait { waiter: op, signal: unrolled[signal] };
            if !waits.contains(&wait) {
                waits.push(wait);
            }
        }
        instances[stream].push(at);
    }
}

fn conflicts(a: &Op, b: &Op, offsets: &[usize]) -> bool {
    let place = |t: &Touch| {
        let hull = t.hull();
        offsets[t.buffer] + hull.start..offsets[t.buffer] + hull.end
    };
    a.touches.iter().any(|x| {
        let bytes = place(x);
        b.touches.iter().any(|y| {
            let other = place(y);
            (x.writes() || y.writes()) && bytes.start < other.end && other.start < bytes.end
        })
    })
}
