//! Properties of the passes: on random programs, on the programs of full-size models, and with faults planted into what they
//! made.

use crate::device::{Mode, Rows, StreamId, Work};

use super::check::{FaultKind, check};
use super::op::{Buffer, Kind, Op, Program, Stage, Tier, Touch, What, When};
use super::{Placed, Streamed, liveness, order, place};

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

const CELL: usize = 16;

/// A buffer of `rows` x `columns` cells, and which of them are written.
struct Sheet {
    rows: usize,
    columns: usize,
    written: Vec<bool>,
}

impl Sheet {
    fn bytes(&self) -> usize {
        self.rows * self.columns * CELL
    }

    /// A random block of cells.
    fn block(&self, rng: &mut Rng) -> [usize; 4] {
        let (r, c) = (rng.below(self.rows), rng.below(self.columns));
        [r, 1 + rng.below(self.rows - r), c, 1 + rng.below(self.columns - c)]
    }

    fn cells(&self, [r, num_r, c, num_c]: [usize; 4]) -> Vec<usize> {
        (r..r + num_r).flat_map(|r| (c..c + num_c).map(move |c| r * self.columns + c)).collect()
    }

    fn touch(&self, buffer: usize, [r, num_r, c, num_c]: [usize; 4], mode: Mode) -> Touch {
        let rows = Rows { num: num_r, pitch: self.columns * CELL, bytes: num_c * CELL };
        Touch { buffer, start: (r * self.columns + c) * CELL, rows, mode }
    }
}

fn op(stream: StreamId, touches: Vec<Touch>) -> Op {
    // What it does does not matter to the passes.
    let what = match touches[..] {
        [Touch { mode: Mode::Write, .. }] => What::Fill { value: 0 },
        [Touch { mode: Mode::Read, .. }] => What::Fetch { host: 0 },
        _ => What::Nothing,
    };
    Op { what, stream, touches, work: Work::default() }
}

/// A program in which everything is written before it is read, in the order of the list.
fn random_program(seed: u64) -> Program {
    let mut rng = Rng(seed);
    let mut program = Program::default();
    let mut sheets = Vec::new();
    for i in 0..2 + rng.below(7) {
        let (rows, columns) = (1 + rng.below(5), 1 + rng.below(4));
        let is_weight = rng.below(5) == 0;
        let sheet = Sheet { rows, columns, written: vec![is_weight; rows * columns] };
        let kind = if is_weight { Kind::Weight(Tier::Fixed) } else { Kind::Work };
        program.buffers.push(Buffer { name: format!("b{i}"), bytes: sheet.bytes(), kind });
        sheets.push(sheet);
    }
    for name in ["one", "two", "three"].into_iter().take(1 + rng.below(3)) {
        let start = program.ops.len();
        for _ in 0..1 + rng.below(6) {
            let mut touches: Vec<Touch> = Vec::new();
            for _ in 0..rng.below(4) {
                let buffer = rng.below(sheets.len());
                let block = sheets[buffer].block(&mut rng);
                if sheets[buffer].cells(block).iter().all(|&cell| sheets[buffer].written[cell]) {
                    let updates = program.buffers[buffer].kind == Kind::Work && rng.below(4) == 0;
                    let mode = if updates { Mode::Update } else { Mode::Read };
                    touches.push(sheets[buffer].touch(buffer, block, mode));
                }
            }
            let buffer = rng.below(sheets.len());
            if program.buffers[buffer].kind == Kind::Work {
                let block = sheets[buffer].block(&mut rng);
                touches.push(sheets[buffer].touch(buffer, block, Mode::Write));
                for cell in sheets[buffer].cells(block) {
                    sheets[buffer].written[cell] = true;
                }
            }
            if !touches.is_empty() {
                let stream = if rng.below(3) == 0 { StreamId::Copy } else { StreamId::Compute };
                program.ops.push(op(stream, touches));
            }
        }
        let ops = start..program.ops.len();
        program.stages.push(Stage {
            name,
            ops,
            repeats: 1 + rng.below(3),
            when: When::Always,
            begun: None,
            kept: Vec::new(),
        });
    }
    program
}

/// A program with weights that may leave, of one to three buffers each, as networks ask for them; the names of those that do.
fn random_streaming_program(seed: u64) -> (Program, Streamed) {
    let mut rng = Rng(seed);
    let mut program = Program::default();
    let mut buffer = |name: String, bytes, kind| {
        program.buffers.push(Buffer { name, bytes, kind });
        program.buffers.len() - 1
    };
    let whole = |buffer: usize, bytes: usize, mode| {
        let rows = Rows { num: 1, pitch: bytes, bytes };
        Touch { buffer, start: 0, rows, mode }
    };
    let num_units = 1 + rng.below(5);
    let (mut weights, mut gone) = (Vec::new(), Vec::new());
    for unit in 0..num_units {
        let tier = [Tier::Encoder, Tier::Modulation, Tier::Block, Tier::Fixed][rng.below(4)];
        let name = format!("unit.{unit}");
        let of_unit: Vec<(usize, usize)> = (0..1 + rng.below(3))
            .map(|_| {
                let bytes = CELL * (1 + rng.below(40));
                (buffer(name.clone(), bytes, Kind::Weight(tier)), bytes)
            })
            .collect();
        weights.push(of_unit);
        if rng.below(3) > 0 {
            gone.push(name);
        }
    }
    let bytes = CELL * (1 + rng.below(30));
    let states: Vec<usize> = (0..2).map(|i| buffer(format!("x{i}"), bytes, Kind::Work)).collect();
    // Each reads one unit and what the one before has left; the second stage may be the third's first turn.
    let (mut state, mut is_first) = (0, true);
    let (num_stages, begins) = (1 + rng.below(3), rng.below(2) == 0);
    for (i, name) in ["one", "two", "three"].into_iter().take(num_stages).enumerate() {
        let start = program.ops.len();
        for _ in 0..1 + rng.below(7) {
            let unit = &weights[rng.below(num_units)];
            let (weight, of_weight) = unit[rng.below(unit.len())];
            let mut touches = vec![whole(weight, of_weight, Mode::Read)];
            if !is_first {
                touches.push(whole(states[state], bytes, Mode::Read));
            }
            (state, is_first) = (1 - state, false);
            touches.push(whole(states[state], bytes, Mode::Write));
            program.ops.push(op(StreamId::Compute, touches));
        }
        // So that every turn begins as the first does.
        if (program.ops.len() - start) % 2 == 1 && start > 0 {
            let touches =
                vec![whole(states[state], bytes, Mode::Read), whole(states[1 - state], bytes, Mode::Write)];
            program.ops.push(op(StreamId::Compute, touches));
            state = 1 - state;
        }
        let (is_begin, is_begun) = (begins && i == 1 && num_stages == 3, begins && i == 2);
        let repeats = if start == 0 || is_begin { 1 } else { 1 + rng.below(3) };
        program.stages.push(Stage {
            name,
            ops: start..program.ops.len(),
            repeats,
            when: if is_begin { When::Modulating } else { When::Always },
            begun: is_begun.then_some(When::Modulating),
            kept: Vec::new(),
        });
    }
    let streamed = Streamed::of(&gone);
    (program, if rng.below(2) == 0 { streamed.tight() } else { streamed })
}

#[test]
fn streaming_is_right_and_needs_each_of_its_waits() {
    let (mut uploads, mut waits, mut missing, mut smaller) = (0, 0, 0, 0);
    for seed in 0..12_000 {
        let all = Placed::new(random_streaming_program(seed).0, &Streamed::default(), 0).unwrap();
        let (program, streamed) = random_streaming_program(seed);
        let mut placed = Placed::new(program, &streamed, 0).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let is_upload = |op: &&Op| matches!(op.what, What::Upload { .. });
        uploads += placed.program.ops.iter().filter(is_upload).count();
        smaller += (placed.bytes < all.bytes) as usize;
        for i in 0..placed.waits.len() {
            let wait = placed.waits.remove(i);
            let fault = check(&placed);
            let is_copy = |op: usize| placed.program.ops[op].stream == StreamId::Copy;
            // Whoever reads a unit needs its copy. A copy may have waited for more than it had to.
            missing += fault.as_ref().is_err_and(|f| f.kind == FaultKind::Unordered) as usize;
            waits += 1;
            if is_copy(wait.signal) && !placed.program.stages.iter().any(|stage| stage.repeats > 1) {
                assert_eq!(
                    fault.map_err(|fault| fault.kind),
                    Err(FaultKind::Unordered),
                    "seed {seed}: {wait:?}"
                );
            }
            placed.waits.insert(i, wait);
        }
    }
    assert!(uploads > 20_000 && smaller > 500, "{uploads} {smaller}");
    assert!(missing * 10 > waits * 9, "{missing} of {waits}");
}

#[test]
fn planted_faults_of_streaming_are_reported_by_name() {
    use FaultKind::*;
    let (program, streamed) = (0..)
        .map(random_streaming_program)
        .find(|(program, streamed)| {
            let placed = Placed::new(program.clone(), streamed, 0).unwrap();
            let parts =
                placed.program.buffers.iter().filter(|b| matches!(b.kind, Kind::Part { start: 1.., .. }));
            parts.count() > 1 && placed.waits.len() > 3 && streamed.len() > 2
        })
        .unwrap();
    let fault_of = |change: &dyn Fn(&mut Placed)| {
        let mut placed = Placed::new(program.clone(), &streamed, 0).unwrap();
        change(&mut placed);
        check(&placed).expect_err("a planted fault must show").kind
    };
    let part =
        |p: &Placed| p.program.buffers.iter().position(|b| matches!(b.kind, Kind::Part { start: 1.., .. }));
    let first =
        |p: &Placed| p.program.ops.iter().position(|op| matches!(op.what, What::Upload { .. })).unwrap();
    let moved = fault_of(&|p| {
        let part = part(p).unwrap();
        p.offsets[part] += 256;
    });
    assert_eq!(moved, OutOfBounds, "a part elsewhere");
    assert_eq!(
        fault_of(&|p| {
            let part = part(p).unwrap();
            p.program.buffers[part].bytes += 1 << 20;
        }),
        OutOfBounds
    );
    assert_eq!(fault_of(&|p| p.waits.clear()), Unordered);
    let of_upload = |change: fn(&mut Op)| {
        fault_of(&|p| {
            let upload = first(p);
            change(&mut p.program.ops[upload]);
        })
    };
    assert_eq!(of_upload(|op| op.touches[0].rows.bytes = 0), Unwritten);
    assert_eq!(of_upload(|op| op.what = What::Fill { value: 0 }), WritesResident);
    assert_eq!(of_upload(|op| op.touches[0].mode = Mode::Read), Malformed);
    // Two units that are there at once, at one place.
    let streamed_units = |p: &Placed| -> Vec<usize> {
        (0..p.live.len())
            .filter(|&i| p.program.buffers[i].kind == Kind::Streamed && !p.live[i].is_empty())
            .collect()
    };
    let reused = fault_of(&|p| {
        let units = streamed_units(p);
        let meets = |a: usize, b: usize| {
            p.live[a].iter().any(|x| p.live[b].iter().any(|y| x.0.max(y.0) < x.1.min(y.1)))
        };
        let pair = units
            .iter()
            .flat_map(|&a| units.iter().map(move |&b| (a, b)))
            .find(|&(a, b)| a < b && meets(a, b));
        let (a, b) = pair.unwrap();
        let from = p.offsets[a];
        p.offsets[b] = from;
        for i in 0..p.offsets.len() {
            if let Kind::Part { of, start } = p.program.buffers[i].kind
                && of == b
            {
                p.offsets[i] = from + start;
            }
        }
    });
    assert!(matches!(reused, Reused | Unordered | Overlap), "{reused:?}");
}

#[test]
fn what_the_passes_make_of_random_programs_is_right() {
    let (mut shared, mut waits) = (0, 0);
    for seed in 0..12_000 {
        let placed = Placed::new(random_program(seed), &Streamed::default(), 0)
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let live = (0..placed.live.len()).filter(|&i| !placed.live[i].is_empty());
        let sum: usize = live.map(|i| placed.program.buffers[i].bytes.next_multiple_of(256)).sum();
        shared += (placed.bytes < placed.resident_bytes + sum) as usize;
        waits += placed.waits.len();
    }
    // The programs are such that there is something to share and to wait for.
    assert!(shared > 3_000 && waits > 10_000, "{shared} {waits}");
}

/// A change to a random program's plan that makes it wrong must never be called right, where the plan needs what it changes:
/// a wait taken away, two buffers put at one place.
#[test]
fn random_plans_are_not_right_by_luck() {
    let (mut without_wait, mut overlapped) = (0, 0);
    for seed in 0..2_000 {
        let mut placed = Placed::new(random_program(seed), &Streamed::default(), 0).unwrap();
        if let Some(wait) = placed.waits.pop() {
            without_wait += check(&placed).is_err_and(|f| f.kind == FaultKind::Unordered) as usize;
            placed.waits.push(wait);
        }
        let live: Vec<usize> = (0..placed.live.len()).filter(|&i| !placed.live[i].is_empty()).collect();
        for pair in live.windows(2) {
            let meet = placed.live[pair[0]]
                .iter()
                .any(|a| placed.live[pair[1]].iter().any(|b| a.0.max(b.0) < a.1.min(b.1)));
            if meet {
                let kept = placed.offsets[pair[0]];
                placed.offsets[pair[0]] = placed.offsets[pair[1]];
                use FaultKind::{Overlap, Reused, Unordered, Unwritten};
                let is_seen =
                    |f: super::check::Fault| [Overlap, Reused, Unordered, Unwritten].contains(&f.kind);
                overlapped += check(&placed).is_err_and(is_seen) as usize;
                placed.offsets[pair[0]] = kept;
            }
        }
    }
    assert!(without_wait > 500 && overlapped > 200, "{without_wait} {overlapped}");
}

/// A weight streamed through a ring of one slot, two buffers that may share bytes, a loop that carries a sum, and something
/// kept:
///
/// ```text
/// 0 copy     slot <- weights          3 copy     slot <- weights
/// 1 compute  x <- slot                4 compute  y <- slot, x     (x's last read)
/// 2 compute  sum <- x                 5 compute  z <- y           (z may lie where x was)
/// turns:     6 compute  sum <- sum, z   7 compute  t <- sum   8 compute  z <- t, z
/// 9 compute  out <- sum, z
/// ```
fn sample() -> Program {
    let mut program = Program::default();
    let mut buffer = |name: &str, kind| {
        program.buffers.push(Buffer { name: name.to_string(), bytes: 1024, kind });
        program.buffers.len() - 1
    };
    let weights = buffer("weights", Kind::Weight(Tier::Fixed));
    let [slot, x, y, z, sum, t, out] =
        ["slot", "x", "y", "z", "sum", "t", "out"].map(|name| buffer(name, Kind::Work));
    let whole =
        |buffer, mode| Touch { buffer, start: 0, rows: Rows { num: 1, pitch: 1024, bytes: 1024 }, mode };
    let to = |writes: usize, reads: &[usize]| {
        let mut touches: Vec<Touch> = reads.iter().map(|&b| whole(b, Mode::Read)).collect();
        touches.push(whole(writes, Mode::Write));
        touches
    };
    let (compute, copy) = (StreamId::Compute, StreamId::Copy);
    program.ops = vec![
        op(copy, to(slot, &[weights])),
        op(compute, to(x, &[slot])),
        op(compute, to(sum, &[x])),
        op(copy, to(slot, &[weights])),
        op(compute, to(y, &[slot, x])),
        op(compute, to(z, &[y])),
        op(compute, vec![whole(z, Mode::Read), whole(sum, Mode::Update)]),
        op(compute, to(t, &[sum])),
        op(compute, vec![whole(t, Mode::Read), whole(z, Mode::Update)]),
        op(compute, to(out, &[sum, z])),
    ];
    let stage =
        |name, ops, repeats| Stage { name, ops, repeats, when: When::Always, begun: None, kept: Vec::new() };
    program.stages = vec![stage("before", 0..6, 1), stage("turn", 6..9, 4), stage("after", 9..10, 1)];
    program.stages[2].kept = vec![super::op::Kept {
        name: "out".to_string(),
        touch: whole(out, Mode::Read),
        is_bf16: false,
        shape: vec![256],
    }];
    program
}

/// The sample's buffers.
const WEIGHTS: usize = 0;
const SLOT: usize = 1;
const X: usize = 2;
const Y: usize = 3;
const Z: usize = 4;
const SUM: usize = 5;
const T: usize = 6;
const OUT: usize = 7;

#[track_caller]
fn fault_of(change: impl FnOnce(&mut Placed)) -> FaultKind {
    let mut placed = Placed::new(sample(), &Streamed::default(), 0).unwrap();
    change(&mut placed);
    check(&placed).expect_err("a planted fault must show").kind
}

#[test]
fn the_sample_is_right_and_shares_bytes() {
    let placed = Placed::new(sample(), &Streamed::default(), 0).unwrap();
    assert_eq!(placed.resident_bytes, 1024);
    assert!(placed.bytes < 8 * 1024, "{}", placed.bytes);
    let wait = |waiter, signal| order::Wait { waiter, signal };
    assert_eq!(placed.waits, [wait(1, 0), wait(3, 1), wait(4, 3)]);
    assert_eq!(placed.live[X], [(1, 4)]);
    assert_eq!(placed.live[SLOT], [(0, 1), (3, 4)]);
    assert_eq!(placed.live[SUM], [(2, 9)], "carried from turn to turn");
    assert_eq!(placed.live[T], [(7, 8)]);
}

#[test]
fn planted_faults_are_reported_by_name() {
    use FaultKind::*;
    // A consumer does not wait for its copy; the copy not for the last reader of its slot.
    assert_eq!(fault_of(|p| p.waits.retain(|w| w.waiter != 1)), Unordered);
    assert_eq!(fault_of(|p| p.waits.retain(|w| w.waiter != 3)), Unordered, "a slot reused early");
    assert_eq!(fault_of(|p| p.waits[2].signal = 0), Unordered, "it waits for the copy before");
    assert_eq!(fault_of(|p| p.program.ops[4].stream = StreamId::Copy), Unordered);
    // Two that are needed at once lie at one place, wholly or by a little.
    assert_eq!(fault_of(|p| p.offsets[Y] = p.offsets[SUM]), Reused);
    assert_eq!(
        fault_of(|p| {
            p.offsets[Y] = p.offsets[SUM] + 768;
            p.bytes += 4096;
        }),
        Reused
    );
    assert_eq!(fault_of(|p| p.offsets[OUT] = 0), WritesResident, "among the weights");
    // An operation's output on its input.
    assert_eq!(fault_of(|p| p.offsets[Y] = p.offsets[X]), Overlap);
    assert_eq!(fault_of(|p| p.offsets[T] = p.offsets[SUM]), Overlap);
    // A lifetime that ends too early, and where `place` could then put another.
    assert_eq!(
        fault_of(|p| {
            p.live[SUM] = vec![(2, 3)];
            let places = place::place(&p.program, &p.live, 0);
            (p.offsets, p.bytes) = (places.offsets, places.bytes);
            p.offsets[Y] = p.offsets[SUM];
        }),
        Reused
    );
    // The order of operations, and one that is missing or writes less.
    assert_eq!(fault_of(|p| p.program.ops.swap(1, 2)), Unwritten);
    assert_eq!(fault_of(|p| p.program.ops[2].touches.truncate(1)), Unwritten);
    assert_eq!(fault_of(|p| p.program.ops[5].touches.truncate(1)), Reused, "z lies where x was");
    assert_eq!(fault_of(|p| p.program.ops[5].what = What::Fill { value: 0 }), Malformed);
    assert_eq!(fault_of(|p| p.program.ops[2].touches[1].rows.bytes = 1020), Unwritten);
    assert_eq!(
        fault_of(|p| p.program.ops[2].touches[1].rows = Rows { num: 4, pitch: 256, bytes: 128 }),
        Unwritten,
        "gaps between rows"
    );
    // Places.
    assert_eq!(fault_of(|p| p.offsets[Z] += 16), Misaligned);
    assert_eq!(fault_of(|p| p.bytes -= 256), OutOfBounds);
    assert_eq!(fault_of(|p| p.offsets[Z] = usize::MAX - 255), OutOfBounds);
    assert_eq!(fault_of(|p| p.program.ops[6].touches[0].start = 8), OutOfBounds);
    assert_eq!(
        fault_of(|p| p.program.ops[6].touches[0].rows = Rows { num: 2, pitch: usize::MAX, bytes: 8 }),
        OutOfBounds
    );
    // Who may write where, and what belongs to which stage.
    assert_eq!(fault_of(|p| p.program.ops[7].touches[1].buffer = WEIGHTS), WritesResident);
    assert_eq!(fault_of(|p| p.program.stages[1].ops = 6..8), Stages);
    assert_eq!(fault_of(|p| p.program.stages[1].ops = 5..9), Stages);
    assert_eq!(fault_of(|p| p.program.stages[2].ops = 9..9), Stages);
    assert_eq!(fault_of(|p| p.program.stages[1].repeats = 0), Stages);
    // What is kept must still be there.
    assert_eq!(
        fault_of(|p| {
            p.program.stages[2].kept[0].touch.buffer = T;
            p.offsets[OUT] = p.offsets[T];
        }),
        Reused
    );
}

/// Byte for byte: a buffer that is written in parts, with gaps between rows, and read whole.
#[test]
fn lifetimes_see_rows_and_columns() {
    let mut program = Program::default();
    program.buffers.push(Buffer { name: "wide".to_string(), bytes: 4 * 256, kind: Kind::Work });
    let rows =
        |start, num, bytes, mode| Touch { buffer: 0, start, rows: Rows { num, pitch: 256, bytes }, mode };
    let compute = StreamId::Compute;
    program.ops = vec![
        op(compute, vec![rows(0, 4, 64, Mode::Write)]),
        op(compute, vec![rows(64, 4, 192, Mode::Write)]),
        op(compute, vec![rows(0, 1, 1024, Mode::Read)]),
        // The left columns are written anew, the right ones of two rows read once more.
        op(compute, vec![rows(0, 4, 64, Mode::Write)]),
        op(compute, vec![rows(0, 4, 64, Mode::Read)]),
        op(compute, vec![rows(512 + 64, 2, 192, Mode::Read)]),
        op(compute, vec![rows(0, 1, 1024, Mode::Write)]),
        op(compute, vec![rows(0, 1, 1024, Mode::Read)]),
    ];
    for op in &mut program.ops {
        op.what = What::Nothing;
        // Contiguous ones are one row.
        for touch in &mut op.touches {
            if touch.rows.bytes == 1024 {
                touch.rows.pitch = 1024;
            }
        }
    }
    program.stages.push(Stage {
        name: "all",
        ops: 0..8,
        repeats: 1,
        when: When::Always,
        begun: None,
        kept: Vec::new(),
    });
    assert_eq!(liveness::liveness(&program), [vec![(0, 7)]]);
    // Without the last look at them, the buffer is free for a moment.
    program.buffers.push(Buffer { name: "other".to_string(), bytes: 256, kind: Kind::Work });
    let touch = Touch { buffer: 1, ..rows(0, 1, 256, Mode::Write) };
    program.ops[5] = op(compute, vec![touch]);
    assert_eq!(liveness::liveness(&program), [vec![(0, 4), (6, 7)], vec![(5, 5)]]);
    let placed = Placed::new(program, &Streamed::default(), 0).unwrap();
    assert_eq!(placed.offsets, [0, 0]);
}

/// The published models at every size, without weights: `Plan::new` ends with the check.
mod full_size {
    use super::What;
    use crate::config::PipelineConfig;
    use crate::pipeline::{Plan, Quantize, Shape};

    fn dev() -> PipelineConfig {
        let mut config = PipelineConfig::schnell();
        config.flux.guidance = true;
        config
    }

    #[test]
    fn every_size_is_right() {
        for config in [PipelineConfig::schnell(), dev()] {
            for (width, height) in [(256, 256), (512, 512), (768, 1344), (1024, 1024), (2048, 2048)] {
                for (steps, true_cfg) in [(1, false), (50, true)] {
                    let shape = Shape { width, height, steps, true_cfg, t5_length: 256 };
                    Plan::new(&config, shape, Quantize::Nf4).unwrap();
                }
            }
        }
        let shape = Shape { t5_length: 512, ..Shape::default() };
        Plan::new(&PipelineConfig::schnell(), shape, Quantize::None).unwrap();
    }

    /// Beside its blocks a step embeds, ends and counts; nothing is launched that could be a part of something else.
    #[test]
    fn a_step_is_few_launches() {
        let (config, shape) = (PipelineConfig::schnell(), Shape::square(1024));
        let plan = Plan::new(&config, shape, Quantize::Nf4).unwrap();
        let program = &plan.shapes[0].placed.program;
        let step = program.stages.iter().rfind(|stage| stage.name == "step").unwrap();
        let ops = &program.ops[step.ops.clone()];
        let launches = ops.iter().filter(|op| matches!(op.what, What::Launch { .. })).count();
        assert_eq!(launches, 7 * config.flux.layers + 4 * config.flux.single_layers + 8);
    }

    /// Budgets from the least to the most, at six sizes: each plan keeps within its own, and uses it.
    #[test]
    fn every_budget_is_right() {
        let sizes = [(256, 256), (512, 512), (768, 1344), (1024, 1024), (1536, 1024), (2048, 2048)];
        std::thread::scope(|scope| {
            for (config, true_cfg) in [(PipelineConfig::schnell(), false), (dev(), false), (dev(), true)] {
                scope.spawn(move || {
                    for (width, height) in sizes {
                        let shape = Shape { width, height, true_cfg, ..Shape::default() };
                        let all = Plan::new(&config, shape, Quantize::Nf4).unwrap();
                        let (least, most) = (all.least_bytes().unwrap(), all.arena_bytes());
                        for i in 0..=40 {
                            let budget = least + (most - least) * i / 40;
                            let bytes = all.clone().within(budget).unwrap().arena_bytes();
                            // But for what the next unit would take.
                            let unused = budget.saturating_sub(bytes);
                            assert!(
                                bytes <= budget && unused < 400 << 20,
                                "{width} x {height}: {bytes} of {budget}"
                            );
                            assert!((i > 0 || bytes == least) && (i < 40 || bytes == most));
                        }
                        println!("{width} x {height}, {true_cfg}: {least} to {most}");
                    }
                });
            }
        });
    }

    /// What leaving T5's `wo` wide costs, and what docs/adr/0011 says of it.
    #[test]
    fn arenas_have_the_documented_bytes() {
        for (side, quantize, bytes) in [
            (512, Quantize::Nf4, 11_232_176_128),
            (512, Quantize::Nf4All, 9_785_141_248),
            (1024, Quantize::Nf4, 11_839_301_632),
            (1024, Quantize::Nf4All, 10_392_266_752),
        ] {
            let shape = Shape { width: side, height: side, ..Shape::default() };
            let plan = Plan::new(&PipelineConfig::schnell(), shape, quantize).unwrap();
            assert_eq!(plan.arena_bytes(), bytes, "{side}, {quantize}");
        }
    }

    /// What the arena was when lifetimes were declared by hand, in six phases.
    #[test]
    fn derived_lifetimes_are_no_worse_than_declared_ones() {
        for (side, declared) in [(512, 9_996_674_048), (1024, 11_262_829_568)] {
            let shape = Shape { width: side, height: side, ..Shape::default() };
            let bytes = Plan::new(&PipelineConfig::schnell(), shape, Quantize::Nf4All).unwrap().arena_bytes();
            println!("{side}: {bytes}");
            assert!(bytes <= declared, "{side}: {bytes} > {declared}");
        }
    }
}
