//! cp.async: copies to shared memory that are carried out when they are issued or as late as a wait allows.

use super::{AsyncCopies, Fiber, Site, Thread, fail, sanitizer};

/// Groups of copies that are told apart for ThreadSanitizer; more are never in flight.
pub(super) const COPY_GROUPS: usize = 16;

/// A cp.async that has been issued and not carried out.
#[derive(Clone, Copy)]
pub(super) struct PendingCopy {
    pub dst: *mut u8,
    pub src: *const u8,
    pub bytes: u32,
    pub valid_bytes: u32,
    pub group: u32,
}

impl PendingCopy {
    pub fn perform(&self) {
        // SAFETY: `cp_async` checked that dst lies in this CTA's shared memory and src in device memory, and both for alignment.
        unsafe {
            if (self.bytes, self.valid_bytes) == (16, 16) {
                *self.dst.cast::<u128>() = *self.src.cast::<u128>();
                return;
            }
            for i in 0..self.valid_bytes as usize {
                *self.dst.add(i) = *self.src.add(i);
            }
            for i in self.valid_bytes as usize..self.bytes as usize {
                *self.dst.add(i) = 0;
            }
        }
    }
}

pub(super) unsafe extern "C" fn cp_async(
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

pub(super) unsafe extern "C" fn cp_async_commit(thread: *mut Thread) {
    // SAFETY: the kernel passes its own thread.
    let thread = unsafe { &mut *thread };
    if thread.engine.exists() {
        thread.engine.switch_to();
        sanitizer::release(&raw const thread.copies_done[thread.copy_group as usize % COPY_GROUPS]);
        thread.fiber.switch_to();
    }
    thread.copy_group += 1;
}

pub(super) unsafe extern "C" fn cp_async_wait(thread: *mut Thread, pending: u32, _site: *const Site) {
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
