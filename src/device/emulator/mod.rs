//! The machine for everyone without a GPU: runs the kernels of `kernels/`, compiled by the host's C++ compiler, with
//! CUDA's rules for threads, warps, CTAs, asynchronous copies, streams and events.
//!
//! Read `runtime.rs` for what happens inside a CTA (`runtime/hopper.rs` for what only Hopper has), `tile.rs` for the
//! arithmetic of the tensor cores, `pool.rs` for how CTAs spread over OS threads, `faults.rs` for kernels that crash or
//! hang, `accesses.rs` for what memory accesses cost; this file queues work on streams and carries it out.
//!
//! Streams are lazy: work runs when somebody waits for it, as late as the events allow, or in a seeded random
//! interleaving ([`Order::Random`]), so that a missing event shows as a wrong result.
//!
//! # Safety
//! Device memory is host memory that `Emulator::allocate` owns until `free`; addresses in copies and launches come
//! from [`super::Device`], which has checked them against those allocations and keeps the allocations, host buffers
//! and parameters alive until the queue has run. Queued parameters are copied.

pub mod accesses;
mod faults;
mod library;
mod pool;
mod runtime;
mod sanitizer;
mod stand_in;
mod tile;

use std::alloc::Layout;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use self::runtime::Failure;
use super::lost::words;
use super::memory::free_host_bytes;
use super::{
    Capability, Config, EventId, GraphId, HostFunction, Kernel, Machine, Node, Params, Span, StreamId,
    TensorTile, Work,
};
use crate::abi;
use crate::{Error, Result};
use accesses::{AccessCounts, Records};
use pool::Pool;
use sanitizer::SANITIZER;

/// Whether a sanitizer watches the kernels (`scripts/sanitize address`, `thread`).
#[cfg(feature = "check")]
pub fn is_sanitized() -> bool {
    SANITIZER.exists()
}

/// In which order the threads of a CTA, the CTAs of a grid and the streams of a device take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// Warp by warp, lane by lane: the fastest.
    #[default]
    InOrder,
    /// Anyone who may run, by the seed.
    Random,
}

/// When an asynchronous operation is carried out, between its issue and the wait that guarantees it: a `cp.async`, a copy
/// of TMA, or a product of `wgmma`, which is a copy of its operands in that it may read them late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AsyncCopies {
    /// At its issue: the fastest.
    #[default]
    Eager,
    /// At the last legal moment; its target holds NaN patterns until then. TMA: when no thread can run.
    Lazy,
    /// Either, by the seed.
    Random,
}

/// How an emulator behaves; results must not depend on any of it.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(feature = "check"), non_exhaustive)]
pub struct EmulatorOptions {
    /// OS threads that run CTAs; 0 means one per core.
    pub threads: usize,
    /// Turn-taking.
    #[doc(hidden)]
    pub order: Order,
    /// Completion of asynchronous copies.
    #[doc(hidden)]
    pub async_copies: AsyncCopies,
    /// Decides everything random above.
    #[doc(hidden)]
    pub seed: u64,
    /// Seconds after which a CUDA thread that reaches no barrier is said to hang; 0 means 20.
    pub hang_seconds: u32,
    /// The compute capability to pose as, which decides what kernels are chosen; 0 means 80. All of them run.
    #[doc(hidden)]
    pub arch: u32,
    /// The number of SMs to pose with, which decides what tiles are split; 0 means 28, of the card that plans are for.
    #[doc(hidden)]
    pub num_sms: u32,
    /// Counts bank conflicts and sectors for [`super::Device::access_counts`]. Slow, and needs instrumented kernels:
    /// `accesses::records_accesses`.
    #[doc(hidden)]
    pub count_accesses: bool,
    /// Counts launches instead of carrying them out ([`super::Device::num_skipped_launches`]): what enqueueing costs.
    #[doc(hidden)]
    pub launches_nothing: bool,
    /// Carries out something else in place of kernels, which is as good for what is around them: see `stand_in.rs`.
    #[doc(hidden)]
    pub stand_in: bool,
    /// Leaves out copies to the device: what the host pays beside them, which on a GPU are not its work.
    #[doc(hidden)]
    pub copies_nothing: bool,
    /// Keeps who wrote what for [`super::Device::last_writer`]. As above.
    #[doc(hidden)]
    pub track_writers: bool,
    /// Leaves the process's signal handlers alone, which see [`super::Device::emulator`]: a kernel that crashes then ends
    /// the process, and one that hangs does so for ever. No kernel of this crate is known to do either.
    pub no_signal_handlers: bool,
}

/// Alignment of device memory, as the driver's allocations have (and TMA would want).
const ALIGNMENT: usize = 1024;

#[derive(Clone)]
enum Op {
    Launch { kernel: &'static Kernel, grid: [u32; 3], params: Params, footprint: Vec<Span> },
    CopyToDevice { dst: u64, src: usize, bytes: usize },
    CopyToHost { dst: usize, src: u64, bytes: usize },
    Fill { dst: u64, value: u8, bytes: usize },
    Call { function: HostFunction, data: usize },
    Record { event: usize, ticket: u64 },
    Wait { event: usize, ticket: u64 },
}

/// The place of an event, which others have had before and will have after it: what of theirs is still queued counts on.
#[derive(Default)]
struct EventState {
    /// Records enqueued and carried out so far.
    issued: u64,
    done: u64,
    /// Those of events that had the place before.
    before: u64,
    time: Option<Instant>,
}

impl EventState {
    /// What whoever waits now waits for: nothing, if it has not been recorded.
    fn awaited(&self) -> u64 {
        if self.issued > self.before { self.issued } else { 0 }
    }
}

#[derive(Default)]
struct State {
    streams: [VecDeque<Op>; StreamId::COUNT],
    events: Vec<EventState>,
    /// Places among them that nobody has.
    free_events: Vec<usize>,
    /// What each graph does; nothing any more when it is gone.
    graphs: Vec<Vec<Op>>,
    /// Places among them that nobody has.
    free_graphs: Vec<usize>,
    /// Live allocations: `(base, bytes)`.
    memory: Vec<(u64, usize)>,
    /// Live host buffers.
    num_host_buffers: usize,
    rng: u64,
    launches: u64,
    /// The first failure; as on a GPU, everything after it fails too.
    error: Option<(String, Failure)>,
}

impl State {
    /// Whether anything is alive that was made here.
    fn is_in_use(&self) -> bool {
        !self.memory.is_empty()
            || self.num_host_buffers > 0
            || self.free_events.len() < self.events.len()
            || self.free_graphs.len() < self.graphs.len()
    }
}

/// See the module's text.
pub(crate) struct Emulator {
    capability: Capability,
    options: EmulatorOptions,
    pool: Pool,
    /// After the pool: no worker is left when it goes.
    _handler: Option<faults::Handler>,
    records: Option<Arc<Records>>,
    num_skipped: AtomicU64,
    state: Mutex<State>,
}

impl Emulator {
    pub fn new(options: EmulatorOptions) -> Self {
        runtime::install();
        let handler = (!options.no_signal_handlers).then(faults::Handler::install);
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let capability = Capability {
            name: "emulator".to_string(),
            arch: if options.arch == 0 { 80 } else { options.arch },
            // What `select` and `plan` see: a machine with as many SMs as the pool has threads would make plans
            // depend on the host, so the emulator poses as one fixed small GPU.
            num_sms: if options.num_sms == 0 { 28 } else { options.num_sms },
            smem_per_cta_bytes: if options.arch / 10 == 9 { 227 << 10 } else { 99 << 10 },
            total_bytes: free_host_bytes(),
            is_emulator: true,
            threads,
            driver: "none".to_string(),
            pci_bus_id: None,
        };
        let patience = match options.hang_seconds {
            0 => Duration::from_secs(20),
            n => Duration::from_secs(n.into()),
        };
        let state = State { rng: options.seed, ..State::default() };
        let records = Records::new(options.count_accesses, options.track_writers);
        let pool = Pool::new(threads, handler.is_some().then_some(patience));
        Emulator {
            capability,
            options,
            pool,
            _handler: handler,
            records,
            num_skipped: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The host writes here.
    fn forget_writers(&self, address: u64, bytes: usize) {
        if let Some(records) = &self.records {
            records.forget(address, bytes);
        }
    }

    fn push(&self, stream: StreamId, op: Op) -> Result<()> {
        let mut state = self.lock();
        state.streams[stream.index()].push_back(op);
        Ok(())
    }

    /// Carries out queued work until `done` holds or nothing more can run.
    fn run_until(&self, state: &mut State, target: StreamId, done: impl Fn(&State) -> bool) -> Result<()> {
        while !done(state) && state.error.is_none() {
            let runnable: Vec<usize> = (0..StreamId::COUNT)
                .filter(|&s| match state.streams[s].front() {
                    None => false,
                    Some(Op::Wait { event, ticket }) => state.events[*event].done >= *ticket,
                    Some(_) => true,
                })
                .collect();
            let stream = match self.options.order {
                _ if runnable.is_empty() => {
                    let reason = "every stream waits for an event that nobody will record".to_string();
                    state.error = Some(("wait for a stream".to_string(), Failure::Kernel(reason)));
                    break;
                }
                // As late as possible: other streams move only when the awaited one is stuck.
                Order::InOrder if runnable.contains(&target.index()) => target.index(),
                Order::InOrder => runnable[0],
                Order::Random => {
                    let mut rng = runtime::Rng(state.rng);
                    let pick = rng.below(runnable.len());
                    state.rng = rng.0;
                    runnable[pick]
                }
            };
            if let Some(op) = state.streams[stream].pop_front() {
                self.carry_out(state, op);
            }
        }
        self.failure(state).map_or(Ok(()), Err)
    }

    /// By what this machine is lost.
    fn failure(&self, state: &State) -> Option<Error> {
        let (operation, failure) = state.error.as_ref()?;
        Some(match failure {
            Failure::Kernel(reason) => Error::Device {
                device: self.capability.name.clone(),
                operation: operation.clone(),
                reason: reason.clone(),
            },
            Failure::NoRoom(what) => Error::Capacity {
                what: format!("the emulator's {operation} ({what})"),
                needed_bytes: 0,
                available_bytes: 0,
                advice: "free host memory, or allow this process more of it (ulimit -v, cgroups)".to_string(),
            },
        })
    }

    fn carry_out(&self, state: &mut State, op: Op) {
        match op {
            Op::Launch { kernel, footprint, .. } if self.options.stand_in => {
                // SAFETY: the memory of a launch is alive until it is done (module text).
                unsafe { stand_in::carry_out(kernel, &footprint) };
            }
            Op::Launch { kernel, grid, params, footprint } => {
                state.launches += 1;
                let launch = runtime::Launch {
                    entry: library::entry(kernel),
                    params: params.as_ptr(),
                    name: kernel.name,
                    grid,
                    threads: kernel.threads,
                    smem_bytes: kernel.smem_bytes,
                    footprint: &footprint,
                    order: self.options.order,
                    async_copies: self.options.async_copies,
                    seed: self.options.seed.wrapping_add(state.launches << 32),
                    emulator_seed: self.options.seed,
                    records: self.records.as_ref(),
                };
                if let Some(records) = &self.records {
                    records.begin_launch(kernel.name, grid);
                }
                guard(&state.memory, &footprint);
                let result = self.pool.run(&launch);
                unguard(&state.memory);
                if let Err(failure) = result {
                    let failure = match failure {
                        Failure::Kernel(reason) => {
                            Failure::Kernel(format!("{reason} (seed {})", self.options.seed))
                        }
                        no_room => no_room,
                    };
                    state.error = Some((format!("kernel {}", kernel.name), failure));
                }
            }
            Op::CopyToDevice { dst, src, bytes } => {
                self.forget_writers(dst, bytes);
                // SAFETY: both ends were checked by `Device` and are alive (module text).
                unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, bytes) };
            }
            // SAFETY: as above.
            Op::CopyToHost { dst, src, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, bytes);
            },
            Op::Fill { dst, value, bytes } => {
                self.forget_writers(dst, bytes);
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(dst as *mut u8, value, bytes) };
            }
            // SAFETY: `data` is alive (module text), and what `function` takes.
            Op::Call { function, data } => unsafe { function(data as *mut c_void) },
            Op::Record { event, ticket } => {
                let event = &mut state.events[event];
                event.done = event.done.max(ticket);
                if ticket > event.before {
                    event.time = Some(Instant::now());
                }
            }
            Op::Wait { .. } => {}
        }
    }
}

fn no_host_memory(what: &str, bytes: usize, advice: &str) -> Error {
    let (needed, free) = (bytes as u64, free_host_bytes());
    // What the machine has free is not what a limit (ulimit -v) leaves this process; nobody tells that number.
    let (what, needed_bytes, available_bytes) = match needed > free {
        true => (what.to_string(), needed, free),
        false => (format!("{what} of {bytes} bytes"), 0, 0),
    };
    Error::Capacity { what, needed_bytes, available_bytes, advice: advice.to_string() }
}

/// Under AddressSanitizer, makes everything but the launch's own memory out of bounds: gaps of the arena, and regions
/// that are not alive.
fn guard(memory: &[(u64, usize)], footprint: &[Span]) {
    if let Some(address) = &SANITIZER.address {
        for &(base, bytes) in memory {
            address.poison(base as *const u8, bytes);
        }
        for span in footprint {
            address.unpoison(span.address as *const u8, span.bytes);
        }
    }
}

fn unguard(memory: &[(u64, usize)]) {
    if let Some(address) = &SANITIZER.address {
        for &(base, bytes) in memory {
            address.unpoison(base as *const u8, bytes);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes.max(1), ALIGNMENT)
        .map_err(|_| Error::Internal(format!("an allocation of {bytes} bytes is beyond the address space")))
}

impl Machine for Emulator {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    fn name(&self) -> &str {
        &self.capability.name
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(free_host_bytes())
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        let layout = layout(bytes)?;
        // SAFETY: the layout has a non-zero size.
        let base = unsafe { std::alloc::alloc(layout) };
        if base.is_null() {
            let advice = "free host memory or use a smaller image or model";
            return Err(no_host_memory("the device allocation", bytes, advice));
        }
        // Fresh pages are zero, which hides reads of what was never written: NaN patterns do not.
        // SAFETY: `bytes` bytes were just allocated.
        unsafe { std::ptr::write_bytes(base, 0xff, bytes) };
        self.lock().memory.push((base as u64, bytes));
        Ok(base as u64)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        self.forget_writers(address, bytes);
        self.lock().memory.retain(|&(base, _)| base != address);
        if let Ok(layout) = layout(bytes) {
            // SAFETY: `address` came from `allocate` with the same size; the caller has drained the streams.
            unsafe { std::alloc::dealloc(address as *mut u8, layout) };
        }
    }

    unsafe fn allocate_host(&self, bytes: usize) -> Result<*mut u8> {
        // SAFETY: the layout has a non-zero size.
        let base = unsafe { std::alloc::alloc_zeroed(layout(bytes)?) };
        if base.is_null() {
            return Err(no_host_memory("a host buffer", bytes, "free host memory"));
        }
        self.lock().num_host_buffers += 1;
        Ok(base)
    }

    unsafe fn free_host(&self, address: *mut u8, bytes: usize) {
        self.lock().num_host_buffers -= 1;
        if let Ok(layout) = layout(bytes) {
            // SAFETY: as in `free`.
            unsafe { std::alloc::dealloc(address, layout) };
        }
    }

    fn tensor_map(&self, address: u64, tile: &TensorTile) -> Result<abi::tensor_map> {
        let element_bytes = tile.element_bytes() as u64;
        let map = runtime::TensorMap {
            address,
            row_bytes: tile.width as u64 * element_bytes,
            num_rows: tile.num_rows as u64,
            pitch_bytes: tile.pitch_bytes as u64,
            element_bytes,
            box_row_bytes: tile.box_width as u64 * element_bytes,
            box_num_rows: tile.box_num_rows as u64,
            swizzled: tile.swizzled as u64,
            ..runtime::TensorMap::empty()
        };
        Ok(map.encode())
    }

    fn num_skipped_launches(&self) -> u64 {
        self.num_skipped.load(Ordering::Relaxed)
    }

    fn access_counts(&self) -> Result<AccessCounts> {
        let counts = self.records.as_ref().and_then(|records| records.counts());
        counts.ok_or_else(|| {
            Error::Unsupported(match accesses::records_accesses() {
                true => "this emulator was made without `count_accesses`".to_string(),
                false => {
                    "these kernels do not tell of their accesses: run scripts/sanitize accesses".to_string()
                }
            })
        })
    }

    fn last_writer(&self, address: u64) -> Option<String> {
        let writer = self.records.as_ref()?.last_writer(address)?;
        Some(format!("{writer} (seed {})", self.options.seed))
    }

    fn prepare(&self, _kernel: &'static Kernel) -> Result<()> {
        Ok(())
    }

    unsafe fn copy_to_device(&self, stream: StreamId, dst: u64, src: *const u8, bytes: usize) -> Result<()> {
        if self.options.copies_nothing {
            return Ok(());
        }
        self.push(stream, Op::CopyToDevice { dst, src: src as usize, bytes })
    }

    unsafe fn copy_to_host(&self, stream: StreamId, dst: *mut u8, src: u64, bytes: usize) -> Result<()> {
        self.push(stream, Op::CopyToHost { dst: dst as usize, src, bytes })
    }

    unsafe fn fill(&self, stream: StreamId, dst: u64, value: u8, bytes: usize) -> Result<()> {
        self.push(stream, Op::Fill { dst, value, bytes })
    }

    unsafe fn call(&self, stream: StreamId, function: HostFunction, data: *mut c_void) -> Result<()> {
        self.push(stream, Op::Call { function, data: data as usize })
    }

    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: *const c_void,
        params_bytes: usize,
        work: &Work,
    ) -> Result<()> {
        if self.options.launches_nothing {
            self.num_skipped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        // SAFETY: `params` points to `params_bytes` bytes.
        let params = unsafe { Params::copy(params, params_bytes) };
        self.push(stream, Op::Launch { kernel, grid, params, footprint: work.spans.clone() })
    }

    unsafe fn graph(&self, nodes: &[Node<'_>]) -> Result<GraphId> {
        let op = |node: &Node<'_>| match node {
            Node::Launch { config: Config { kernel, grid }, params, work } => {
                let (params, footprint) = ((*params).clone(), work.spans.clone());
                Op::Launch { kernel, grid: *grid, params, footprint }
            }
            Node::Fill { view, value } => {
                Op::Fill { dst: view.address(), value: *value, bytes: view.num_bytes() }
            }
        };
        let ops = nodes.iter().map(op).collect();
        let mut state = self.lock();
        let place = state.free_graphs.pop().unwrap_or(state.graphs.len());
        if place == state.graphs.len() {
            state.graphs.push(Vec::new());
        }
        state.graphs[place] = ops;
        Ok(GraphId(place as u64))
    }

    unsafe fn destroy_graph(&self, graph: GraphId) {
        let (place, mut state) = (graph.0 as usize, self.lock());
        state.graphs[place] = Vec::new();
        state.free_graphs.push(place);
    }

    unsafe fn launch_graph(&self, stream: StreamId, graph: GraphId) -> Result<()> {
        let mut state = self.lock();
        let State { graphs, streams, .. } = &mut *state;
        for op in &graphs[graph.0 as usize] {
            match op {
                Op::Launch { .. } if self.options.launches_nothing => {
                    self.num_skipped.fetch_add(1, Ordering::Relaxed);
                }
                op => streams[stream.index()].push_back(op.clone()),
            }
        }
        Ok(())
    }

    fn create_event(&self) -> Result<EventId> {
        let mut state = self.lock();
        let place = state.free_events.pop().unwrap_or(state.events.len());
        if place == state.events.len() {
            state.events.push(EventState::default());
        }
        let event = &mut state.events[place];
        (event.before, event.time) = (event.issued, None);
        Ok(EventId(place as u64))
    }

    unsafe fn destroy_event(&self, event: EventId) {
        self.lock().free_events.push(event.0 as usize);
    }

    unsafe fn record(&self, stream: StreamId, event: EventId) -> Result<()> {
        let mut state = self.lock();
        let event = event.0 as usize;
        state.events[event].issued += 1;
        let ticket = state.events[event].issued;
        state.streams[stream.index()].push_back(Op::Record { event, ticket });
        Ok(())
    }

    unsafe fn wait(&self, stream: StreamId, event: EventId) -> Result<()> {
        let mut state = self.lock();
        let event = event.0 as usize;
        let ticket = state.events[event].awaited();
        state.streams[stream.index()].push_back(Op::Wait { event, ticket });
        Ok(())
    }

    unsafe fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        let state = self.lock();
        match (state.events[start.0 as usize].time, state.events[end.0 as usize].time) {
            (Some(a), Some(b)) => Ok(b.saturating_duration_since(a).as_secs_f32() * 1e3),
            _ => Err(Error::Device {
                device: self.capability.name.clone(),
                operation: "read a timing event".to_string(),
                reason: "the event has not been reached".to_string(),
            }),
        }
    }

    unsafe fn synchronize_event(&self, event: EventId) -> Result<()> {
        let mut state = self.lock();
        let event = event.0 as usize;
        let ticket = state.events[event].awaited();
        self.run_until(&mut state, StreamId::Compute, |s| s.events[event].done >= ticket)
    }

    fn synchronize(&self, stream: StreamId) -> Result<()> {
        let mut state = self.lock();
        self.run_until(&mut state, stream, |s| s.streams[stream.index()].is_empty())
    }

    fn lost(&self) -> Option<String> {
        self.failure(&self.lock()).map(|error| words(&error))
    }

    fn revive(&self) -> Result<bool> {
        let mut state = self.lock();
        if state.is_in_use() {
            return Ok(false);
        }
        // Nothing that is queued is carried out any more: what it would touch is gone.
        *state = State { rng: state.rng, launches: state.launches, ..State::default() };
        Ok(true)
    }
}
