//! Offsets: weights first, in the order they were asked for, then what is written and read by operations,
//! where buffers that are never occupied together may share bytes.

use std::cmp::Reverse;

use super::liveness::Live;
use super::op::{Kind, Program};

/// Every buffer starts at a multiple of this: vector loads need 16, L2 sectors 32, tensor maps 128.
pub(crate) const ALIGNMENT: usize = 256;

/// The offset of every buffer, the size of the arena, and that of its resident part.
pub(crate) fn place(program: &Program, live: &[Live]) -> (Vec<usize>, usize, usize) {
    let mut offsets = vec![0; program.buffers.len()];
    let mut base = 0;
    let weights = program.buffers.iter().zip(&mut offsets).filter(|(b, _)| b.kind.is_resident());
    for (buffer, offset) in weights {
        *offset = base;
        base += buffer.bytes.next_multiple_of(ALIGNMENT);
    }
    let size = |i: usize| program.buffers[i].bytes.next_multiple_of(ALIGNMENT);
    let mut loading = base;
    for (i, buffer) in program.buffers.iter().enumerate().filter(|(_, b)| b.kind == Kind::Load) {
        offsets[i] = loading;
        loading += buffer.bytes.next_multiple_of(ALIGNMENT);
    }
    let work: Vec<usize> = (0..offsets.len()).filter(|&i| !live[i].is_empty()).collect();
    let span = |i: usize| live[i].last().map_or(0, |l| l.1) - live[i].first().map_or(0, |l| l.0);
    // No order of placing is best for all programs: the best of a few.
    let mut orders = [work.clone(), work.clone(), work];
    orders[0].sort_by_key(|&i| (Reverse(size(i)), i));
    orders[1].sort_by_key(|&i| (Reverse(size(i) as u128 * (span(i) + 1) as u128), i));
    orders[2].sort_by_key(|&i| (live[i].first().copied(), Reverse(size(i)), i));
    let mut best: Option<(usize, Vec<(usize, usize)>)> = None;
    for order in orders {
        let (end, places) = first_fit(&order, live, base, size);
        if best.as_ref().is_none_or(|(least, _)| end < *least) {
            best = Some((end, places));
        }
    }
    let (end, places) = best.unwrap_or((base, Vec::new()));
    for (i, offset) in places {
        offsets[i] = offset;
    }
    for (i, buffer) in program.buffers.iter().enumerate() {
        if let Kind::Part { of, start } = buffer.kind {
            offsets[i] = offsets[of] + start;
        }
    }
    (offsets, end.max(loading).max(ALIGNMENT), base)
}

/// One after the other, each at the lowest offset that no buffer occupied at the same time covers.
fn first_fit(
    order: &[usize],
    live: &[Live],
    base: usize,
    size: impl Fn(usize) -> usize,
) -> (usize, Vec<(usize, usize)>) {
    let (mut end, mut placed) = (base, Vec::<(usize, usize)>::with_capacity(order.len()));
    for &i in order {
        let mut neighbors: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&(j, _)| meet(&live[i], &live[j]))
            .map(|&(j, offset)| (offset, offset + size(j)))
            .collect();
        neighbors.sort_unstable();
        let mut offset = base;
        for (start, stop) in neighbors {
            if offset + size(i) <= start {
                break;
            }
            offset = offset.max(stop);
        }
        end = end.max(offset + size(i));
        placed.push((i, offset));
    }
    (end, placed)
}

/// Whether two ascending lists of intervals have an operation in common.
fn meet(a: &Live, b: &Live) -> bool {
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        if a[i].1 < b[j].0 {
            i += 1;
        } else if b[j].1 < a[i].0 {
            j += 1;
        } else {
            return true;
        }
    }
    false
}
