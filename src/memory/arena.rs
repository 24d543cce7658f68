//! The one allocation, and places in it.
//!
//! Weights fill its beginning, in the order in which the networks ask for them; what is written and read by operations shares
//! the rest, at the offsets that a [`Placed`](crate::program::Placed) program says.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::{Device, DeviceMemory, View};
use crate::{Error, Result};

/// `len` elements of `T` from byte `offset` of the arena on.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> Slot<T> {
    pub fn new(offset: usize, len: usize) -> Slot<T> {
        Slot { offset, len, element: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Of the first byte.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// As far behind byte `to` as it is behind byte `from`.
    pub fn moved(&self, from: usize, to: usize) -> Slot<T> {
        Slot::new(self.offset - from + to, self.len)
    }

    /// `len` elements from element `start` on.
    ///
    /// # Panics
    /// When the range leaves the slot, which would be a mistake in a network's own arithmetic.
    pub fn part(&self, start: usize, len: usize) -> Slot<T> {
        assert!(start + len <= self.len, "{start}..+{len} of {}", self.len);
        Slot::new(self.offset + start * size_of::<T>(), len)
    }
}

/// Device memory of exactly the planned size.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Arc<DeviceMemory>,
}

impl Arena {
    /// Makes the one allocation.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the device has not that much left.
    pub fn new(bytes: usize, device: &Device) -> Result<Arena> {
        let free = device.free_bytes()?;
        if bytes as u64 > free {
            return Err(Error::Capacity {
                what: format!("the arena on {}", device.capability().name),
                needed_bytes: bytes as u64,
                available_bytes: free,
                advice: "free device memory, or ask for a smaller image".to_string(),
            });
        }
        Ok(Arena { memory: device.allocate(bytes)? })
    }

    /// In place of one that has been given back: no byte of it.
    pub fn none(device: &Device) -> Arena {
        Arena { memory: device.no_memory() }
    }

    /// Where a slot lies.
    ///
    /// # Errors
    /// [`Error::Internal`] when it leaves the arena.
    pub fn view<T>(&self, slot: &Slot<T>) -> Result<View<T>> {
        self.memory.view(slot.offset, slot.len)
    }

    /// Some bytes of it.
    ///
    /// # Errors
    /// [`Error::Internal`] when they leave the arena.
    pub fn bytes(&self, offset: usize, len: usize) -> Result<View<u8>> {
        self.memory.view(offset, len)
    }

    pub fn num_bytes(&self) -> usize {
        self.memory.num_bytes()
    }

    /// Of the first byte.
    pub fn address(&self) -> Result<u64> {
        Ok(self.bytes(0, 0)?.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::EmulatorOptions;

    #[test]
    fn slots_lie_where_they_say() {
        let device = Device::emulator(EmulatorOptions::default());
        let arena = Arena::new(4096, &device).unwrap();
        let slot = Slot::<f32>::new(256, 8);
        assert_eq!(arena.view(&slot.part(2, 3)).unwrap().address(), arena.address().unwrap() + 256 + 8);
        assert_eq!(arena.view(&slot.part(2, 3)).unwrap().len(), 3);
        assert!(
            arena
                .view(&Slot::<f32>::new(4096 - 4, 2))
                .unwrap_err()
                .to_string()
                .contains("does not fit an allocation of 4096 bytes")
        );
        assert_eq!(device.num_allocations(), 1);
    }

    #[test]
    fn more_than_there_is_is_refused_with_both_numbers() {
        let device = Device::emulator(EmulatorOptions::default());
        let wanted = device.capability().total_bytes as usize * 4;
        match Arena::new(wanted, &device).unwrap_err() {
            Error::Capacity { needed_bytes, available_bytes, .. } => {
                assert!(needed_bytes == wanted as u64 && available_bytes < needed_bytes);
            }
            other => panic!("{other:?}"),
        }
    }
}
