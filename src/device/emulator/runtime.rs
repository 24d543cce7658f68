//! One CTA at a time on one OS thread: the fibers that are its CUDA threads, their scheduler, and the meaning of every
//! primitive that `kernels/gpu.cuh` declares.
//!
//! A collective is a rendezvous: a lane leaves pointers to its operands and gives way to another lane; the last
//! arriver carries the operation out for the whole warp, straight into the others' variables, and goes on.
//!
//! Here is what the modules share, a CTA, its threads and the table of primitives, which is the contract with
//! `kernels/gpu.cuh`. Then read `scheduler.rs` (whose turn it is), `fiber.rs` (how a thread is suspended),
//! `collectives.rs` and `copies.rs` (the primitives), `failure.rs` (what is said when one is used wrongly) and
//! `hopper.rs` (what only Hopper has).
//!
//! # Safety
//! Kernels are compiled C++ and hand us raw pointers; what makes that sound:
//! - A [`Cta`] is pinned in a `Box` and used by one OS thread; its fibers never migrate, so `&mut` access through the
//!   raw back pointers of [`Thread`] never overlaps: exactly one fiber or the scheduler runs at any time.
//! - Operand pointers point into the stacks of suspended fibers, which stay put until the rendezvous resolves.
//! - Kernel frames hold no destructors, so abandoning their fibers (`force_reset`) leaks nothing.
//! - Shared-memory and global-memory addresses are checked here wherever a primitive receives one; plain loads and
//!   stores of the kernels are as safe as the C++ that makes them.

mod collectives;
mod copies;
mod failure;
mod fiber;
mod hopper;
mod scheduler;

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, Once};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};

use super::accesses::{self, Recorder, Records};
use super::faults::Fault;
use super::library;
use super::pool::Progress;
use super::sanitizer::{self, Fiber, SANITIZER, Stack};
use super::tile;
use super::{AsyncCopies, Order, Span};
use collectives::{Collective, Warp, ldmatrix, mma, mma_half, shfl_xor, sync_cta, sync_warp};
use copies::{COPY_GROUPS, PendingCopy, cp_async, cp_async_commit, cp_async_wait};
use failure::fail;
use fiber::{Call, give_way};
pub(super) use fiber::{fiber_at, running};
pub(super) use hopper::tma::Map as TensorMap;

pub(super) const WARP: usize = 32;

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
    yielder: *const Yielder<Call, ()>,
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

/// What one launch asks of a CTA.
#[derive(Clone, Copy)]
pub(super) struct Launch<'a> {
    pub entry: library::Entry,
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

/// Why a launch came to no end.
#[derive(Clone)]
pub(super) enum Failure {
    /// What the kernel did.
    Kernel(String),
    /// The host has no room for what runs it.
    NoRoom(String),
}

impl Failure {
    pub fn no_room(what: &str, why: std::io::Error) -> Failure {
        Failure::NoRoom(format!("{what}: {why}"))
    }
}

/// The runtime of one worker: the fibers and shared memory that it uses for CTA after CTA.
pub(super) struct Cta {
    index: CtaIndex,
    threads: Vec<Thread>,
    fibers: Vec<Coroutine<Call, (), (), DefaultStack>>,
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
    set_self: library::SetSelf,
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
            set_self: library::self_setter(),
        })
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
    mma_half: unsafe extern "C" fn(*mut Thread, *mut u32, *const u32, *const u32, u32, u32, *const Site),
}

static RUNTIME: Runtime = Runtime {
    sync_cta,
    sync_warp,
    shfl_xor,
    cp_async,
    cp_async_commit,
    cp_async_wait,
    ldmatrix,
    mma,
    mma_half,
};

/// Tells the host-compiled kernels where the runtime is. Idempotent.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: stores the address of a static.
        unsafe { library::set_runtime((&raw const RUNTIME).cast()) };
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
