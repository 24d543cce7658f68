//! Device memory of the caller's that pictures are drawn into.
//!
//! # Safety
//! Memory that [`DeviceBuffer::from_raw`] was told of is never freed here; what its caller promises holds for as long as the
//! buffer lives, and everything that touches it has left the streams before whoever enqueued it returns.

use std::sync::Arc;

use super::{Device, DeviceMemory, HostBuffer, StreamId, View};
use crate::{Error, Result};

/// Memory on a device that belongs to the caller and not to a pipeline, for
/// [`OutputBuffer::Device`](crate::OutputBuffer::Device): the next model on the card reads a picture where it lies.
///
/// ```
/// use schnell::{DeviceBuffer, Model, OutputBuffer, Pipeline, Pixels, Request, Shape};
/// # fn main() -> schnell::Result<()> {
/// let model = Model::demo()?;
/// let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(64)]).load()?;
/// let mut buffer = DeviceBuffer::new(pipeline.device(), 64 * 64 * 3 * 4)?;
/// let output = OutputBuffer::Device(&mut buffer, Pixels::F32Chw);
/// pipeline.generate_into(&Request::new("a red circle"), output)?;
/// assert_ne!(buffer.address(), 0); // f32 [3, 64, 64], ready for work on any stream
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct DeviceBuffer {
    memory: Arc<DeviceMemory>,
}

impl DeviceBuffer {
    /// Allocates `bytes`, aligned to at least 256, beside all that pipelines have; freed when the buffer goes. Its content is undefined.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the device has not that much left.
    pub fn new(device: &Device, bytes: usize) -> Result<DeviceBuffer> {
        Ok(DeviceBuffer { memory: device.allocate(bytes)? })
    }

    /// `bytes` from `address` on (a `CUdeviceptr`, or of the emulator an address of this process), which somebody else has
    /// allocated and will free.
    ///
    /// # Errors
    /// [`Error::Input`] for what can be no memory: address 0, or more bytes than there are addresses behind it.
    ///
    /// # Safety
    /// For as long as the buffer lives, kernels on `device` may write all of it: it is allocated in the GPU's primary context (or
    /// accessible from it), and not freed. While a call has the buffer, nothing else touches it: work that does, on other streams or
    /// threads, has ended before.
    pub unsafe fn from_raw(device: &Device, address: u64, bytes: usize) -> Result<DeviceBuffer> {
        if address == 0 || address.checked_add(bytes as u64).is_none() {
            return Err(Error::Input(format!(
                "{bytes} bytes of device memory at {address:#x}: none can be there"
            )));
        }
        let memory = DeviceMemory { device: device.clone(), address, bytes, is_ours: false };
        Ok(DeviceBuffer { memory: Arc::new(memory) })
    }

    /// Of its first byte.
    pub fn address(&self) -> u64 {
        self.memory.address
    }

    /// Size in bytes.
    pub fn num_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// The machine that it is on.
    pub fn device(&self) -> &Device {
        &self.memory.device
    }

    /// Its bytes, copied to the host; waits for that.
    ///
    /// # Errors
    /// [`Error::Capacity`] without as much pinned memory, [`Error::Device`] from the machine.
    pub fn read(&self) -> Result<Vec<u8>> {
        let device = self.device();
        let mut host = device.allocate_host(self.num_bytes())?;
        self.enqueue_read(StreamId::Compute, &mut host)?;
        device.synchronize(StreamId::Compute)?;
        Ok(host.as_slice().to_vec())
    }

    /// Enqueues a copy of its bytes.
    ///
    /// # Errors
    /// As [`Device::copy_to_host`].
    #[doc(hidden)]
    pub fn enqueue_read(&self, stream: StreamId, host: &mut HostBuffer) -> Result<()> {
        self.device().copy_to_host(stream, host, 0, &self.view::<u8>(self.num_bytes())?)
    }

    /// Its first `len` elements.
    pub(crate) fn view<T>(&self, len: usize) -> Result<View<T>> {
        self.memory.view(0, len)
    }
}
