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
//! # A context that is lost
//! After a fault of a kernel every call in the context fails. CUDA's documentation has no way to mend a context; it says that the primary
//! one is reset when the last reference to it is released, and recommends that over resetting it, which would pull it away from
//! whoever else uses it in this process. So [`Machine::revive`] releases and retains it; where somebody else holds it, that gives the same
//! broken context again, and the error says so.
//!
//! # Safety
//! - The context, streams, modules and functions are made in this folder, never leave it, and are released by [`Cuda::close`]. All calls
//!   hold the context's lock for reading, so that it is another one only between calls, and when nothing that was made in it is
//!   alive: `live` counts that.
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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use cudarc::driver::sys::{self, CUresult};

use super::lost::{Loss, STILL_BROKEN, poisoned};
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
    context: RwLock<Context>,
    code: Mutex<code::Code>,
    /// Memory, buffers, events and graphs that were made in the context and not given back, and threads that it is kept current on.
    live: AtomicUsize,
    loss: Loss,
}

/// The primary context and what was made in it at once; all null where it could not be had again.
#[derive(Debug)]
struct Context {
    handle: sys::CUcontext,
    streams: [sys::CUstream; StreamId::COUNT],
}

impl Context {
    const NONE: Context =
        Context { handle: std::ptr::null_mut(), streams: [std::ptr::null_mut(); StreamId::COUNT] };
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
    context: RwLockReadGuard<'a, Context>,
    pushed: bool,
    /// What is current belongs to a thread.
    thread: PhantomData<*const ()>,
}

impl Current<'_> {
    fn stream(&self, stream: StreamId) -> sys::CUstream {
        self.context.streams[stream.index()]
    }
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
        let context = self.context();
        let pushed = self.push(&context)?;
        Ok(Current { cuda: self, context, pushed, thread: PhantomData })
    }

    fn context(&self) -> RwLockReadGuard<'_, Context> {
        self.context.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it had to be pushed.
    fn push(&self, context: &Context) -> Result<bool> {
        if context.handle.is_null() {
            return Err(poisoned(&self.name, &self.loss.cause().unwrap_or_default(), STILL_BROKEN));
        }
        if self.current_context() == Ok(context.handle) {
            return Ok(false);
        }
        // SAFETY: the context is retained.
        let pushed = unsafe { (self.driver.cuCtxPushCurrent_v2)(context.handle) }.ok();
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

    fn error(&self, operation: impl Into<String>, code: Code) -> Error {
        let error = advice::failure(self.driver, &self.name, operation, code);
        if advice::is_lost_by(code) {
            self.loss.note(&error);
        }
        error
    }

    /// The same of a wait, whose failure leaves unknown what has been done.
    fn wait_error(&self, operation: impl Into<String>, code: Code) -> Error {
        let error = self.error(operation, code);
        self.loss.note(&error);
        error
    }

    /// Something has been made in the context.
    fn add(&self, _current: &Current<'_>) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// It has been given back, or is the context's to clean up.
    fn remove(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets go of the context and all that was made in it.
    fn close(&self, context: &mut Context) {
        let modules = self.code().clear();
        let Context { handle, streams } = std::mem::replace(context, Context::NONE);
        if handle.is_null() {
            return;
        }
        // Failures cannot be reported from here, and after a device error everything fails.
        if let Ok(pushed) = self.push(&Context { handle, streams }) {
            // SAFETY: all handles were made by `make_context` and `function`, are released once and in the order of their
            // dependence; `Device` has freed its memory and events before: nothing of them is `live`.
            unsafe {
                for stream in streams {
                    if !stream.is_null() {
                        let _ = (self.driver.cuStreamSynchronize)(stream);
                        let _ = (self.driver.cuStreamDestroy_v2)(stream);
                    }
                }
                for module in modules {
                    let _ = (self.driver.cuModuleUnload)(module);
                }
            }
            if pushed {
                self.pop();
            }
        }
        // SAFETY: retained once by `make_context`; nothing of this context is used after, and no thread has it current because of
        // this crate: what pushes it holds the lock, borrows or owns the device, or is `live`.
        let _ = unsafe { (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let mut context =
            std::mem::replace(self.context.get_mut().unwrap_or_else(PoisonError::into_inner), Context::NONE);
        self.close(&mut context);
    }
}

impl Machine for Cuda {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    fn enter(&self) -> Result<bool> {
        let context = self.context();
        let pushed = self.push(&context)?;
        self.live.fetch_add(usize::from(pushed), Ordering::Relaxed);
        Ok(pushed)
    }

    unsafe fn leave(&self) {
        let context = self.context();
        // What the host program has put on top meanwhile is its own to take off.
        if !self.current_context().is_ok_and(|current| current != context.handle) {
            self.pop();
        }
        self.remove();
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn free_bytes(&self) -> Result<u64> {
        let _current = self.current()?;
        advice::free_bytes(self.driver).map_err(|e| self.error("read the free memory", e))
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        let current = self.current()?;
        let mut address = 0;
        // SAFETY: the out-pointer is a local. The synchronous call: one allocation, exactly this size, from no pool.
        unsafe { (self.driver.cuMemAlloc_v2)(&mut address, bytes.max(1)) }.ok().map_err(|e| {
            if e.is(CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
                let what = format!("the device allocation on {}", self.name);
                return advice::device_memory(self.driver, what, bytes as u64);
            }
            self.error(format!("allocate {bytes} bytes"), e)
        })?;
        self.add(&current);
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        if let Ok(_current) = self.current() {
            // SAFETY: `address` came from `allocate`; the caller has drained the streams and drops it now.
            let _ = unsafe { (self.driver.cuMemFree_v2)(address) };
        }
        self.remove();
    }

    unsafe fn allocate_host(&self, bytes: usize) -> Result<*mut u8> {
        let current = self.current()?;
        let mut base = std::ptr::null_mut();
        // SAFETY: the out-pointer is a local. Flags 0: cached, so that the host may read it, too.
        unsafe { (self.driver.cuMemHostAlloc)(&mut base, bytes.max(1), 0) }.ok().map_err(|e| {
            if e.is(CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
                return advice::host_memory(&self.name, bytes as u64);
            }
            self.error(format!("allocate {bytes} bytes of pinned host memory"), e)
        })?;
        self.add(&current);
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
        self.remove();
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
        let current = self.current()?;
        // SAFETY: the caller's promise: both ranges hold `bytes` until the stream has passed the copy.
        unsafe { (self.driver.cuMemcpyHtoDAsync_v2)(dst, src.cast(), bytes, current.stream(stream)) }
            .ok()
            .map_err(|e| self.error(format!("copy {bytes} bytes to the device"), e))
    }

    unsafe fn copy_to_host(&self, stream: StreamId, dst: *mut u8, src: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let current = self.current()?;
        // SAFETY: as in `copy_to_device`.
        unsafe { (self.driver.cuMemcpyDtoHAsync_v2)(dst.cast(), src, bytes, current.stream(stream)) }
            .ok()
            .map_err(|e| self.error(format!("copy {bytes} bytes to the host"), e))
    }

    unsafe fn fill(&self, stream: StreamId, dst: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let current = self.current()?;
        // SAFETY: the caller's promise: `dst` holds `bytes` until the stream has passed the fill.
        unsafe { (self.driver.cuMemsetD8Async)(dst, value, bytes, current.stream(stream)) }
            .ok()
            .map_err(|e| self.error(format!("fill {bytes} bytes"), e))
    }

    unsafe fn call(&self, stream: StreamId, function: HostFunction, data: *mut c_void) -> Result<()> {
        let current = self.current()?;
        // SAFETY: the caller's promise: `function` takes `data`, which lives until the stream has passed the call.
        unsafe { (self.driver.cuLaunchHostFunc)(current.stream(stream), Some(function), data) }
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
                current.stream(stream),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .ok()
        .map_err(|e| self.no_code(kernel, e).unwrap_or_else(|| self.error(operation(), e)))?;
        if cfg!(feature = "sync-launch") {
            // SAFETY: the stream is alive as long as its context is not closed.
            unsafe { (self.driver.cuStreamSynchronize)(current.stream(stream)) }
                .ok()
                .map_err(|e| self.wait_error(format!("run kernel {} with grid {grid:?}", kernel.name), e))?;
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
        self.remove();
    }

    unsafe fn launch_graph(&self, stream: StreamId, graph: GraphId) -> Result<()> {
        let current = self.current()?;
        // SAFETY: the caller's promise: a live graph of this machine, and live memory behind its nodes.
        unsafe { (self.driver.cuGraphLaunch)(graph.0 as sys::CUgraphExec, current.stream(stream)) }
            .ok()
            .map_err(|e| self.error("launch a graph", e))
    }

    fn create_event(&self) -> Result<EventId> {
        let current = self.current()?;
        let mut event = std::ptr::null_mut();
        // Events that measure time.
        let flags = sys::CUevent_flags_enum::CU_EVENT_DEFAULT as c_uint;
        // SAFETY: the out-pointer is a local.
        unsafe { (self.driver.cuEventCreate)(&mut event, flags) }
            .ok()
            .map_err(|e| self.error("create an event", e))?;
        self.add(&current);
        Ok(EventId(event as u64))
    }

    unsafe fn destroy_event(&self, event: EventId) {
        if let Ok(_current) = self.current() {
            // SAFETY: the event came from `create_event` and is dropped now; the driver defers this past pending work.
            let _ = unsafe { (self.driver.cuEventDestroy_v2)(event.0 as sys::CUevent) };
        }
        self.remove();
    }

    unsafe fn record(&self, stream: StreamId, event: EventId) -> Result<()> {
        let current = self.current()?;
        // SAFETY: the caller's promise: a live event of this machine.
        unsafe { (self.driver.cuEventRecord)(event.0 as sys::CUevent, current.stream(stream)) }
            .ok()
            .map_err(|e| self.error("record an event", e))
    }

    unsafe fn wait(&self, stream: StreamId, event: EventId) -> Result<()> {
        let current = self.current()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT as c_uint;
        // SAFETY: as in `record`.
        unsafe { (self.driver.cuStreamWaitEvent)(current.stream(stream), event.0 as sys::CUevent, flags) }
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
            .map_err(|e| self.wait_error("finish the work before an event", e))
    }

    fn synchronize(&self, stream: StreamId) -> Result<()> {
        let current = self.current()?;
        // SAFETY: the stream is alive as long as its context is not closed.
        unsafe { (self.driver.cuStreamSynchronize)(current.stream(stream)) }
            .ok()
            .map_err(|e| self.wait_error(format!("finish the {stream:?} stream"), e))
    }

    fn lost(&self) -> Option<String> {
        self.loss.cause()
    }

    fn revive(&self) -> Result<bool> {
        let mut context = self.context.write().unwrap_or_else(PoisonError::into_inner);
        if self.live.load(Ordering::Relaxed) > 0 {
            return Ok(false);
        }
        self.close(&mut context);
        *context = self.make_context()?;
        self.loss.forget();
        Ok(true)
    }
}
