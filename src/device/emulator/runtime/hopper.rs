//! What `kernels/gpu_sm90.cuh` declares: barriers that count bytes, copies by an engine of the CTA, products by an
//! engine of each warpgroup.
//!
//! Read `mbarrier.rs`, `tma.rs` and `wgmma.rs`; here is what they share: the async proxy's picture of shared memory, and
//! the places where the CTA's scheduler calls.
//!
//! # The picture
//! Engines do not see what threads store until those threads have fenced. Stores are invisible to this runtime, too, so
//! it keeps a second copy of shared memory, the picture, which copies write as they write the memory, and which every
//! `fence_proxy_async` takes anew. Bytes that a product is to read must be the same in both. The fence of one thread thus
//! covers what other threads have stored by then, though it ought to come after a barrier with them: which fence comes too
//! early depends on the schedule, and shows under `Order::Random`.

pub(super) mod mbarrier;
pub(super) mod tma;
pub(super) mod wgmma;

use super::{AsyncCopies, Cta, State, Thread, library};

/// Of one CTA; empty until a Hopper primitive is called.
#[derive(Default)]
pub(super) struct Hopper {
    /// What the engines see of shared memory; empty before the first primitive that matters.
    picture: Vec<u8>,
    barriers: mbarrier::Barriers,
    copies: tma::Engine,
    warpgroups: Vec<wgmma::Warpgroup>,
}

impl Hopper {
    /// Before a CTA.
    pub fn reset(&mut self) {
        self.picture.clear();
        self.barriers.reset();
        self.copies.reset();
        self.warpgroups.iter_mut().for_each(wgmma::Warpgroup::reset);
    }

    /// Forgets the sanitizers' fibers, of which none is running.
    pub fn destroy(&mut self) {
        self.copies.destroy();
        self.warpgroups.iter_mut().for_each(wgmma::Warpgroup::destroy);
    }
}

impl Cta {
    /// The picture, which begins as shared memory did: all 0xff.
    fn picture(&mut self) -> &mut [u8] {
        if self.hopper.picture.len() != self.smem_bytes {
            self.hopper.picture.clear();
            self.hopper.picture.resize(self.smem_bytes, 0xff);
        }
        &mut self.hopper.picture
    }

    /// Lets a copy in flight arrive: one at least when no thread can run, maybe one otherwise. Whether one did.
    pub(super) fn let_a_copy_arrive(&mut self, idle: bool) -> bool {
        if self.hopper.copies.is_idle() {
            return false;
        }
        if idle && self.live == 0 {
            let what = self.hopper.copies.who_is_left();
            self.fail(format!("the CTA is over while {what} is in flight"));
            return true;
        }
        let now = idle || self.async_copies == AsyncCopies::Random && self.rng.below(8) == 0;
        if now {
            self.complete_a_copy();
        }
        now
    }

    /// A thread returned from the kernel: nothing may be in flight that needs its registers.
    pub(super) fn check_warpgroup_of(&mut self, thread: usize) {
        let Some(group) = self.hopper.warpgroups.get(thread / wgmma::THREADS) else { return };
        if let Some(what) = group.needs_its_threads() {
            self.fail(format!("thread {thread} returned while its warpgroup {what}"));
        }
    }

    /// Makes a waiting thread ready.
    fn wake(&mut self, thread: usize) {
        let (warp, lane) = (thread / super::WARP, thread % super::WARP);
        debug_assert!(self.threads[thread].state != State::Running);
        self.warps[warp].ready |= 1 << lane;
    }

    /// Where an address lies in shared memory, for messages and descriptors.
    fn smem_offset(&self, p: *const u8) -> usize {
        (p as usize).wrapping_sub(self.index.smem as usize)
    }
}

/// `emu_hopper` of gpu_sm90.cuh: the same functions in the same order.
#[repr(C)]
struct Table {
    mbarrier_init: unsafe extern "C" fn(*mut Thread, *mut u8, u32, *const super::Site),
    fence_mbarrier_init: unsafe extern "C" fn(*mut Thread),
    mbarrier_arrive: unsafe extern "C" fn(*mut Thread, *mut u8, u32, *const super::Site),
    mbarrier_wait: unsafe extern "C" fn(*mut Thread, *mut u8, u32, *const super::Site),
    fence_proxy_async: unsafe extern "C" fn(*mut Thread),
    tma_load_2d:
        unsafe extern "C" fn(*mut Thread, *mut u8, *const tma::Map, i32, i32, *mut u8, *const super::Site),
    bulk_load: unsafe extern "C" fn(*mut Thread, *mut u8, *const u8, u32, *mut u8, *const super::Site),
    wgmma_name: unsafe extern "C" fn(*mut Thread, *const u32, u32, *const super::Site),
    wgmma: unsafe extern "C" fn(*mut Thread, *mut u32, u32, *mut u32, u64, u64, u32, *const super::Site),
    wgmma_commit: unsafe extern "C" fn(*mut Thread),
    wgmma_wait: unsafe extern "C" fn(*mut Thread, u32, *const super::Site),
}

static TABLE: Table = Table {
    mbarrier_init: mbarrier::init,
    fence_mbarrier_init: mbarrier::fence_init,
    mbarrier_arrive: mbarrier::arrive,
    mbarrier_wait: mbarrier::wait,
    fence_proxy_async,
    tma_load_2d: tma::load_2d,
    bulk_load: tma::bulk_load,
    wgmma_name: wgmma::name,
    wgmma: wgmma::multiply,
    wgmma_commit: wgmma::commit,
    wgmma_wait: wgmma::wait,
};

/// Tells the host-compiled kernels where this is. Idempotent.
pub(super) fn install() {
    // SAFETY: stores the address of a static; every caller stores the same one.
    unsafe { library::set_hopper((&raw const TABLE).cast()) };
}

unsafe extern "C" fn fence_proxy_async(thread: *mut Thread) {
    // SAFETY: the kernel passes its own thread; one fiber runs at a time; shared memory holds `smem_bytes` bytes.
    unsafe {
        let cta = &mut *(*thread).cta;
        let smem = std::slice::from_raw_parts(cta.index.smem.cast::<u8>(), cta.smem_bytes);
        cta.picture().copy_from_slice(smem);
        cta.hopper.barriers.publish((*thread).thread);
    }
}
