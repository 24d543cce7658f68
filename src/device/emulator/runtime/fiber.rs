//! Fibers, one per CUDA thread: how they are made, give way, and are found by a signal handler.

use std::ffi::c_void;
use std::sync::atomic::AtomicBool;

use corosensei::stack::{DefaultStack, Stack as _};
use corosensei::trap::CoroutineTrapHandler;
use corosensei::{Coroutine, Yielder};

use super::{Fault, SANITIZER, Stack, State, Thread, library, sanitizer};

/// Kernels keep fragments and accumulators in locals: a few KiB. The guard page catches what grows past this.
const STACK_BYTES: usize = 64 << 10;

/// A kernel and its arguments, as a fiber receives them.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub entry: unsafe extern "C" fn(*const c_void),
    pub params: *const c_void,
}

/// A fiber and where its stack is, if there is memory for it.
pub(super) fn new_fiber() -> std::io::Result<(Coroutine<Call, (), (), DefaultStack>, Stack)> {
    let stack = DefaultStack::new(STACK_BYTES)?;
    let (top, bottom) = (stack.base().get(), stack.limit().get());
    let extent = Stack { bottom: bottom as *const c_void, bytes: top - bottom, ..Stack::UNKNOWN };
    let coroutine = Coroutine::with_stack(stack, |yielder: &Yielder<Call, ()>, mut call: Call| {
        let mut left = Stack::UNKNOWN;
        loop {
            // SAFETY: the scheduler set the thread-local to this fiber's thread just before resuming it (between CTAs the
            // threads may have moved); `params` is this entry's own struct, alive until the launch returns.
            unsafe {
                let thread = library::get_self().cast::<Thread>();
                SANITIZER.arrive(&left, &mut (*(*thread).cta).worker_stack);
                (*thread).yielder = yielder;
                sanitizer::acquire(&raw const (*(*thread).cta).begun);
                (call.entry)(call.params);
                sanitizer::release(&raw const (*(*thread).cta).ended);
                (*thread).state = State::Finished;
                left = (*thread).stack;
                SANITIZER.leave(&mut left, &(*(*thread).cta).worker_stack);
            }
            call = yielder.suspend(());
        }
    });
    Ok((coroutine, extent))
}

/// Gives way to the scheduler until this thread is made ready again.
///
/// # Safety
/// `thread` is the running fiber's own.
#[inline(always)]
pub(super) unsafe fn give_way(thread: *mut Thread) {
    // SAFETY: the yielder belongs to this fiber, which is the one running; thread and CTA outlive it.
    unsafe {
        SANITIZER.leave(&mut (*thread).stack, &(*(*thread).cta).worker_stack);
        (*(*thread).yielder).suspend(());
        SANITIZER.arrive(&(*thread).stack, &mut (*(*thread).cta).worker_stack);
    }
}

/// A fiber that a signal interrupted.
pub(in super::super) struct Interrupted<'a> {
    pub handler: CoroutineTrapHandler<()>,
    pub fault: &'a mut Option<Fault>,
    pub interrupted: &'a AtomicBool,
}

/// The fiber that runs on this OS thread, if `sp` lies in its stack.
///
/// # Safety
/// Called by a signal handler, while the interrupted code is the only other user of this OS thread's CTA.
pub(in super::super) unsafe fn fiber_at<'a>(sp: usize) -> Option<Interrupted<'a>> {
    // SAFETY: the thread-local is null unless a CTA runs on this OS thread, and then thread, CTA and progress are alive;
    // raw pointers, since the interrupted code may hold references.
    unsafe {
        let thread = library::get_self().cast::<Thread>();
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
pub(in super::super) fn running() -> Option<String> {
    // SAFETY: the thread-local is null unless one of this OS thread's fibers runs, whose thread and CTA are then alive.
    unsafe {
        let thread = library::get_self().cast::<Thread>();
        let thread = thread.as_ref()?;
        let cta = &*thread.cta;
        Some(format!(
            "kernel {}, CTA {:?}, thread {} (seed {})",
            cta.kernel, cta.index.cta, thread.thread, cta.seed
        ))
    }
}
