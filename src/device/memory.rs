//! Memory: device allocations, views into them, and the pinned host buffers that copies go through.
//!
//! # Safety
//! The claims are the parent module's: views keep their memory alive, memory goes when the streams have drained, and a
//! host buffer's bytes are shown only when no copy is in flight.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Device, Event, StreamId};
use crate::{Error, Result};

/// Bytes that are held of a kind of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Now.
    pub now: u64,
    /// The most since somebody asked last.
    pub most: u64,
}

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Counter(Mutex<Held>);

impl Counter {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn take(&self, bytes: usize) {
        let mut held = self.lock();
        held.now += bytes as u64;
        held.most = held.most.max(held.now);
    }

    pub fn give_back(&self, bytes: usize) {
        let mut held = self.lock();
        held.now = held.now.saturating_sub(bytes as u64);
    }

    /// What is held; from now on the most is counted anew.
    pub fn read(&self) -> Held {
        let mut held = self.lock();
        let read = *held;
        held.most = held.now;
        read
    }
}

/// One device allocation. Freed when its last [`View`] is gone, unless it is somebody else's.
#[derive(Debug)]
pub struct DeviceMemory {
    pub(super) device: Device,
    pub(super) address: u64,
    pub(super) bytes: usize,
    /// Whether [`Device::allocate`] made it.
    pub(super) is_ours: bool,
}

impl DeviceMemory {
    /// Size in bytes.
    pub fn num_bytes(&self) -> usize {
        self.bytes
    }

    /// The machine it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `len` elements from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Internal`] when the range leaves the allocation or `offset` is not aligned for `T`.
    pub fn view<T>(self: &Arc<Self>, offset: usize, len: usize) -> Result<View<T>> {
        let end = len.checked_mul(size_of::<T>()).and_then(|b| b.checked_add(offset));
        if end.is_none_or(|end| end > self.bytes) || offset % align_of::<T>() != 0 {
            return Err(Error::Internal(format!(
                "a view of {len} x {} bytes at {offset} does not fit an allocation of {} bytes",
                size_of::<T>(),
                self.bytes
            )));
        }
        Ok(View { memory: self.clone(), offset, len, element: PhantomData })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        self.device.drain();
        // SAFETY: the address came from `allocate`, the streams are empty and no view is left.
        unsafe { self.device.machine().free(self.address, self.bytes) };
        self.device.inner.held.give_back(self.bytes);
    }
}

/// `len` elements of type `T` somewhere in a [`DeviceMemory`], which it keeps alive.
#[derive(Debug)]
pub struct View<T> {
    pub(super) memory: Arc<DeviceMemory>,
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        View { memory: self.memory.clone(), offset: self.offset, len: self.len, element: PhantomData }
    }
}

impl<T> View<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in bytes.
    pub fn num_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Its address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.memory.address + self.offset as u64
    }

    /// `len` elements from element `start` on.
    ///
    /// # Errors
    /// [`Error::Internal`] when the range leaves the view.
    pub fn slice(&self, start: usize, len: usize) -> Result<View<T>> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::Internal(format!("elements {start}..+{len} leave a view of {}", self.len)));
        }
        let offset = self.offset + start * size_of::<T>();
        Ok(View { memory: self.memory.clone(), offset, len, element: PhantomData })
    }

    /// The same bytes as elements of another type.
    ///
    /// # Errors
    /// [`Error::Internal`] when size or alignment do not fit.
    pub fn cast<U>(&self) -> Result<View<U>> {
        let (bytes, element_bytes) = (self.num_bytes(), size_of::<U>());
        // `None` also for elements of no size.
        if bytes.checked_rem(element_bytes) != Some(0) {
            return Err(Error::Internal(format!("{bytes} bytes are no whole number of {element_bytes}")));
        }
        self.memory.view(self.offset, bytes / element_bytes)
    }
}

/// Pinned host memory that copies go through.
///
/// While a copy is in flight its bytes are the device's: looking at them waits for it.
#[derive(Debug)]
pub struct HostBuffer {
    pub(super) device: Device,
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
    /// Recorded behind the last copy on each stream; one of no bytes has none.
    pub(super) used: Option<[Event; StreamId::COUNT]>,
    /// Whether that event has yet to be waited for.
    pub(super) pending: [AtomicBool; StreamId::COUNT],
}

// SAFETY: the buffer is plain memory with one owner; all access goes through the borrows below.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    /// Size in bytes.
    pub fn num_bytes(&self) -> usize {
        self.bytes
    }

    /// Refuses a range that leaves it.
    pub(super) fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(Error::Internal(format!(
                "bytes {offset}..+{bytes} leave a host buffer of {} bytes",
                self.bytes
            )));
        }
        Ok(())
    }

    /// Waits until no copy is in flight.
    fn settle(&self) {
        let Some(used) = &self.used else { return };
        for stream in [StreamId::Compute, StreamId::Copy] {
            let (event, pending) = (&used[stream.index()], &self.pending[stream.index()]);
            if pending.swap(false, Ordering::Relaxed) && self.device.synchronize_event(event).is_err() {
                // A copy that failed is over; where only the wait did, the stream is what is left to wait for. Either way the
                // machine is lost, which is reported by whoever looks next (`lost.rs`).
                let _ = self.device.synchronize(stream);
            }
        }
    }

    /// All of it, to fill before a copy to the device; waits for copies in flight.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.settle();
        // SAFETY: `bytes` initialized (zeroed) bytes that this value owns, and no copy is in flight; the `&mut` keeps
        // new ones from being enqueued.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }

    /// The same as [`HostBuffer::as_slice`], of a machine that has not been lost by then: a wait for copies that failed has told
    /// nobody else.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when it has.
    pub(crate) fn trusted(&self) -> Result<&[u8]> {
        let bytes = self.as_slice();
        self.device.check_alive().map(|()| bytes)
    }

    /// All of it, to read after a copy from the device; waits for copies in flight.
    pub fn as_slice(&self) -> &[u8] {
        self.settle();
        // SAFETY: as above; while the `&` lives only copies that read the buffer can be enqueued.
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.used.is_none() {
            return;
        }
        self.device.drain();
        // SAFETY: the address came from `allocate_host` and no queued copy is left.
        unsafe { self.device.machine().free_host(self.address, self.bytes) };
        self.device.inner.held_on_host.give_back(self.bytes);
    }
}

impl Device {
    /// None at all, with no handle behind it: what stands in for memory that has been given back.
    pub(crate) fn no_memory(&self) -> Arc<DeviceMemory> {
        Arc::new(DeviceMemory { device: self.clone(), address: 0, bytes: 0, is_ours: false })
    }

    /// The same of pinned memory.
    pub(crate) fn no_host_memory(&self) -> HostBuffer {
        let address = std::ptr::NonNull::dangling().as_ptr();
        HostBuffer { device: self.clone(), address, bytes: 0, used: None, pending: Default::default() }
    }
}

/// The host's memory that is free, from which pinned buffers and the emulator's device memory come.
pub(super) fn free_host_bytes() -> u64 {
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    kib.map_or(8 << 30, |k| k << 10)
}
