//! The GPU: `Machine` on the CUDA driver API, one driver call per method.
//!
//! Not cudarc's safe layer: its allocator takes memory from a pool, its host buffers are write-combined, and it tracks
//! every slice with events; this crate plans all of that itself.
//!
//! Read `open.rs` for what a machine must have, `driver.rs` for how the driver's functions are found and called,
//! `advice.rs` for what becomes of its refusals, `code.rs` for how kernels get onto the GPU.
//!
//! # Whose context is current
//! A host program may use CUDA itself, with contexts of its own current on its threads. So nothing is left behind:
//! every method makes the GPU's primary context current for as long as it runs ([`Cuda::current`]) and then takes it off
//! again; where it is current already, as under [`super::Device::enter`], nothing is switched. Nobody remembers which
//! thread has it: the driver is asked each time, which costs nanoseconds, because the host program may have switched.
//!
//! # Safety
//! - `context`, `streams`, modules and functions are made in this folder, never leave it, and are released by `Drop`.
//! - The driver's functions may be called from any thread while the context is current there: every method that calls
//!   one holds a [`Current`].
//! - Addresses, events and params come from [`super::Device`] under the promise of `Machine`.

pub(crate) mod advice;
mod code;
mod driver;
#[cfg(test)]
mod fake;
mod graph;
mod open;
#[cfg(test)]
mod tests;

use std::ffi::{c_uint, c_void};
use std::marker::PhantomData;
use std::sync::Mutex;

use cudarc::driver::sys::{self, CUresult};

use super::{
    Capability, EventId, GraphId, HostFunction, Kernel, Machine, Node, StreamId, TensorElement, TensorTile,
    Work,
};
use crate::abi;
use crate::{Error, Result};
use driver::{Code, Driver};

/// See the module's text.
pub(crate) struct Cuda {
    driver: &'static Driver,
    capability: Capability,
    sm: Sm,
    /// `cuda:0`, for errors.
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    streams: [sys::CUstream; StreamId::COUNT],
    code: Mutex<code::Code>,
}

/// What the CTAs of an SM share.
#[derive(Clone, Copy, Debug)]
struct Sm {
    /// Shared memory in all.
    smem_bytes: u32,
    /// Of each CTA's the system's part.
    reserved_bytes: u32,
}

// SAFETY: the handles are the driver's, which takes them from any thread where the context is current (module text); the
// maps are behind a mutex and nothing else changes after `open`.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// While this lives the context is the thread's current one.
struct Current<'a> {
    cuda: &'a Cuda,
    pushed: bool,
    /// What is current belongs to a thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if self.pushed {
            self.cuda.pop();
        }
    }
}

impl Cuda {
    /// Makes the context current on this thread, if it is not.
    fn current(&self) -> Result<Current<'_>> {
        Ok(Current { cuda: self, pushed: self.push()?, thread: PhantomData })
    }

    /// Whether it had to be pushed.
    fn push(&self) -> Result<bool> {
        if self.current_context() == Ok(self.context) {
            return Ok(false);
        }
        // SAFETY: the context is alive until `Drop`.
        let pushed = unsafe { (self.driver.cuCtxPushCurrent_v2)(self.context) }.ok();
        pushed.map(|()| true).map_err(|e| self.error("enter the context", e))
    }

    /// Undoes a push.
    fn pop(&self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: the out-pointer is a local. A failure leaves nothing to do.
        let _ = unsafe { (self.driver.cuCtxPopCurrent_v2)(&mut popped) };
    }

    fn current_context(&self) -> Result<sys::CUcontext, Code> {
        let mut current = std::ptr::null_mut();
        // SAFETY: the out-pointer is a local.
        unsafe { (self.driver.cuCtxGetCurrent)(&mut current) }.ok()?;
        Ok(current)
    }

    fn stream(&self, stream: StreamId) -> sys::CUstream {
        self.streams[stream.index()]
    }

    fn error(&self, operation: impl Into<String>, code: Code) -> Error {
        advice::failure(self.driver, &self.name, operation, code)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Failures cannot be reported from here, and after a device error everything fails.
        if let Ok(_current) = self.current() {
            // SAFETY: all handles were made by `open` and `function`, are released once and in the order of their
            // dependence; `Device` has freed its memory and events, which hold the device alive, before.
            unsafe {
                for stream in self.streams {
                    if !stream.is_null() {
                        let _ = (self.driver.cuStreamSynchronize)(stream);
                        let _ = (self.driver.cuStreamDestroy_v2)(stream);
                    }
                }
                for module in self.code().clear() {
                    let _ = (self.driver.cuModuleUnload)(module);
                }
            }
        }
        // SAFETY: retained once by `open`; nothing of this context is used after, and no thread has it current because of
        // this crate: what pushes it borrows or owns the device.
        let _ = unsafe { (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

impl Machine for Cuda {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    fn enter(&self) -> Result<bool> {
        self.push()
    }

    unsafe fn leave(&self) {
        // What the host program has put on top meanwhile is its own to take off.
        if self.current_context().is_ok_and(|current| current != self.context) {
            return;
        }
        self.pop();
    }

    fn free_bytes(&self) -> Result<u64> {
        let _current = self.current()?;
        advice::free_bytes(self.driver).map_err(|e| self.error("read the free memory", e))
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        let _current = self.current()?;
        let mut address = 0;
        // SAFETY: the out-pointer is a local. The synchronous call: one allocation, exactly this size, from no pool.
        unsafe { (self.driver.cuMemAlloc_v2)(&mut address, bytes.max(1)) }.ok().map_err(|e| {
            if e.is(CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
                let what = format!("the device allocation on {}", self.name);
                return advice::device_memory(self.driver, what, bytes as u64);
            }
            self.error(format!("allocate {bytes} bytes"), e)
        })?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        if let Ok(_current) = self.current() {
            // SAFETY: `address` came from `allocate`; the caller has drained the streams and drops it now.
            let _ = unsafe { (self.driver.cuMemFree_v2)(address) };
        }
    }

    unsafe fn allocate_host(&self, bytes: usize) -> Result<*mut u8> {
        let _current = self.current()?;
        let mut base = std::ptr::null_mut();
        // SAFETY: the out-pointer is a local. Flags 0: cached, so that the host may read it, too.
        unsafe { (self.driver.cuMemHostAlloc)(&mut base, bytes.max(1), 0) }.ok().map_err(|e| {
            if e.is(CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
                return advice::host_memory(&self.name, bytes as u64);
            }
            self.error(format!("allocate {bytes} bytes of pinned host memory"), e)
        })?;
        let base = base.cast::<u8>();
        // SAFETY: `bytes` writable bytes from the call above. `HostBuffer` lends them as initialized.
        unsafe { base.write_bytes(0, bytes) };
        Ok(base)
    }

    unsafe fn free_host(&self, address: *mut u8, _bytes: usize) {
        if let Ok(_current) = self.current() {
            // SAFETY: `address` came from `allocate_host`; the caller has drained the streams and drops it now.
            let _ = unsafe { (self.driver.cuMemFreeHost)(address.cast()) };
        }
    }

    fn tensor_map(&self, address: u64, tile: &TensorTile) -> Result<abi::tensor_map> {
        let _current = self.current()?;
        let mut map = abi::tensor_map { opaque: [0; 16] };
        let element = match tile.element {
            TensorElement::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            TensorElement::U8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let swizzle = if tile.swizzled {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B
        } else {
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE
        };
        // SAFETY: the driver writes the 128 bytes of `map`, which is aligned as CUtensorMap is, and reads as many numbers
        // from each array as the rank says (strides: one less); the address is only encoded.
        unsafe {
            (self.driver.cuTensorMapEncodeTiled)(
                (&raw mut map).cast(),
                element,
                2,
                address as *mut c_void,
                [tile.width as u64, tile.num_rows as u64].as_ptr(),
                [tile.pitch_bytes as u64].as_ptr(),
                [tile.box_width as u32, tile.box_num_rows as u32].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .ok()
        .map_err(|e| self.error(format!("encode {tile:?}"), e))?;
        Ok(map)
    }

    fn prepare(&self, kernel: &'static Kernel) -> Result<()> {
        let current = self.current()?;
        self.function(kernel, &current).map(|_| ())
    }

    unsafe fn copy_to_device(&self, stream: StreamId, dst: u64, src: *const u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.current()?;
        // SAFETY: the caller's promise: both ranges hold `bytes` until the stream has passed the copy.
        unsafe { (self.driver.cuMemcpyHtoDAsync_v2)(dst, src.cast(), bytes, self.stream(stream)) }
            .ok()
            .map_err(|e| self.error(format!("copy {bytes} bytes to the device"), e))
    }

    unsafe fn copy_to_host(&self, stream: StreamId, dst: *mut u8, src: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.current()?;
        // SAFETY: as in `copy_to_device`.
        unsafe { (self.driver.cuMemcpyDtoHAsync_v2)(dst.cast(), src, bytes, self.stream(stream)) }
            .ok()
            .map_err(|e| self.error(format!("copy {bytes} bytes to the host"), e))
    }

    unsafe fn fill(&self, stream: StreamId, dst: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.current()?;
        // SAFETY: the caller's promise: `dst` holds `bytes` until the stream has passed the fill.
        unsafe { (self.driver.cuMemsetD8Async)(dst, value, bytes, self.stream(stream)) }
            .ok()
            .map_err(|e| self.error(format!("fill {bytes} bytes"), e))
    }

    unsafe fn call(&self, stream: StreamId, function: HostFunction, data: *mut c_void) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: the caller's promise: `function` takes `data`, which lives until the stream has passed the call.
        unsafe { (self.driver.cuLaunchHostFunc)(self.stream(stream), Some(function), data) }
            .ok()
            .map_err(|e| self.error("enqueue a call of the host", e))
    }

    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: *const c_void,
        params_bytes: usize,
        _work: &Work,
    ) -> Result<()> {
        let current = self.current()?;
        let function = self.function_for(kernel, params_bytes, &current)?;
        let operation = || format!("launch kernel {} with grid {grid:?}", kernel.name);
        let mut arguments = [params.cast_mut()];
        // SAFETY: the function is loaded; `params` is its params struct (size compared above), copied by the driver
        // before the call returns; the addresses in it are the caller's promise.
        unsafe {
            (self.driver.cuLaunchKernel)(
                function.handle,
                grid[0],
                grid[1],
                grid[2],
                kernel.threads,
                1,
                1,
                kernel.smem_bytes,
                self.stream(stream),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .ok()
        .map_err(|e| self.no_code(kernel, e).unwrap_or_else(|| self.error(operation(), e)))?;
        if cfg!(feature = "sync-launch") {
            // SAFETY: the stream is alive until `Drop`.
            unsafe { (self.driver.cuStreamSynchronize)(self.stream(stream)) }
                .ok()
                .map_err(|e| self.error(format!("run kernel {} with grid {grid:?}", kernel.name), e))?;
        }
        Ok(())
    }

    unsafe fn graph(&self, nodes: &[Node<'_>]) -> Result<GraphId> {
        self.make_graph(nodes)
    }

    unsafe fn destroy_graph(&self, graph: GraphId) {
        if let Ok(_current) = self.current() {
            // SAFETY: it came from `graph` and is dropped now; the driver lets it end what it is at.
            let _ = unsafe { (self.driver.cuGraphExecDestroy)(graph.0 as sys::CUgraphExec) };
        }
    }

    unsafe fn launch_graph(&self, stream: StreamId, graph: GraphId) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: the caller's promise: a live graph of this machine, and live memory behind its nodes.
        unsafe { (self.driver.cuGraphLaunch)(graph.0 as sys::CUgraphExec, self.stream(stream)) }
            .ok()
            .map_err(|e| self.error("launch a graph", e))
    }

    fn create_event(&self) -> Result<EventId> {
        let _current = self.current()?;
        let mut event = std::ptr::null_mut();
        // Events that measure time.
        let flags = sys::CUevent_flags_enum::CU_EVENT_DEFAULT as c_uint;
        // SAFETY: the out-pointer is a local.
        unsafe { (self.driver.cuEventCreate)(&mut event, flags) }
            .ok()
            .map_err(|e| self.error("create an event", e))?;
        Ok(EventId(event as u64))
    }

    unsafe fn destroy_event(&self, event: EventId) {
        if let Ok(_current) = self.current() {
            // SAFETY: the event came from `create_event` and is dropped now; the driver defers this past pending work.
            let _ = unsafe { (self.driver.cuEventDestroy_v2)(event.0 as sys::CUevent) };
        }
    }

    unsafe fn record(&self, stream: StreamId, event: EventId) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: the caller's promise: a live event of this machine.
        unsafe { (self.driver.cuEventRecord)(event.0 as sys::CUevent, self.stream(stream)) }
            .ok()
            .map_err(|e| self.error("record an event", e))
    }

    unsafe fn wait(&self, stream: StreamId, event: EventId) -> Result<()> {
        let _current = self.current()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT as c_uint;
        // SAFETY: as in `record`.
        unsafe { (self.driver.cuStreamWaitEvent)(self.stream(stream), event.0 as sys::CUevent, flags) }
            .ok()
            .map_err(|e| self.error("wait for an event", e))
    }

    unsafe fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        let _current = self.current()?;
        let mut ms = 0.0;
        // SAFETY: as in `record`; the out-pointer is a local.
        unsafe { (self.driver.cuEventElapsedTime)(&mut ms, start.0 as sys::CUevent, end.0 as sys::CUevent) }
            .ok()
            .map_err(|e| {
                let operation = "read a timing event".to_string();
                if e.is(CUresult::CUDA_ERROR_NOT_READY) || e.is(CUresult::CUDA_ERROR_INVALID_HANDLE) {
                    let reason = "the event has not been reached".to_string();
                    return Error::Device { device: self.name.clone(), operation, reason };
                }
                self.error(operation, e)
            })?;
        Ok(ms)
    }

    unsafe fn synchronize_event(&self, event: EventId) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: as in `record`.
        unsafe { (self.driver.cuEventSynchronize)(event.0 as sys::CUevent) }
            .ok()
            .map_err(|e| self.error("finish the work before an event", e))
    }

    fn synchronize(&self, stream: StreamId) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: the stream is alive until `Drop`.
        unsafe { (self.driver.cuStreamSynchronize)(self.stream(stream)) }
            .ok()
            .map_err(|e| self.error(format!("finish the {stream:?} stream"), e))
    }
}
