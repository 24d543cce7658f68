//! One CTA at a time on one OS thread: the fibers that are its CUDA threads, their scheduler, and the meaning of every
//! primitive that `kernels/gpu.cuh` declares.
//!
//! A collective is a rendezvous: a lane leaves pointers to its operands and gives way to another lane; the last
//! arriver carries the operation out for the whole warp, straight into the others' variables, and goes on.
//!
//! # Safety
//! Kernels are compiled C++ and hand us raw pointers; what makes that sound:
//! - A [`Cta`] is pinned in a `Box` and used by one OS thread; its fibers never migrate, so `&mut` access through the
//!   raw back pointers of [`Thread`] never overlaps: exactly one fiber or the scheduler runs at any time.
//! - Operand pointers point into the stacks of suspended fibers, which stay put until the rendezvous resolves.
//! - Kernel frames hold no destructors, so abandoning their fibers (`force_reset`) leaks nothing.
//! - Shared-memory and global-memory addresses are checked here wherever a primitive receives one; plain loads and
//!   stores of the kernels are as safe as the C++ that makes them.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use corosensei::stack::{DefaultStack, Stack as _};
use corosensei::trap::CoroutineTrapHandler;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::accesses::{self, Recorder, Records};
use super::faults::Fault;
use super::pool::Progress;
use super::sanitizer::{self, Fiber, SANITIZER, Stack};
use super::tile;
use super::{AsyncCopies, Order, Span};
pub(super) use hopper::tma::Map as TensorMap;

mod hopper;

pub(super) const WARP: usize = 32;
/// Kernels keep fragments and accumulators in locals: a few KiB. The guard page catches what grows past this.
const STACK_BYTES: usize = 64 << 10;

/// Where a primitive was called (`emu_site` of gpu.cuh).
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Site {
    file: *const c_char,
    line: i32,
}

impl Site {
    pub(super) const NOWHERE: Site = Site { file: std::ptr::null(), line: 0 };
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.file.is_null() {
            return write!(f, "unknown place");
        }
        // SAFETY: a non-null `file` is a string literal that the C++ compiler made from __builtin_FILE().
        let file = unsafe { CStr::from_ptr(self.file) }.to_string_lossy();
        write!(f, "{}:{}", file.rsplit('/').next().unwrap_or(&file), self.line)
    }
}

/// `emu_cta` of gpu.cuh.
#[repr(C)]
struct CtaIndex {
    cta: [u32; 3],
    num_ctas: [u32; 3],
    smem: *mut c_void,
}

/// `emu_thread` of gpu.cuh, followed by what only the runtime sees.
#[repr(C)]
pub(super) struct Thread {
    index: *const CtaIndex,
    thread: u32,
    // ---- from here on the kernels do not look ----
    cta: *mut Cta,
    yielder: *const Yielder<Job, ()>,
    state: State,
    fault: Option<Fault>,
    copies: Vec<PendingCopy>,
    copy_group: u32,
    /// Groups that a wait has covered; later waits need not look at them.
    groups_awaited: u32,
    /// For the sanitizers: this thread, the engine that makes its copies, and its stack.
    fiber: Fiber,
    engine: Fiber,
    stack: Stack,
    /// Names of the orderings that issue and completion of copies make.
    copies_issued: u8,
    copies_done: [u8; COPY_GROUPS],
}

/// Groups of copies that are told apart for ThreadSanitizer; more are never in flight.
const COPY_GROUPS: usize = 16;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Idle,
    Running,
    AtWarp(Collective, Site),
    AtCta(Site),
    AtWarpgroup(hopper::wgmma::Collective, Site),
    AtMbarrier(hopper::mbarrier::Wait),
    Finished,
}

/// A kernel and its arguments, as a fiber receives them.
#[derive(Clone, Copy)]
struct Job {
    entry: unsafe extern "C" fn(*const c_void),
    params: *const c_void,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Collective {
    SyncWarp,
    Shuffle { mask: u32 },
    LoadMatrix { tiles: u32, trans: bool },
    Mma { mt: u32, nt: u32 },
}

/// One lane's operands of the collective it waits in.
#[derive(Clone, Copy)]
struct Operands {
    out: *mut c_void,
    a: *const c_void,
    b: *const c_void,
}

struct Warp {
    /// Lanes that may run.
    ready: u32,
    /// Lanes that have not returned from the kernel.
    live: u32,
    /// Lanes waiting in the current collective.
    arrived: u32,
    collective: Collective,
    site: Site,
    operands: [Operands; WARP],
    /// Names of the orderings that one `sync_warp` and the next make.
    synced: [u8; 2],
    num_synced: usize,
}

/// A cp.async that has been issued and not carried out.
#[derive(Clone, Copy)]
struct PendingCopy {
    dst: *mut u8,
    src: *const u8,
    bytes: u32,
    valid_bytes: u32,
    group: u32,
}

impl PendingCopy {
    fn perform(&self) {
        // SAFETY: `cp_async` checked that dst lies in this CTA's shared memory and src in device memory.
        unsafe {
            for i in 0..self.valid_bytes as usize {
                *self.dst.add(i) = *self.src.add(i);
            }
            for i in self.valid_bytes as usize..self.bytes as usize {
                *self.dst.add(i) = 0;
            }
        }
    }
}

/// What one launch asks of a CTA.
#[derive(Clone, Copy)]
pub(super) struct Launch<'a> {
    pub entry: unsafe extern "C" fn(*const c_void),
    pub params: *const c_void,
    pub name: &'static str,
    pub grid: [u32; 3],
    pub threads: u32,
    pub smem_bytes: u32,
    /// The device memory that the launch may touch.
    pub footprint: &'a [Span],
    pub order: Order,
    pub async_copies: AsyncCopies,
    /// Of this launch.
    pub seed: u64,
    /// The emulator's, which replays it.
    pub emulator_seed: u64,
    /// Where its accesses are counted.
    pub records: Option<&'a Arc<Records>>,
}

/// The runtime of one worker: the fibers and shared memory that it uses for CTA after CTA.
pub(super) struct Cta {
    index: CtaIndex,
    threads: Vec<Thread>,
    fibers: Vec<Coroutine<Job, (), (), DefaultStack>>,
    warps: Vec<Warp>,
    smem: Vec<u128>,
    smem_bytes: usize,
    footprint: Vec<Span>,
    barrier_arrived: u32,
    live: u32,
    order: Order,
    async_copies: AsyncCopies,
    rng: Rng,
    error: Option<String>,
    kernel: &'static str,
    seed: u64,
    /// Of the worker.
    progress: *const Progress,
    recorder: Recorder,
    /// For the sanitizers: the worker itself and its stack, and the names of what orders one CTA after the other: all
    /// threads come after its beginning and before its end, but no thread's end comes before another's beginning.
    worker: Fiber,
    worker_stack: Stack,
    begun: u8,
    ended: u8,
    synced: [u8; 2],
    num_synced: usize,
    hopper: hopper::Hopper,
}

/// splitmix64: small, seedable, good enough to shuffle schedules.
#[derive(Clone)]
pub(super) struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

impl Cta {
    pub fn new() -> Box<Self> {
        Box::new(Cta {
            index: CtaIndex { cta: [0; 3], num_ctas: [0; 3], smem: std::ptr::null_mut() },
            threads: Vec::new(),
            fibers: Vec::new(),
            warps: Vec::new(),
            smem: Vec::new(),
            smem_bytes: 0,
            footprint: Vec::new(),
            barrier_arrived: 0,
            live: 0,
            order: Order::InOrder,
            async_copies: AsyncCopies::Eager,
            rng: Rng(0),
            error: None,
            kernel: "",
            seed: 0,
            progress: std::ptr::null(),
            recorder: Recorder::default(),
            worker: Fiber::NONE,
            worker_stack: Stack::UNKNOWN,
            begun: 0,
            ended: 0,
            synced: [0; 2],
            num_synced: 0,
            hopper: Default::default(),
        })
    }

    /// Runs the CTA at `cta` of the launch to its end. The error names the place and who waited where.
    pub fn run(&mut self, launch: &Launch<'_>, cta: [u32; 3], progress: &Progress) -> Result<(), String> {
        self.prepare(launch, cta);
        self.progress = progress;
        let job = Job { entry: launch.entry, params: launch.params };
        let num_warps = self.warps.len();
        let mut next_warp = 0;
        loop {
            let warp = match self.order {
                Order::InOrder => {
                    (0..num_warps).map(|i| (next_warp + i) % num_warps).find(|&w| self.warps[w].ready != 0)
                }
                Order::Random => {
                    let start = self.rng.below(num_warps);
                    (0..num_warps).map(|i| (start + i) % num_warps).find(|&w| self.warps[w].ready != 0)
                }
            };
            if self.let_a_copy_arrive(warp.is_none()) {
                if self.error.is_some() {
                    return Err(self.abandon());
                }
                continue;
            }
            let Some(warp) = warp else { break };
            next_warp = warp;
            loop {
                let ready = self.warps[warp].ready;
                if ready == 0 {
                    break;
                }
                let lane = match self.order {
                    Order::InOrder => ready.trailing_zeros(),
                    Order::Random => {
                        let turn = (self.rng.next() & 31) as u32;
                        (ready.rotate_right(turn).trailing_zeros() + turn) & 31
                    }
                } as usize;
                progress.turns.fetch_add(1, Ordering::Relaxed);
                self.resume(warp, lane, job);
                if self.error.is_some() {
                    return Err(self.abandon());
                }
                if self.order == Order::Random {
                    break;
                }
            }
        }
        if self.live != 0 {
            self.error = Some(format!("deadlock: {}", self.who_waits_where()));
            return Err(self.abandon());
        }
        self.recorder.finish();
        sanitizer::acquire(&raw const self.ended);
        self.open_shared_memory();
        // SAFETY: sets a thread-local of this OS thread.
        unsafe { schnell_emu_set_self(std::ptr::null_mut()) };
        Ok(())
    }

    /// Lets nobody touch the bytes around the CTA's shared memory.
    fn fence_shared_memory(&self) {
        if let Some(address) = &SANITIZER.address {
            let (start, bytes) = (self.smem.as_ptr().cast::<u8>(), self.smem.len() * size_of::<u128>());
            let inner = self.index.smem as *const u8;
            // SAFETY: both ends lie in, or one past, the buffer.
            let after = unsafe { inner.add(self.smem_bytes) };
            address.poison(start, inner as usize - start as usize);
            address.poison(after, start as usize + bytes - after as usize);
        }
    }

    fn open_shared_memory(&self) {
        if let Some(address) = &SANITIZER.address {
            address.unpoison(self.smem.as_ptr().cast(), self.smem.len() * size_of::<u128>());
        }
    }

    fn prepare(&mut self, launch: &Launch<'_>, cta: [u32; 3]) {
        let threads = launch.threads as usize;
        debug_assert!(threads % WARP == 0, "a CTA is made of whole warps");
        self.order = launch.order;
        self.async_copies = launch.async_copies;
        self.rng = Rng(launch.seed ^ (cta[0] as u64) << 40 ^ (cta[1] as u64) << 20 ^ cta[2] as u64);
        self.footprint.clear();
        self.footprint.extend_from_slice(launch.footprint);
        self.smem_bytes = launch.smem_bytes as usize;
        // 1024-byte alignment needs slack; filled with NaN patterns so that nothing relies on zeroed memory.
        let words = self.smem_bytes.div_ceil(16) + 64;
        self.smem.clear();
        self.smem.resize(words, u128::MAX);
        let base = self.smem.as_mut_ptr() as usize;
        self.index = CtaIndex {
            cta,
            num_ctas: launch.grid,
            smem: (base + (base.wrapping_neg() & 1023)) as *mut c_void,
        };
        self.fence_shared_memory();
        let smem = self.index.smem as usize..self.index.smem as usize + self.smem_bytes;
        self.recorder.start(launch, cta, smem);
        self.kernel = launch.name;
        self.seed = launch.emulator_seed;
        self.num_synced = 0;
        self.worker = Fiber::current();
        // The CTA before may have been another worker's: what hands the fibers over is not instrumented.
        sanitizer::acquire(&raw const self.ended);
        sanitizer::release(&raw const self.begun);
        let this: *mut Cta = self;
        while self.fibers.len() < threads {
            let thread = self.fibers.len() as u32;
            let (coroutine, stack) = new_fiber();
            self.fibers.push(coroutine);
            self.threads.push(Thread {
                index: std::ptr::null(),
                thread,
                cta: this,
                yielder: std::ptr::null(),
                state: State::Idle,
                fault: None,
                copies: Vec::with_capacity(64),
                copy_group: 0,
                groups_awaited: 0,
                fiber: Fiber::create(),
                engine: Fiber::NONE,
                stack,
                copies_issued: 0,
                copies_done: [0; COPY_GROUPS],
            });
        }
        for thread in &mut self.threads[..threads] {
            thread.index = &raw const self.index;
            thread.cta = this;
            thread.state = State::Running;
            thread.copies.clear();
            thread.copy_group = 0;
            thread.groups_awaited = 0;
        }
        self.warps.clear();
        let nothing = Operands { out: std::ptr::null_mut(), a: std::ptr::null(), b: std::ptr::null() };
        self.warps.extend((0..threads / WARP).map(|_| Warp {
            ready: u32::MAX,
            live: u32::MAX,
            arrived: 0,
            collective: Collective::SyncWarp,
            site: Site::NOWHERE,
            operands: [nothing; WARP],
            synced: [0; 2],
            num_synced: 0,
        }));
        self.barrier_arrived = 0;
        self.live = threads as u32;
        self.error = None;
        self.hopper.reset();
    }

    fn resume(&mut self, warp: usize, lane: usize, job: Job) {
        let at = warp * WARP + lane;
        self.warps[warp].ready &= !(1 << lane);
        self.threads[at].state = State::Running;
        let thread = &raw mut self.threads[at];
        // SAFETY: sets a thread-local of this OS thread, which is the one that resumes the fiber.
        unsafe { schnell_emu_set_self(thread.cast()) };
        let fiber = &raw mut self.fibers[at];
        SANITIZER.leave(&mut self.worker_stack, &self.threads[at].stack);
        self.threads[at].fiber.switch_to();
        // SAFETY: `self.fibers` is not touched while a fiber runs (it grows only in `prepare`); the raw pointer keeps
        // the borrow checker from assuming that the fiber cannot reach `self`, which it does through `Thread::cta`.
        let result = unsafe { (*fiber).resume(job) };
        self.worker.switch_to();
        if matches!(result, CoroutineResult::Return(())) {
            let what = self.threads[at].fault.take().map(|fault| self.describe(at, fault));
            return self.fail(what.unwrap_or_else(|| format!("thread {at} left its fiber")));
        }
        SANITIZER.arrive(&self.worker_stack, &mut Stack::UNKNOWN.clone());
        if self.threads[at].state == State::Finished {
            self.finish(warp, lane);
        }
    }

    /// A thread returned from the kernel. Nobody may be left waiting for it.
    fn finish(&mut self, warp: usize, lane: usize) {
        let at = warp * WARP + lane;
        for copy in self.threads[at].copies.drain(..) {
            copy.perform();
        }
        self.live -= 1;
        let w = &mut self.warps[warp];
        w.live &= !(1 << lane);
        if w.arrived != 0 {
            let (collective, site) = (w.collective, w.site);
            self.fail(format!("thread {at} returned while its warp waits in {collective:?} at {site}"));
        } else if self.barrier_arrived != 0 {
            self.fail(format!(
                "thread {at} returned while others wait at a CTA barrier: {}",
                self.who_waits_where()
            ));
        }
        self.check_warpgroup_of(at);
    }

    fn fail(&mut self, what: String) {
        if self.error.is_none() {
            self.error = Some(what);
        }
    }

    fn who_waits_where(&self) -> String {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for (t, thread) in self.threads[..self.warps.len() * WARP].iter().enumerate() {
            let place = match thread.state {
                State::AtWarp(collective, site) => format!("{collective:?} at {site}"),
                State::AtCta(site) => format!("CTA barrier at {site}"),
                State::AtWarpgroup(collective, site) => format!("{collective} at {site}"),
                State::AtMbarrier(wait) => wait.describe(self),
                State::Finished => "returned".to_string(),
                State::Idle | State::Running => "running".to_string(),
            };
            match groups.iter_mut().find(|(p, _)| *p == place) {
                Some((_, threads)) => threads.push(t),
                None => groups.push((place, vec![t])),
            }
        }
        let lines: Vec<String> = groups
            .iter()
            .map(|(place, t)| format!("{} threads ({}..={}): {place}", t.len(), t[0], t[t.len() - 1]))
            .collect();
        lines.join("; ")
    }

    /// Gives up all fibers of a CTA that cannot go on, and says why, with its place in the grid.
    fn abandon(&mut self) -> String {
        for fiber in &mut self.fibers {
            // SAFETY: kernel frames hold no destructors and nothing refers to these stacks any more: the operand
            // pointers in `warps` are reset before the next CTA.
            unsafe { fiber.force_reset() };
        }
        self.open_shared_memory();
        for thread in &mut self.threads {
            // Frames that never returned have left their redzones on the stack.
            if let Some(address) = &SANITIZER.address {
                address.unpoison(thread.stack.bottom.cast(), thread.stack.bytes);
            }
            thread.fiber.destroy();
            thread.engine.destroy();
        }
        self.hopper.destroy();
        // SAFETY: sets a thread-local of this OS thread.
        unsafe { schnell_emu_set_self(std::ptr::null_mut()) };
        self.fibers.clear();
        self.threads.clear();
        let what = self.error.take().unwrap_or_default();
        format!("CTA {:?}: {what}", self.index.cta)
    }

    /// A fault of thread `at`, in words.
    fn describe(&self, at: usize, fault: Fault) -> String {
        let stack = self.threads[at].stack;
        let stack = stack.bottom as usize..stack.bottom as usize + stack.bytes;
        let smem = (self.index.smem as usize, self.smem_bytes, "the CTA's shared memory");
        let views = self.footprint.iter().map(|s| (s.address as usize, s.bytes, "a view of this launch"));
        let near = |address: usize| {
            let distance = |(base, bytes, _): &(usize, usize, &str)| {
                base.saturating_sub(address).max(address.saturating_sub(base + bytes))
            };
            match std::iter::once(smem).chain(views.clone()).min_by_key(distance) {
                _ if address < 1 << 16 => "next to null".to_string(),
                Some(nearest) if distance(&nearest) < 16 << 20 => {
                    let side = if address < nearest.0 { "before" } else { "behind" };
                    format!("{} bytes {side} {}", distance(&nearest), nearest.2)
                }
                _ => "far from the memory of this launch".to_string(),
            }
        };
        format!("thread {at} {}", fault.describe(stack, near))
    }

    fn smem_holds(&self, p: *const u8, bytes: usize) -> bool {
        let (p, base) = (p as usize, self.index.smem as usize);
        p >= base && p + bytes <= base + self.smem_bytes
    }

    fn footprint_holds(&self, p: *const u8, bytes: usize) -> bool {
        let p = p as u64;
        self.footprint.iter().any(|s| p >= s.address && p + bytes as u64 <= s.address + s.bytes as u64)
    }
}

impl Drop for Cta {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.fiber.destroy();
            thread.engine.destroy();
        }
        self.hopper.destroy();
    }
}

fn new_fiber() -> (Coroutine<Job, (), (), DefaultStack>, Stack) {
    let stack = DefaultStack::new(STACK_BYTES).expect("a fiber stack of 64 KiB");
    let (top, bottom) = (stack.base().get(), stack.limit().get());
    let extent = Stack { bottom: bottom as *const c_void, bytes: top - bottom, ..Stack::UNKNOWN };
    let coroutine = Coroutine::with_stack(stack, |yielder: &Yielder<Job, ()>, mut job: Job| {
        let mut left = Stack::UNKNOWN;
        loop {
            // SAFETY: the scheduler set the thread-local to this fiber's thread just before resuming it (between CTAs the
            // threads may have moved); `params` is this entry's own struct, alive until the launch returns.
            unsafe {
                let thread = schnell_emu_get_self().cast::<Thread>();
                SANITIZER.arrive(&left, &mut (*(*thread).cta).worker_stack);
                (*thread).yielder = yielder;
                sanitizer::acquire(&raw const (*(*thread).cta).begun);
                (job.entry)(job.params);
                sanitizer::release(&raw const (*(*thread).cta).ended);
                (*thread).state = State::Finished;
                left = (*thread).stack;
                SANITIZER.leave(&mut left, &(*(*thread).cta).worker_stack);
            }
            job = yielder.suspend(());
        }
    });
    (coroutine, extent)
}

/// A fiber that a signal interrupted.
pub(super) struct Interrupted<'a> {
    pub handler: CoroutineTrapHandler<()>,
    pub fault: &'a mut Option<Fault>,
    pub interrupted: &'a AtomicBool,
}

/// The fiber that runs on this OS thread, if `sp` lies in its stack.
///
/// # Safety
/// Called by a signal handler, while the interrupted code is the only other user of this OS thread's CTA.
pub(super) unsafe fn fiber_at<'a>(sp: usize) -> Option<Interrupted<'a>> {
    // SAFETY: the thread-local is null unless a CTA runs on this OS thread, and then thread, CTA and progress are alive;
    // raw pointers, since the interrupted code may hold references.
    unsafe {
        let thread = schnell_emu_get_self().cast::<Thread>();
        let cta = if thread.is_null() { return None } else { (*thread).cta };
        let fiber = (&raw const (*cta).fibers).as_ref()?.get((*thread).thread as usize)?;
        let handler = fiber.trap_handler();
        handler.stack_ptr_in_bounds(sp).then(|| Interrupted {
            handler,
            fault: &mut (*thread).fault,
            interrupted: &(*(*cta).progress).interrupted,
        })
    }
}

/// What runs on this OS thread, for a last message.
pub(super) fn running() -> Option<String> {
    // SAFETY: the thread-local is null unless one of this OS thread's fibers runs, whose thread and CTA are then alive.
    unsafe {
        let thread = schnell_emu_get_self().cast::<Thread>();
        let thread = thread.as_ref()?;
        let cta = &*thread.cta;
        Some(format!(
            "kernel {}, CTA {:?}, thread {} (seed {})",
            cta.kernel, cta.index.cta, thread.thread, cta.seed
        ))
    }
}

// ------------------------------------------------------------------------------------------------ primitives

/// `emu_runtime` of gpu.cuh: the same functions in the same order.
#[repr(C)]
pub(super) struct Runtime {
    sync_cta: unsafe extern "C" fn(*mut Thread, *const Site),
    sync_warp: unsafe extern "C" fn(*mut Thread, *const Site),
    shfl_xor: unsafe extern "C" fn(*mut Thread, *mut u32, u32, *const Site),
    cp_async: unsafe extern "C" fn(*mut Thread, *mut u8, *const u8, u32, u32, *const Site),
    cp_async_commit: unsafe extern "C" fn(*mut Thread),
    cp_async_wait: unsafe extern "C" fn(*mut Thread, u32, *const Site),
    ldmatrix: unsafe extern "C" fn(*mut Thread, *mut u32, *const *const u8, u32, u32, *const Site),
    mma: unsafe extern "C" fn(*mut Thread, *mut f32, *const u32, *const u32, u32, u32, *const Site),
}

static RUNTIME: Runtime =
    Runtime { sync_cta, sync_warp, shfl_xor, cp_async, cp_async_commit, cp_async_wait, ldmatrix, mma };

unsafe extern "C" {
    fn schnell_emu_set_runtime(runtime: *const c_void);
    fn schnell_emu_set_self(thread: *mut c_void);
    fn schnell_emu_get_self() -> *mut c_void;
}

/// Tells the host-compiled kernels where the runtime is. Idempotent.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: stores the address of a static.
        unsafe { schnell_emu_set_runtime((&raw const RUNTIME).cast()) };
        accesses::install();
        hopper::install();
    });
}

/// The recorder of the CTA that `thread` belongs to, and the thread's place in the CTA.
///
/// # Safety
/// `thread` is the running fiber's own, and its CTA's recorder is not in use.
pub(super) unsafe fn recorder<'a>(thread: *mut Thread) -> (&'a mut Recorder, usize) {
    // SAFETY: thread and CTA are alive while the fiber runs, and nothing else of the CTA is referred to.
    unsafe { (&mut (*(*thread).cta).recorder, (*thread).thread as usize) }
}

/// Gives way to the scheduler until this thread is made ready again.
///
/// # Safety
/// `thread` is the running fiber's own.
unsafe fn give_way(thread: *mut Thread) {
    // SAFETY: the yielder belongs to this fiber, which is the one running; thread and CTA outlive it.
    unsafe {
        SANITIZER.leave(&mut (*thread).stack, &(*(*thread).cta).worker_stack);
        (*(*thread).yielder).suspend(());
        SANITIZER.arrive(&(*thread).stack, &mut (*(*thread).cta).worker_stack);
    }
}

/// Records an error and never returns to the kernel: the scheduler abandons the fiber.
///
/// # Safety
/// `thread` is the running fiber's own.
unsafe fn fail(thread: *mut Thread, site: Site, what: String) {
    // SAFETY: one fiber runs at a time, so this is the only access to the CTA.
    unsafe {
        let place = format!("thread {} at {site}: {what}", (*thread).thread);
        (*(*thread).cta).fail(place);
        loop {
            give_way(thread);
        }
    }
}

unsafe extern "C" fn sync_cta(thread: *mut Thread, site: *const Site) {
    // SAFETY: the kernel passes its own thread and a live site; one fiber runs at a time.
    unsafe {
        let cta = &mut *(*thread).cta;
        let synced = &raw const cta.synced[cta.num_synced % 2];
        sanitizer::release(synced);
        cta.barrier_arrived += 1;
        if cta.barrier_arrived == cta.live {
            cta.barrier_arrived = 0;
            cta.num_synced += 1;
            cta.recorder.converge_all();
            let me = (*thread).thread as usize;
            for (w, warp) in cta.warps.iter_mut().enumerate() {
                if warp.arrived != 0 {
                    let what =
                        format!("a CTA barrier completed while warp {w} waits in {:?}", warp.collective);
                    return fail(thread, *site, what);
                }
                warp.ready = warp.live;
            }
            cta.warps[me / WARP].ready &= !(1 << (me % WARP));
            sanitizer::acquire(synced);
            return;
        }
        (*thread).state = State::AtCta(*site);
        give_way(thread);
        sanitizer::acquire(synced);
    }
}

/// The rendezvous. `run` is called once, by the last arriver, with every lane's operands.
///
/// # Safety
/// `thread` is the running fiber's own, `site` is alive, and the operands are valid for `collective` until it resolves.
unsafe fn rendezvous(
    thread: *mut Thread,
    site: *const Site,
    collective: Collective,
    operands: Operands,
    run: impl FnOnce(&Cta, &[Operands; WARP]) -> Result<(), String>,
) {
    // SAFETY: as above; `cta` is only touched by the running fiber.
    unsafe {
        let me = (*thread).thread as usize;
        let cta: *mut Cta = (*thread).cta;
        let warp = &mut (&mut (*cta).warps)[me / WARP];
        let lane = me % WARP;
        if warp.arrived == 0 {
            warp.collective = collective;
            warp.site = *site;
        } else if warp.collective != collective || warp.site != *site {
            let what = format!(
                "{collective:?} while other lanes of the warp wait in {:?} at {}",
                warp.collective, warp.site
            );
            return fail(thread, *site, what);
        }
        warp.operands[lane] = operands;
        warp.arrived |= 1 << lane;
        if warp.arrived != u32::MAX {
            (*thread).state = State::AtWarp(collective, *site);
            give_way(thread);
            return;
        }
        warp.arrived = 0;
        warp.ready = !(1 << lane);
        (*cta).recorder.converge(me / WARP);
        let operands: *const [Operands; WARP] = &warp.operands;
        if let Err(what) = run(&*cta, &*operands) {
            fail(thread, *site, what);
        }
    }
}

const NO_OPERANDS: Operands =
    Operands { out: std::ptr::null_mut(), a: std::ptr::null(), b: std::ptr::null() };

unsafe extern "C" fn sync_warp(thread: *mut Thread, site: *const Site) {
    // SAFETY: the kernel passes its own thread and a live site; the collective has no operands.
    unsafe {
        let warp = &raw mut (&mut (*(*thread).cta).warps)[(*thread).thread as usize / WARP];
        let synced = &raw const (*warp).synced[(*warp).num_synced % 2];
        sanitizer::release(synced);
        rendezvous(thread, site, Collective::SyncWarp, NO_OPERANDS, |_, _| {
            (*warp).num_synced += 1;
            Ok(())
        });
        sanitizer::acquire(synced);
    }
}

unsafe extern "C" fn shfl_xor(thread: *mut Thread, value: *mut u32, mask: u32, site: *const Site) {
    let operands = Operands { out: value.cast(), ..NO_OPERANDS };
    // SAFETY: `value` is a local of the calling lane, alive until it resumes.
    unsafe {
        rendezvous(thread, site, Collective::Shuffle { mask }, operands, |_, lanes| {
            let before = lanes.map(|o| *o.out.cast::<u32>());
            for (lane, o) in lanes.iter().enumerate() {
                *o.out.cast::<u32>() = before[(lane ^ mask as usize) % WARP];
            }
            Ok(())
        })
    }
}

unsafe extern "C" fn cp_async(
    thread: *mut Thread,
    dst: *mut u8,
    src: *const u8,
    bytes: u32,
    valid_bytes: u32,
    site: *const Site,
) {
    // SAFETY: one fiber runs at a time; every address is checked before it is used.
    unsafe {
        let cta = &mut *(*thread).cta;
        if valid_bytes > bytes {
            return fail(thread, *site, format!("cp.async of {valid_bytes} valid bytes out of {bytes}"));
        }
        if dst as usize % bytes as usize != 0 || src as usize % bytes as usize != 0 {
            return fail(
                thread,
                *site,
                format!("cp.async of {bytes} bytes from {src:p} to {dst:p} is misaligned"),
            );
        }
        if !cta.smem_holds(dst, bytes as usize) {
            return fail(
                thread,
                *site,
                format!("cp.async writes {bytes} bytes at {dst:p}, outside shared memory"),
            );
        }
        if valid_bytes > 0 && !cta.footprint_holds(src, valid_bytes as usize) {
            return fail(
                thread,
                *site,
                format!("cp.async reads {valid_bytes} bytes at {src:p}, outside the memory of this launch"),
            );
        }
        let copy = PendingCopy { dst, src, bytes, valid_bytes, group: (*thread).copy_group };
        note_copy(&mut *thread, &copy);
        let eager = match cta.async_copies {
            AsyncCopies::Eager => true,
            AsyncCopies::Lazy => false,
            AsyncCopies::Random => cta.rng.next() & 1 == 0,
        };
        if eager {
            copy.perform();
        } else {
            for i in 0..bytes as usize {
                *dst.add(i) = 0xff;
            }
            (*thread).copies.push(copy);
        }
    }
}

/// Tells ThreadSanitizer of a copy as one that the thread's engine makes, at any time after its issue.
fn note_copy(thread: &mut Thread, copy: &PendingCopy) {
    if !thread.fiber.exists() {
        return;
    }
    if !thread.engine.exists() {
        thread.engine = Fiber::create();
    }
    sanitizer::release(&raw const thread.copies_issued);
    thread.engine.switch_to();
    sanitizer::acquire(&raw const thread.copies_issued);
    sanitizer::reads(copy.src, copy.valid_bytes as usize);
    sanitizer::writes(copy.dst, copy.bytes as usize);
    thread.fiber.switch_to();
}

unsafe extern "C" fn cp_async_commit(thread: *mut Thread) {
    // SAFETY: the kernel passes its own thread.
    let thread = unsafe { &mut *thread };
    if thread.engine.exists() {
        thread.engine.switch_to();
        sanitizer::release(&raw const thread.copies_done[thread.copy_group as usize % COPY_GROUPS]);
        thread.fiber.switch_to();
    }
    thread.copy_group += 1;
}

unsafe extern "C" fn cp_async_wait(thread: *mut Thread, pending: u32, _site: *const Site) {
    // SAFETY: the kernel passes its own thread.
    let thread = unsafe { &mut *thread };
    // The `pending` most recent committed groups may stay in flight; copies not yet committed stay too.
    let group = thread.copy_group;
    let due = group.saturating_sub(pending);
    for done in (thread.groups_awaited..due).rev().take(COPY_GROUPS) {
        sanitizer::acquire(&raw const thread.copies_done[done as usize % COPY_GROUPS]);
    }
    thread.groups_awaited = thread.groups_awaited.max(due);
    thread.copies.retain(|copy| {
        let due = copy.group < group && group - copy.group > pending;
        if due {
            copy.perform();
        }
        !due
    });
}

unsafe extern "C" fn ldmatrix(
    thread: *mut Thread,
    frag: *mut u32,
    rows: *const *const u8,
    tiles: u32,
    trans: u32,
    site: *const Site,
) {
    let collective = Collective::LoadMatrix { tiles, trans: trans != 0 };
    let operands = Operands { out: frag.cast(), a: rows.cast(), b: std::ptr::null() };
    // SAFETY: `frag` holds 4 words and `rows` one pointer per tile, both locals of the calling lane; every row
    // address is checked before it is read.
    unsafe {
        for tile in 0..tiles as usize {
            sanitizer::reads(*rows.add(tile), 16);
        }
        rendezvous(thread, site, collective, operands, |cta, lanes| {
            for tile in 0..tiles as usize {
                let row_of = |lane: usize| *lanes[lane].a.cast::<*const u8>().add(tile);
                for lane in 0..WARP {
                    let row = row_of(lane);
                    if row as usize % 16 != 0 {
                        return Err(format!("ldmatrix row of lane {lane} at {row:p} is not 16-byte aligned"));
                    }
                    if !cta.smem_holds(row, 16) {
                        return Err(format!(
                            "ldmatrix row of lane {lane} at {row:p} is outside shared memory"
                        ));
                    }
                }
                for (lane, o) in lanes.iter().enumerate() {
                    let out = o.out.cast::<u32>().add(tile * 4);
                    let (g, t) = (lane / 4, lane % 4);
                    for matrix in 0..4 {
                        *out.add(matrix) = if trans == 0 {
                            *row_of(matrix * 8 + g).cast::<u32>().add(t)
                        } else {
                            let lo = *row_of(matrix * 8 + 2 * t).cast::<u16>().add(g) as u32;
                            let hi = *row_of(matrix * 8 + 2 * t + 1).cast::<u16>().add(g) as u32;
                            lo | hi << 16
                        };
                    }
                }
            }
            Ok(())
        })
    }
}

unsafe extern "C" fn mma(
    thread: *mut Thread,
    acc: *mut f32,
    a: *const u32,
    b: *const u32,
    mt: u32,
    nt: u32,
    site: *const Site,
) {
    let operands = Operands { out: acc.cast(), a: a.cast(), b: b.cast() };
    // SAFETY: `acc`, `a` and `b` are locals of the calling lane with 4 mt nt, 4 mt and 2 nt words.
    unsafe {
        rendezvous(thread, site, Collective::Mma { mt, nt }, operands, |_, lanes| {
            let acc = lanes.map(|o| o.out.cast::<f32>());
            let a = lanes.map(|o| o.a.cast::<u32>());
            let b = lanes.map(|o| o.b.cast::<u32>());
            tile::mma(&acc, &a, &b, mt as usize, nt as usize)
        })
    }
}
