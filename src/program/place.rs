//! Offsets: weights first, in the order they were asked for, then what is written and read by operations,
//! where buffers that are never occupied together may share bytes.

use std::cmp::Reverse;
use std::ops::Range;

use super::liveness::Live;
use super::op::{Kind, Program};

/// Every buffer starts at a multiple of this: vector loads need 16, L2 sectors 32, tensor maps 128.
pub(crate) const ALIGNMENT: usize = 256;

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Places {
    /// Of every buffer.
    pub offsets: Vec<usize>,
    /// Of the arena.
    pub bytes: usize,
    /// Of its resident part.
    pub resident_bytes: usize,
    /// What is between regions, and belongs to none.
    pub guards: Vec<Range<usize>>,
}

/// Places for all buffers. With a `guard` of bytes above 0, a multiple of [`ALIGNMENT`], so many are left free behind each unit of
/// weights and each other buffer, and no two share any: so a test sees whether anything is written beside its place.
pub(crate) fn place(program: &Program, live: &[Live], guard: usize) -> Places {
    let always: Vec<Live>;
    let live = match guard {
        0 => live,
        _ => {
            let whole = |live: &Live| if live.is_empty() { Vec::new() } else { vec![(0, usize::MAX - 1)] };
            always = live.iter().map(whole).collect();
            &always
        }
    };
    let (mut offsets, mut guards) = (vec![0; program.buffers.len()], Vec::new());
    let mut base = 0;
    let weights = program.buffers.iter().zip(&mut offsets).filter(|(b, _)| b.kind.is_resident());
    let mut last = None;
    for (buffer, offset) in weights {
        // Units stay in one piece.
        if guard > 0
            && last
                .replace((&buffer.name, buffer.kind))
                .is_some_and(|last| last != (&buffer.name, buffer.kind))
        {
            guards.push(base..base + guard);
            base += guard;
        }
        *offset = base;
        base += buffer.bytes.next_multiple_of(ALIGNMENT);
    }
    if guard > 0 {
        guards.push(base..base + guard);
        base += guard;
    }
    let aligned = |i: usize| program.buffers[i].bytes.next_multiple_of(ALIGNMENT);
    let size = |i: usize| aligned(i) + guard;
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
        guards.extend((guard > 0).then(|| offset + aligned(i)..offset + size(i)));
    }
    for (i, buffer) in program.buffers.iter().enumerate() {
        if let Kind::Part { of, start } = buffer.kind {
            offsets[i] = offsets[of] + start;
        }
    }
    Places { offsets, bytes: end.max(loading).max(ALIGNMENT), resident_bytes: base, guards }
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
