//! A program bound to memory, and the one loop that enqueues it: timing, progress, dumps and stopping hang on its stages.
//!
//! Everything is decided before: an operation is enqueued as it is, without allocating. The host waits only to stay at most one
//! turn of a repeated stage ahead, for dumps, and at the end.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::device::{Config, Device, Event, Graph, HostBuffer, Node, Params, StreamId, View, Work};
use crate::memory::arena::Arena;
use crate::models::flux::{IMAGE, Inputs, LATENTS, Outputs};
use crate::program::op::{Kept, Op};
use crate::program::{HostRange, Kind, Origin, Placed, Program, Run, STREAM, What};
use crate::{Error, Result};

use super::deadline::Pace;
use super::disk::Disk;
use super::dumps::Dumps;
use super::pixels::OnDevice;
use super::plan::ShapePlan;
use super::preview::{Viewer, ahead};
use super::timing::{Clock, Timings};
use super::trace::{Tracer, traced};
use super::{OnProgress, Plan, Progress, Shape};

/// A shape's program in an arena.
#[derive(Debug)]
pub(super) struct Bound {
    plan: Arc<ShapePlan>,
    ops: Vec<BoundOp>,
    stages: Vec<BoundStage>,
    /// Behind operations that another stream waits for; an operation's numbers point here.
    events: Vec<Event>,
    clock: Clock,
    /// Units that each kind of run copies from disk, in order.
    from_disk: [(Run, Arc<[usize]>); 3],
}

#[derive(Debug)]
struct BoundOp {
    what: Ready,
    stream: StreamId,
    /// Events to wait for before, and the event to record behind.
    waits: Vec<usize>,
    signal: Option<usize>,
}

/// Host memory that a run copies from and to.
pub(super) struct Pinned<'a> {
    /// Streamed ones.
    pub weights: Option<&'a HostBuffer>,
    /// Those for which it has no room.
    pub disk: Option<&'a mut Disk>,
    /// Inputs and outputs.
    pub host: &'a mut HostBuffer,
    /// Stages, one at a time.
    pub dumps: Option<&'a mut HostBuffer>,
}

/// Who looks on while a run goes.
pub(super) struct Watchers<'a, 'p> {
    pub progress: &'a mut OnProgress<'p>,
    pub pace: Pace<'a>,
    pub dumps: Dumps,
    pub viewer: Option<Viewer<'a>>,
    pub tracer: Option<Tracer>,
    /// Who wants pixels on the device.
    pub on_device: Option<OnDevice<'a>>,
}

/// An operation as the machine takes it.
#[derive(Debug)]
enum Ready {
    Launch { config: Config, params: Params, work: Work },
    Send { to: View<u8>, host: usize },
    Fetch { from: View<u8>, host: usize },
    Fill { view: View<u8>, value: u8 },
    Upload { to: View<u8>, from: Origin, name: Arc<str> },
}

/// Operations that are enqueued one by one, or at once.
#[derive(Debug)]
struct Piece {
    ops: Range<usize>,
    graph: Option<Graph>,
}

/// So many launches at least are made a graph; fewer cost the host no more by themselves.
const LEAST_IN_GRAPH: usize = 4;

#[derive(Debug)]
struct BoundStage {
    name: &'static str,
    ops: Range<usize>,
    pieces: Vec<Piece>,
    /// The turns that it takes in each kind of run.
    turns: [(Run, Range<usize>); Run::ALL.len()],
    /// What no buffer holds when a turn begins: on the emulator it is overwritten, so that a read of it shows.
    dead: Vec<View<u8>>,
    kept: Vec<(Kept, View<u8>)>,
    /// Of every turn, for timings.
    labels: Vec<Arc<str>>,
}

impl BoundStage {
    /// What it leaves under this name.
    fn kept(&self, name: &str) -> Result<&View<u8>> {
        let found = self.kept.iter().find(|(kept, _)| kept.name == name);
        found
            .map(|(_, view)| view)
            .ok_or_else(|| Error::Internal(format!("{}: no {name} is kept", self.name)))
    }

    fn turns(&self, run: Run) -> Range<usize> {
        self.turns.iter().find(|(kind, _)| *kind == run).map_or(0..0, |(_, turns)| turns.clone())
    }
}

impl Bound {
    /// Records the program again, where it lies, and readies its kernels, and graphs of them if there shall be any.
    pub fn new(
        plan: Arc<ShapePlan>,
        whole: &Plan,
        device: &Device,
        arena: &Arena,
        graphs: bool,
    ) -> Result<Bound> {
        let again = plan.record_at(whole.config(), whole.how(), device, arena.address()?)?;
        let placed = &plan.placed;
        same_operations(placed, &again, arena)?;
        let view = |touch: &crate::program::Touch| {
            let hull = touch.hull();
            arena.bytes(placed.offsets[touch.buffer] + hull.start, hull.len())
        };
        let mut ops = Vec::with_capacity(placed.program.ops.len());
        let mut recorded = again.ops.into_iter();
        // One event behind each operation that any other waits for.
        let signals: BTreeSet<usize> = placed.waits.iter().map(|wait| wait.signal).collect();
        let signals: Vec<usize> = signals.into_iter().collect();
        for (i, first) in placed.program.ops.iter().enumerate() {
            let what = match first.what {
                What::Upload { from } => {
                    let to = &first.touches[0];
                    let name = placed.program.buffers[to.buffer].name.as_str().into();
                    Ready::Upload { to: view(to)?, from, name }
                }
                _ => {
                    let op = recorded.next().ok_or_else(another_program)?;
                    match op.what {
                        What::Launch { config, params } => {
                            within(&op.work, arena)?;
                            device.prepare(config.kernel)?;
                            device.note_launched(config.kernel);
                            Ready::Launch { config, params, work: op.work }
                        }
                        What::Send { host } => Ready::Send { to: view(&first.touches[0])?, host },
                        What::Fetch { host } => Ready::Fetch { from: view(&first.touches[0])?, host },
                        What::Fill { value } => Ready::Fill { view: view(&first.touches[0])?, value },
                        What::Upload { .. } => return Err(another_program()),
                        #[cfg(test)]
                        What::Nothing => continue,
                    }
                }
            };
            let waits = placed.waits.iter().filter(|wait| wait.waiter == i);
            let waits = waits.filter_map(|wait| signals.binary_search(&wait.signal).ok()).collect();
            let signal = signals.binary_search(&i).ok();
            ops.push(BoundOp { what, stream: first.stream, waits, signal });
        }
        let stage = |stage: &crate::program::Stage| {
            let kept: Result<Vec<_>> =
                stage.kept.iter().map(|kept| Ok((kept.clone(), view(&kept.touch)?))).collect();
            let dead = dead_at(&plan, stage.ops.start, arena)?;
            Ok(BoundStage {
                name: stage.name,
                ops: stage.ops.clone(),
                pieces: pieces(stage.ops.clone(), &ops, graphs.then_some(device))?,
                turns: Run::ALL.map(|run| (run, stage.turns(run))),
                dead,
                kept: kept?,
                labels: (0..stage.repeats).map(|turn| stage.label(turn).into()).collect(),
            })
        };
        let stages = placed.program.stages.iter().map(stage).collect::<Result<Vec<_>>>()?;
        let events = signals.iter().map(|_| device.create_event()).collect::<Result<_>>()?;
        let behind = stages.iter().rposition(|stage| stage.name == "step").map_or(0, |last| last + 1);
        if !from_disk(&stages[behind..], &ops, Run::Fresh).is_empty() {
            // They come in the order of all steps, of which a run may do fewer.
            return Err(Error::Internal("weights of the decoder stay on disk".to_string()));
        }
        let from_disk = Run::ALL.map(|run| (run, from_disk(&stages, &ops, run)));
        // And one for pixels on the device.
        let clock = Clock::new(device, stages.iter().map(|stage| stage.labels.len()).sum::<usize>() + 1)?;
        Ok(Bound { plan, ops, stages, events, clock, from_disk })
    }

    pub fn shape(&self) -> Shape {
        self.plan.shape
    }

    pub fn inputs(&self) -> &Inputs {
        &self.plan.inputs
    }

    pub fn outputs(&self) -> &Outputs {
        &self.plan.outputs
    }

    /// How long the stages of the last run took, behind those of the host.
    pub fn timings(&self, device: &Device, host: &[(&str, f64)]) -> Result<Timings> {
        self.clock.read(device, host)
    }

    /// Enqueues all of a `run` of this kind and waits for the end.
    pub fn run(
        &mut self,
        run: Run,
        device: &Device,
        pinned: Pinned<'_>,
        watchers: &mut Watchers<'_, '_>,
    ) -> Result<()> {
        let Pinned { weights, mut disk, host, dumps: dump_host } = pinned;
        let units = self.from_disk.iter().find(|(kind, _)| *kind == run);
        if let (Some(disk), Some((_, units))) = (&mut disk, units) {
            disk.begin(units)?;
        }
        let pinned = Pinned { weights, disk: disk.as_deref_mut(), host, dumps: dump_host };
        // Whatever ends it, a panic of `progress` too: the next run meets nothing of this one in the streams.
        let drained = Drained(device);
        let result = self.run_stages(run, device, pinned, watchers);
        // First, so that what has been enqueued and does not matter any more is not read.
        let read = disk.map_or(Ok(()), Disk::end);
        drop(drained);
        match (result, read) {
            (Err(error @ Error::Device { .. }), _) => Err(error),
            // Where weights could not be read, whatever was computed, and came of it, is for nothing.
            // What waited at the end has told nobody.
            (result, read) => read.and(result).and_then(|()| device.check_alive()),
        }
    }

    fn run_stages(
        &mut self,
        run: Run,
        device: &Device,
        pinned: Pinned<'_>,
        watchers: &mut Watchers<'_, '_>,
    ) -> Result<()> {
        let Pinned { weights, mut disk, host, dumps: mut dump_host } = pinned;
        let Watchers { progress, pace, dumps, viewer, tracer, on_device } = watchers;
        let Bound { plan, ops, stages, events, clock, .. } = self;
        let total = plan.shape.steps;
        let mut is_last = false;
        clock.start(device)?;
        for stage in stages.iter().filter(|stage| !stage.turns(run).is_empty()) {
            let announced = match stage.name {
                "clip" => Some(Progress::TextEncoding),
                "vae" => Some(Progress::Decoding),
                _ => None,
            };
            if announced.is_some_and(|event| progress(event).is_break()) {
                return Err(Error::Stopped);
            }
            let is_step = stage.name == "step";
            for turn in stage.turns(run) {
                if is_step {
                    if is_last {
                        break;
                    }
                    is_last = pace.is_last(turn)?;
                    if is_last && turn + 1 < total {
                        go_all_the_way(device, ops, host, plan.inputs.dt, (turn, pace.sigma(turn)))?;
                    }
                }
                if device.capability().is_emulator {
                    for view in &stage.dead {
                        device.fill(STREAM, view, 0xff)?;
                    }
                }
                traced(tracer, ("enqueue", &stage.labels[turn]), |tracer| {
                    let weights = (weights, disk.as_deref_mut());
                    enqueue(device, (ops, &stage.pieces), events, weights, host, tracer)
                })?;
                if disk.as_ref().is_some_and(|disk| disk.has_failed()) {
                    // `Disk::end` says why.
                    return Ok(());
                }
                if let Some(viewer) = viewer.as_mut().filter(|_| is_step) {
                    let left = if is_last { 0.0 } else { pace.sigma(turn + 1) };
                    viewer.fetch(device, turn, ahead(pace.sigma(turn), left), stage.kept(LATENTS)?)?;
                }
                clock.stage(device, stage.labels[turn].clone())?;
                if is_step {
                    if progress(Progress::Step { index: turn, total }).is_break() {
                        return Err(Error::Stopped);
                    }
                    traced(tracer, ("wait", ""), |_| clock.keep_pace(device))?;
                }
                if let Some(viewer) = viewer {
                    // The last is there while the decoder is at work.
                    viewer.show_before(if is_step { turn } else { usize::MAX })?;
                }
                if let Some(dump_host) = dump_host.as_deref_mut().filter(|_| dumps.on) {
                    for (kept, view) in &stage.kept {
                        dumps.keep(device, dump_host, stage.name, turn, kept, view)?;
                    }
                }
            }
        }
        if let Some(to) = on_device {
            let last = stages.last().ok_or_else(|| Error::Internal("no stages".to_string()))?;
            to.enqueue(device, &last.kept(IMAGE)?.cast()?)?;
            clock.stage(device, "pixels".into())?;
        }
        traced(tracer, ("wait", ""), |_| drain(ops, device))?;
        match tracer {
            Some(tracer) => clock.trace(tracer),
            None => Ok(()),
        }
    }

    /// Enqueues one turn of the last stage called `name` and nothing else: what the host pays for it.
    #[cfg(test)]
    pub fn enqueue_once(
        &self,
        device: &Device,
        weights: Option<&HostBuffer>,
        host: &mut HostBuffer,
        name: &str,
    ) -> Result<usize> {
        let Some(stage) = self.stages.iter().rfind(|stage| stage.name == name) else { return Ok(0) };
        enqueue(device, (&self.ops, &stage.pieces), &self.events, (weights, None), host, None)?;
        Ok(stage.ops.len())
    }
}

/// Lets a step go from its sigma to 0 rather than to the next one's: what latents - sigma * velocity are is its estimate of the clean
/// ones.
fn go_all_the_way(
    device: &Device,
    ops: &[BoundOp],
    host: &mut HostBuffer,
    dt: HostRange,
    (turn, sigma): (usize, f32),
) -> Result<()> {
    let at = dt.start + size_of::<f32>() * turn;
    host.as_mut_slice()[at..at + size_of::<f32>()].copy_from_slice(&(-sigma).to_ne_bytes());
    let to = ops.iter().find_map(|op| match &op.what {
        Ready::Send { to, host } if *host == dt.start => Some(to),
        _ => None,
    });
    let to = to.ok_or_else(|| Error::Internal("nothing sends the steps' lengths".to_string()))?;
    device.copy_to_device(STREAM, to, host, dt.start)
}

/// When it goes, nothing is left in the streams.
struct Drained<'a>(&'a Device);

impl Drop for Drained<'_> {
    fn drop(&mut self) {
        self.0.drain();
    }
}

/// Units that a run copies from disk, in order.
fn from_disk(stages: &[BoundStage], ops: &[BoundOp], run: Run) -> Arc<[usize]> {
    let turns = stages.iter().flat_map(|stage| stage.turns(run).map(|_| &ops[stage.ops.clone()]));
    let unit = |op: &BoundOp| match op.what {
        Ready::Upload { from: Origin::Disk(unit), .. } => Some(unit),
        _ => None,
    };
    turns.flatten().filter_map(unit).collect()
}

/// Waits until what has been enqueued is done.
fn drain(ops: &[BoundOp], device: &Device) -> Result<()> {
    if ops.iter().any(|op| op.stream == StreamId::Copy) {
        device.synchronize(StreamId::Copy)?;
    }
    device.synchronize(STREAM)
}

/// Parts a stage: where nothing but launches and fills follow each other, on the stream of kernels and with nothing to wait for
/// or to signal in between, they become a graph, on the device if there is one.
fn pieces(stage: Range<usize>, ops: &[BoundOp], device: Option<&Device>) -> Result<Vec<Piece>> {
    let node = |i: usize| match &ops[i].what {
        Ready::Launch { config, params, work } => Some(Node::Launch { config: *config, params, work }),
        Ready::Fill { view, value } => Some(Node::Fill { view, value: *value }),
        Ready::Send { .. } | Ready::Fetch { .. } | Ready::Upload { .. } => None,
    };
    let fits = |i: usize| ops[i].stream == STREAM && node(i).is_some();
    let follows = |i: usize| fits(i) && ops[i].waits.is_empty() && ops[i - 1].signal.is_none();
    let (mut pieces, mut begin): (Vec<Piece>, usize) = (Vec::new(), stage.start);
    while begin < stage.end {
        let mut end = begin + 1;
        while end < stage.end && fits(begin) && follows(end) {
            end += 1;
        }
        let graph = match device {
            Some(device) if end - begin >= LEAST_IN_GRAPH => {
                let nodes: Vec<Node<'_>> = (begin..end).filter_map(node).collect();
                // SAFETY: as of each of them in `enqueue_each`.
                match unsafe { device.graph(&nodes) } {
                    Ok(graph) => Some(graph),
                    // It does the same without them.
                    Err(Error::Unsupported(_)) => None,
                    Err(error) => return Err(error),
                }
            }
            _ => None,
        };
        match pieces.last_mut() {
            Some(last) if graph.is_none() && last.graph.is_none() => last.ops.end = end,
            _ => pieces.push(Piece { ops: begin..end, graph }),
        }
        begin = end;
    }
    Ok(pieces)
}

fn enqueue(
    device: &Device,
    (ops, pieces): (&[BoundOp], &[Piece]),
    events: &[Event],
    (weights, mut disk): (Option<&HostBuffer>, Option<&mut Disk>),
    host: &mut HostBuffer,
    mut tracer: Option<&mut Tracer>,
) -> Result<()> {
    for Piece { ops: range, graph } in pieces {
        let ops = &ops[range.clone()];
        let (Some(graph), [first, .., last]) = (graph, ops) else {
            let weights = (weights, disk.as_deref_mut());
            enqueue_each(device, ops, events, weights, host, tracer.as_deref_mut())?;
            continue;
        };
        for &event in &first.waits {
            device.wait(STREAM, &events[event])?;
        }
        // SAFETY: as of each of its operations in `enqueue_each`.
        unsafe { device.launch_graph(STREAM, graph)? };
        if let Some(event) = last.signal {
            device.record(STREAM, &events[event])?;
        }
    }
    Ok(())
}

fn enqueue_each(
    device: &Device,
    ops: &[BoundOp],
    events: &[Event],
    (weights, mut disk): (Option<&HostBuffer>, Option<&mut Disk>),
    host: &mut HostBuffer,
    mut tracer: Option<&mut Tracer>,
) -> Result<()> {
    let missing = || Error::Internal("no streamed weights".to_string());
    for op in ops {
        for &event in &op.waits {
            device.wait(op.stream, &events[event])?;
        }
        if let (Ready::Upload { name, .. }, Some(tracer)) = (&op.what, &mut tracer) {
            tracer.begin_transfer(device, op.stream, name)?;
        }
        match &op.what {
            // SAFETY: the params were recorded by this kernel's wrapper, which checked every view against its shapes; the
            // addresses lie in the arena (`within`), which lives as long as the pipeline; and the program's check has seen
            // that no operation touches bytes that another one still needs.
            Ready::Launch { config, params, work } => unsafe {
                device.replay(op.stream, *config, params, work)?;
            },
            Ready::Send { to, host: at } => device.copy_to_device(op.stream, to, host, *at)?,
            Ready::Fetch { from, host: at } => device.copy_to_host(op.stream, host, *at, from)?,
            Ready::Fill { view, value } => device.fill(op.stream, view, *value)?,
            Ready::Upload { to, from: Origin::Pinned(from), .. } => {
                device.copy_to_device(op.stream, to, weights.ok_or_else(missing)?, *from)?;
            }
            Ready::Upload { to, from: Origin::Disk(unit), .. } => {
                disk.as_mut().ok_or_else(missing)?.copy_to_device(op.stream, *unit, to)?;
            }
        }
        if let (Ready::Upload { .. }, Some(tracer)) = (&op.what, &mut tracer) {
            tracer.end_transfer(device, op.stream)?;
        }
        if let Some(event) = op.signal {
            device.record(op.stream, &events[event])?;
        }
    }
    Ok(())
}

/// The two recordings must be of the same operations, on the bytes that the passes have given to each.
fn same_operations(placed: &Placed, again: &Program, arena: &Arena) -> Result<()> {
    let base = arena.address()?;
    let recorded = placed.program.ops.iter().filter(|op| !matches!(op.what, What::Upload { .. }));
    let place = |touch: &crate::program::Touch| base + (placed.offsets[touch.buffer] + touch.start) as u64;
    let same = |(first, other): (&Op, &Op)| {
        let what = match (&first.what, &other.what) {
            (What::Launch { config, .. }, What::Launch { config: other, .. }) => config == other,
            (What::Send { host }, What::Send { host: other })
            | (What::Fetch { host }, What::Fetch { host: other }) => host == other,
            (What::Fill { value }, What::Fill { value: other }) => value == other,
            _ => false,
        };
        let places = first.touches.iter().map(place);
        what && places.eq(other.work.spans.iter().map(|span| span.address))
    };
    match recorded.clone().count() == again.ops.len() && recorded.zip(&again.ops).all(same) {
        true => Ok(()),
        false => Err(another_program()),
    }
}

fn another_program() -> Error {
    Error::Internal("recorded again, the program is another".to_string())
}

/// Whatever a launch touches is the arena's.
fn within(work: &Work, arena: &Arena) -> Result<()> {
    let (begin, bytes) = (arena.address()?, arena.num_bytes() as u64);
    let inside = |span: &crate::device::Span| {
        span.address >= begin && span.address - begin + span.bytes as u64 <= bytes
    };
    match work.spans.iter().all(inside) {
        true => Ok(()),
        false => Err(Error::Internal("a launch leaves the arena".to_string())),
    }
}

/// What of the arena behind the weights holds nothing when operation `op` begins.
fn dead_at(plan: &ShapePlan, op: usize, arena: &Arena) -> Result<Vec<View<u8>>> {
    let placed = &plan.placed;
    if !placed.guards.is_empty() {
        // They are what is between buffers; a test looks at them.
        return Ok(Vec::new());
    }
    let buffers = placed.program.buffers.iter().zip(&placed.offsets).zip(&placed.live);
    let mut alive: Vec<(usize, usize)> = buffers
        .filter(|((buffer, _), live)| {
            // A copy may be on its way whose bytes nobody will read.
            buffer.kind == Kind::Streamed
                || buffer.kind == Kind::Work && live.iter().any(|&(first, last)| first <= op && op <= last)
        })
        .map(|((buffer, &offset), _)| (offset, offset + buffer.bytes))
        .collect();
    alive.push((placed.bytes, placed.bytes));
    alive.sort_unstable();
    let (mut end, mut dead) = (placed.resident_bytes, Vec::new());
    for (start, stop) in alive {
        if end < start {
            dead.push(arena.bytes(end, start - end)?);
        }
        end = end.max(stop);
    }
    Ok(dead)
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
