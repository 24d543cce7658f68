//! A ring of pinned slots that a thread fills and a stream empties, in turn, without either waiting for the other's caller: copies
//! are enqueued before their bytes are there, and the stream waits for these.
//!
//! The stream's side is three operations a slot: a call of [`wait`], the copy, a call of [`empty`]. Filled and emptied slots are
//! counted; which slot comes next is the count modulo their number.
//!
//! # Safety
//! A slot's bytes are the thread's from the moment it has been emptied until it counts as filled, and the copy's from then until it
//! is emptied: both look at the counts, under one lock. [`Ring::end`] gives up the order, so that nothing waits for ever; what is
//! copied from then on may be half of something, and nobody looks at it. The memory goes when the streams have drained and the
//! thread's half has been dropped.

use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::{Device, StreamId, View};
use crate::{Error, Result};

/// The stream's half.
#[derive(Debug)]
pub struct Ring {
    shared: Arc<Shared>,
    /// Copies since the last [`Ring::restart`].
    enqueued: u64,
}

/// The thread's half.
#[derive(Debug)]
pub struct Filler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    device: Device,
    address: *mut u8,
    slot_bytes: usize,
    slots: usize,
    counts: Mutex<Counts>,
    changed: Condvar,
}

/// Since the last restart.
#[derive(Debug, Default)]
struct Counts {
    filled: u64,
    /// Copies that have been waited for.
    awaited: u64,
    emptied: u64,
    /// Whether nobody waits any more.
    is_over: bool,
}

// SAFETY: the address is plain memory that this value owns; who may touch which slot when is told by the counts.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn end(&self) {
        self.counts().is_over = true;
        self.changed.notify_all();
    }

    /// Changes the counts as soon as `may` says so, or nothing is waited for any more; then whether it may.
    fn when(&self, may: impl Fn(&Counts) -> bool, change: impl FnOnce(&mut Counts)) -> bool {
        let counts = self.counts();
        let waited = self.changed.wait_while(counts, |counts| !counts.is_over && !may(counts));
        let mut counts = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        if counts.is_over {
            return false;
        }
        change(&mut counts);
        self.changed.notify_all();
        true
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.device.drain();
        // SAFETY: the address came from `allocate_host` with this size, no queued copy is left, and no half either.
        unsafe { self.device.machine().free_host(self.address, self.slots * self.slot_bytes) };
        self.device.inner.held_on_host.give_back(self.slots * self.slot_bytes);
    }
}

/// On the stream: waits until the next slot is filled.
///
/// # Safety
/// `shared` is a live [`Shared`].
unsafe extern "C" fn wait(shared: *mut c_void) {
    // SAFETY: the caller's promise.
    let shared = unsafe { &*shared.cast::<Shared>() };
    let number = {
        let mut counts = shared.counts();
        counts.awaited += 1;
        counts.awaited
    };
    shared.when(|counts| counts.filled >= number, |_| {});
}

/// On the stream: the slot that was waited for last has been copied from.
///
/// # Safety
/// `shared` is a live [`Shared`].
unsafe extern "C" fn empty(shared: *mut c_void) {
    // SAFETY: the caller's promise.
    let shared = unsafe { &*shared.cast::<Shared>() };
    shared.when(|_| true, |counts| counts.emptied += 1);
}

impl Device {
    /// A ring of so many pinned slots; both halves.
    ///
    /// # Errors
    /// [`Error::Capacity`] or [`Error::Device`] when the machine refuses.
    pub(crate) fn ring(&self, slot_bytes: usize, slots: usize) -> Result<(Ring, Filler)> {
        // SAFETY: `Shared` owns the address and gives it back once.
        let address = unsafe { self.machine().allocate_host(slot_bytes * slots)? };
        self.inner.held_on_host.take(slot_bytes * slots);
        let shared = Arc::new(Shared {
            device: self.clone(),
            address,
            slot_bytes,
            slots,
            counts: Mutex::default(),
            changed: Condvar::new(),
        });
        Ok((Ring { shared: shared.clone(), enqueued: 0 }, Filler { shared }))
    }
}

impl Ring {
    /// Enqueues a copy of the next slot's first bytes, as many as `to` has, once it is filled.
    ///
    /// # Errors
    /// [`Error::Internal`] when a slot is smaller; [`Error::Device`] when the driver refuses.
    pub fn copy_to_device(&mut self, stream: StreamId, to: &View<u8>) -> Result<()> {
        let Shared { device, address, slot_bytes, slots, .. } = &*self.shared;
        if to.len() > *slot_bytes {
            return Err(Error::Internal(format!("{} bytes leave a slot of {slot_bytes}", to.len())));
        }
        device.check_own(&to.memory.device)?;
        let slot = (self.enqueued % *slots as u64) as usize;
        let data = Arc::as_ptr(&self.shared).cast_mut().cast::<c_void>();
        self.enqueued += 1;
        // SAFETY: `data` lives until the streams have drained, since `Shared` drains them when it goes; the slot lies in memory that
        // goes then, too, and belongs to the copy between the two calls (module text); the view lies in live memory.
        unsafe {
            device.machine().call(stream, wait, data)?;
            device.machine().copy_to_device(
                stream,
                to.address(),
                address.add(slot * slot_bytes),
                to.len(),
            )?;
            device.machine().call(stream, empty, data)
        }
    }

    /// Of all slots.
    pub fn num_bytes(&self) -> usize {
        self.shared.slots * self.shared.slot_bytes
    }

    /// Nobody waits any more, neither the thread nor the stream: what is copied from now on is nothing.
    pub fn end(&self) {
        self.shared.end();
    }

    /// Whether that has been said, by either half.
    pub fn is_over(&self) -> bool {
        self.shared.counts().is_over
    }

    /// Begins anew. The streams are drained, and the thread waits for its caller.
    pub fn restart(&mut self) {
        *self.shared.counts() = Counts::default();
        self.enqueued = 0;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Filler {
    /// Waits for an empty slot and has it filled; false, and nothing done, when it is all over.
    ///
    /// # Errors
    /// Those of `fill`; then the slot does not count.
    pub fn fill(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<bool> {
        let Shared { address, slot_bytes, slots, .. } = *self.shared;
        let mut number = 0;
        let is_free = self
            .shared
            .when(|counts| counts.filled - counts.emptied < slots as u64, |counts| number = counts.filled);
        if !is_free {
            return Ok(false);
        }
        let slot = (number % slots as u64) as usize;
        // SAFETY: `slot_bytes` initialized (zeroed) bytes of live memory; no copy reads them before they count as filled (module
        // text), and there is one filler, which is borrowed.
        fill(unsafe { std::slice::from_raw_parts_mut(address.add(slot * slot_bytes), slot_bytes) })?;
        Ok(self.shared.when(|_| true, |counts| counts.filled += 1))
    }

    /// As [`Ring::end`].
    pub fn give_up(&self) {
        self.shared.end();
    }
}
