//! Whose turn it is: a CTA from its first thread's start to its last one's return.

use std::ffi::c_void;

use corosensei::CoroutineResult;

use super::collectives::Warp;
use super::copies::COPY_GROUPS;
use super::fiber::{Call, new_fiber};
use super::{
    Cta, CtaIndex, Failure, Fiber, Launch, Order, Progress, Rng, SANITIZER, Stack, State, Thread, WARP,
    sanitizer,
};

impl Cta {
    /// Runs the CTA at `cta` of the launch to its end. The error names the place and who waited where.
    pub fn run(&mut self, launch: &Launch<'_>, cta: [u32; 3], progress: &Progress) -> Result<(), Failure> {
        self.add_fibers(launch.threads as usize)?;
        self.prepare(launch, cta);
        self.progress = progress;
        let call = Call { entry: launch.entry, params: launch.params };
        let mut from = 0;
        loop {
            let warp = self.next_warp(from);
            if self.let_a_copy_arrive(warp.is_none()) {
                if self.error.is_some() {
                    return Err(Failure::Kernel(self.abandon()));
                }
                continue;
            }
            let Some(warp) = warp else { break };
            from = warp;
            loop {
                let ready = self.warps[warp].ready;
                if ready == 0 {
                    break;
                }
                let lane = self.next_lane(ready);
                progress.turn();
                self.resume(warp, lane, call);
                if self.error.is_some() {
                    return Err(Failure::Kernel(self.abandon()));
                }
                if self.order == Order::Random {
                    break;
                }
            }
        }
        if self.live != 0 {
            self.error = Some(format!("deadlock: {}", self.who_waits_where()));
            return Err(Failure::Kernel(self.abandon()));
        }
        self.recorder.finish();
        sanitizer::acquire(&raw const self.ended);
        self.open_shared_memory();
        // SAFETY: sets a thread-local of this OS thread.
        unsafe { (self.set_self)(std::ptr::null_mut()) };
        Ok(())
    }

    /// A warp that can run, in order the next from `from` on.
    fn next_warp(&mut self, from: usize) -> Option<usize> {
        let num_warps = self.warps.len();
        let start = match self.order {
            Order::InOrder => from,
            Order::Random => self.rng.below(num_warps),
        };
        (0..num_warps).map(|i| (start + i) % num_warps).find(|&w| self.warps[w].ready != 0)
    }

    /// One of the lanes that are ready.
    fn next_lane(&mut self, ready: u32) -> usize {
        let lane = match self.order {
            Order::InOrder => ready.trailing_zeros(),
            Order::Random => {
                let turn = (self.rng.next() & 31) as u32;
                (ready.rotate_right(turn).trailing_zeros() + turn) & 31
            }
        };
        lane as usize
    }

    /// Everything as the first thread of the CTA at `cta` is to find it.
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
        for thread in &mut self.threads[..threads] {
            thread.index = &raw const self.index;
            thread.cta = this;
            thread.state = State::Running;
            thread.copies.clear();
            thread.copy_group = 0;
            thread.groups_awaited = 0;
        }
        self.warps.clear();
        self.warps.extend((0..threads / WARP).map(|_| Warp::new()));
        self.barrier_arrived = 0;
        self.live = threads as u32;
        self.error = None;
        self.hopper.reset();
    }

    /// Makes what is missing of `threads` fibers.
    fn add_fibers(&mut self, threads: usize) -> Result<(), Failure> {
        let this: *mut Cta = self;
        while self.fibers.len() < threads {
            let thread = self.fibers.len() as u32;
            let fiber = new_fiber();
            let (coroutine, stack) = fiber.map_err(|e| Failure::no_room("the stack of a thread", e))?;
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
        Ok(())
    }

    fn resume(&mut self, warp: usize, lane: usize, call: Call) {
        let at = warp * WARP + lane;
        self.warps[warp].ready &= !(1 << lane);
        self.threads[at].state = State::Running;
        let thread = &raw mut self.threads[at];
        // SAFETY: sets a thread-local of this OS thread, which is the one that resumes the fiber.
        unsafe { (self.set_self)(thread.cast()) };
        let fiber = &raw mut self.fibers[at];
        SANITIZER.leave(&mut self.worker_stack, &self.threads[at].stack);
        self.threads[at].fiber.switch_to();
        // SAFETY: `self.fibers` is not touched while a fiber runs (it grows only in `add_fibers`); the raw pointer keeps
        // the borrow checker from assuming that the fiber cannot reach `self`, which it does through `Thread::cta`.
        let result = unsafe { (*fiber).resume(call) };
        self.worker.switch_to();
        if matches!(result, CoroutineResult::Return(())) {
            let what = self.threads[at].fault.take().map(|fault| self.describe(at, fault));
            return self.fail(what.unwrap_or_else(|| format!("thread {at} left its fiber")));
        }
        SANITIZER.arrive(&self.worker_stack, &mut Stack::UNKNOWN.clone());
        if matches!(self.threads[at].state, State::Finished) {
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
}
