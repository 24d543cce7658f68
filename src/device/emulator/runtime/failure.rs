//! What is said, and what becomes of the fibers, when a kernel misuses a primitive, crashes, or waits for ever.

use super::{Cta, Fault, SANITIZER, Site, State, Thread, WARP, give_way};

impl Cta {
    pub(super) fn fail(&mut self, what: String) {
        if self.error.is_none() {
            self.error = Some(what);
        }
    }

    pub(super) fn who_waits_where(&self) -> String {
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
    pub(super) fn abandon(&mut self) -> String {
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
        unsafe { (self.set_self)(std::ptr::null_mut()) };
        self.fibers.clear();
        self.threads.clear();
        let what = self.error.take().unwrap_or_default();
        format!("CTA {:?}: {what}", self.index.cta)
    }

    /// A fault of thread `at`, in words.
    pub(super) fn describe(&self, at: usize, fault: Fault) -> String {
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
}

/// Records an error and never returns to the kernel: the scheduler abandons the fiber.
///
/// # Safety
/// `thread` is the running fiber's own.
pub(super) unsafe fn fail(thread: *mut Thread, site: Site, what: String) {
    // SAFETY: one fiber runs at a time, so this is the only access to the CTA.
    unsafe {
        let place = format!("thread {} at {site}: {what}", (*thread).thread);
        (*(*thread).cta).fail(place);
        loop {
            give_way(thread);
        }
    }
}
