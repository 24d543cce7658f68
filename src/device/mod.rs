//! The machine: what the rest of the crate may ask of a GPU, or of the [emulator] that stands in for one.
//!
//! Reading order: [`Capability`] (what a machine is), [`Device`] (what it does), [`Kernel`] (what it runs), [`View`] and
//! [`HostBuffer`] (what it works on), then the two machines behind the small trait `Machine`: `cuda` (the driver API) and
//! `emulator`.
//!
//! A [`Device`] allocates device memory through [`Device::allocate`] only; the count of such allocations is public,
//! because "one per pipeline" is a promise with a test. All work is asynchronous and ordered by two [`StreamId`]s and
//! the [`Event`]s between them.
//!
//! # Safety
//! This module owns every handle and address:
//! - A [`View`] holds its [`DeviceMemory`] alive; memory is freed only after both streams have drained. A [`DeviceBuffer`] may be of
//!   memory that somebody else frees, by a promise of theirs.
//! - A [`HostBuffer`] is alive as long as the queue needs it: copies keep nothing, so dropping one drains the streams;
//!   its bytes can be seen only when no copy is in flight.
//! - Copies check both ranges and that both ends are this machine's; launches are `unsafe` and belong to the wrappers in
//!   [`crate::kernels`], which check every view against the shapes they pass on.
//! - Only this crate makes a [`Kernel`]: its image is nvcc's, its entry the one that was compiled with it.

mod buffer;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "emulator")]
pub mod emulator;
mod footprint;
mod graph;
#[cfg(feature = "check")]
pub mod injection;
mod kernel;
pub(crate) mod lost;
mod memory;
pub(crate) mod ring;
mod tape;

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::abi;
use crate::{Error, Result};
pub use buffer::DeviceBuffer;
#[cfg(feature = "emulator")]
use emulator::accesses::AccessCounts;
#[cfg(feature = "emulator")]
pub use emulator::{AsyncCopies, EmulatorOptions, Order};
pub(crate) use footprint::{Footprint, Mode, NO_MAP, Rows, Span, TensorElement, TensorTile, Work};
pub(crate) use graph::{Graph, GraphId, Node};
pub(crate) use kernel::Params;
pub use kernel::{Config, Kernel};
pub use memory::{DeviceMemory, Held, HostBuffer, View};
pub(crate) use tape::{Tape, TapedLaunch};

/// What a machine is. `select` functions may look at `arch`, `num_sms` and `smem_per_cta_bytes`, never at memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Capability {
    /// The driver's name of the GPU, or `emulator`.
    pub name: String,
    /// Compute capability: 80, 86, 90, ...
    pub arch: u32,
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// Shared memory that one CTA may have.
    pub smem_per_cta_bytes: u32,
    /// Device memory in all.
    pub total_bytes: u64,
    /// Whether this is the emulator.
    pub is_emulator: bool,
    /// OS threads that the emulator runs CTAs on (0 on a GPU).
    pub threads: usize,
    /// The driver's version, `13.0`, or `none`.
    pub driver: String,
    /// Where the GPU sits, `0000:41:00.0`: ordinals are this process's own, this is what nvidia-smi knows it by, too.
    pub pci_bus_id: Option<String>,
}

impl Capability {
    /// Of the oldest machine that there is code for, for what needs a machine and does not depend on it.
    pub(crate) fn unknown() -> Capability {
        Capability {
            name: "a machine".to_string(),
            arch: 80,
            num_sms: 16,
            smem_per_cta_bytes: 99 << 10,
            total_bytes: u64::MAX,
            is_emulator: false,
            threads: 0,
            driver: "none".to_string(),
            pci_bus_id: None,
        }
    }
}

/// Which of a device's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamId {
    /// Kernels.
    Compute,
    /// Weights on their way in.
    Copy,
}

impl StreamId {
    pub(crate) const COUNT: usize = 2;

    pub(crate) fn index(self) -> usize {
        match self {
            StreamId::Compute => 0,
            StreamId::Copy => 1,
        }
    }
}

/// A machine's own handle of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventId(pub u64);

/// What a stream calls on the host.
pub(crate) type HostFunction = unsafe extern "C" fn(*mut c_void);

/// What `cuda`, `emulator` and `tape` implement; [`Device`] is the safe face of it.
///
/// # Safety
/// Of every method: addresses are live and large enough until the stream has passed the operation, handles come from
/// the same machine, and `params` is the kernel's own params struct.
pub(crate) trait Machine: Send + Sync {
    fn capability(&self) -> &Capability;
    /// Makes this thread ready for the calls that follow; whether [`Machine::leave`] has to undo it.
    fn enter(&self) -> Result<bool> {
        Ok(false)
    }
    /// Undoes an [`Machine::enter`] of this thread that returned true.
    unsafe fn leave(&self) {}
    /// What errors call it: `cuda:0`, `emulator`.
    fn name(&self) -> &str;
    /// Device memory that is free now.
    fn free_bytes(&self) -> Result<u64>;
    unsafe fn allocate(&self, bytes: usize) -> Result<u64>;
    unsafe fn free(&self, address: u64, bytes: usize);
    unsafe fn allocate_host(&self, bytes: usize) -> Result<*mut u8>;
    unsafe fn free_host(&self, address: *mut u8, bytes: usize);
    /// This machine's encoding of a box whose matrix begins at `address`; `tile` has been checked.
    fn tensor_map(&self, address: u64, tile: &TensorTile) -> Result<abi::tensor_map>;
    /// Loads the kernel's module and function, so that nothing is loaded during a run.
    fn prepare(&self, kernel: &'static Kernel) -> Result<()>;
    unsafe fn copy_to_device(&self, stream: StreamId, dst: u64, src: *const u8, bytes: usize) -> Result<()>;
    unsafe fn copy_to_host(&self, stream: StreamId, dst: *mut u8, src: u64, bytes: usize) -> Result<()>;
    unsafe fn fill(&self, stream: StreamId, dst: u64, value: u8, bytes: usize) -> Result<()>;
    /// Enqueues a call of `function` with `data`, which may wait for other threads, but not for the machine.
    unsafe fn call(&self, stream: StreamId, function: HostFunction, data: *mut c_void) -> Result<()>;
    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: *const c_void,
        params_bytes: usize,
        work: &Work,
    ) -> Result<()>;
    /// Makes `nodes`, which run one after the other, ready to be launched as one.
    unsafe fn graph(&self, nodes: &[Node<'_>]) -> Result<GraphId>;
    unsafe fn destroy_graph(&self, graph: GraphId);
    unsafe fn launch_graph(&self, stream: StreamId, graph: GraphId) -> Result<()>;
    fn create_event(&self) -> Result<EventId>;
    unsafe fn destroy_event(&self, event: EventId);
    unsafe fn record(&self, stream: StreamId, event: EventId) -> Result<()>;
    unsafe fn wait(&self, stream: StreamId, event: EventId) -> Result<()>;
    unsafe fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32>;
    unsafe fn synchronize_event(&self, event: EventId) -> Result<()>;
    fn synchronize(&self, stream: StreamId) -> Result<()>;
    /// By what it was lost, if it was: see `lost.rs`.
    fn lost(&self) -> Option<String> {
        None
    }
    /// Begins anew after that; false, and nothing done, while memory, events or graphs of it are alive.
    fn revive(&self) -> Result<bool> {
        Ok(true)
    }
    /// See [`Device::access_counts`].
    #[cfg(feature = "emulator")]
    fn access_counts(&self) -> Result<AccessCounts> {
        Err(Error::Unsupported("only the emulator counts accesses".to_string()))
    }
    /// See [`Device::num_skipped_launches`].
    fn num_skipped_launches(&self) -> u64 {
        0
    }
    /// See [`Device::last_writer`].
    fn last_writer(&self, _address: u64) -> Option<String> {
        None
    }
}

struct Inner {
    machine: Box<dyn Machine>,
    num_allocations: AtomicUsize,
    num_waits: AtomicUsize,
    held: memory::Counter,
    held_on_host: memory::Counter,
    prepared: Mutex<BTreeSet<&'static str>>,
    launched: Mutex<BTreeSet<&'static str>>,
}

/// A GPU or the emulator. Cheap to clone; all clones are the same machine.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.capability().name).finish()
    }
}

impl Device {
    /// The emulator.
    ///
    /// While one lives, the process has a handler of ours for SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGURG, which makes an
    /// error of a kernel that crashes or hangs; signals of all other code go on to the handlers that were there before, and
    /// these are put back when the last emulator goes (clones of the device, memory, buffers and events included).
    /// [`EmulatorOptions::no_signal_handlers`] says no to it: for a host program that changes handlers of these signals
    /// itself meanwhile, or relies on their order.
    #[cfg(feature = "emulator")]
    pub fn emulator(options: EmulatorOptions) -> Device {
        Device::new(Box::new(emulator::Emulator::new(options)))
    }

    /// The GPU with this ordinal, by its primary context.
    ///
    /// Every call, and this one, leaves the thread's stack of CUDA contexts as it was, so that the host program may have
    /// contexts of its own there. Who makes many calls holds what [`Device::enter`] returns.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a driver, with one that is too old, without such a GPU, below compute capability
    /// 8.0, or when this crate was built without CUDA kernels; the message says what is missing. [`Error::Capacity`] when
    /// the GPU has no memory left for a context, [`Error::Device`] when the driver refuses for another reason.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Ok(Device::new(Box::new(cuda::Cuda::open(ordinal)?)))
    }

    /// A GPU, for which this build has no code: it lacks the feature `cuda`.
    ///
    /// # Errors
    /// [`Error::Unsupported`], always.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(_ordinal: usize) -> Result<Device> {
        Err(Error::Unsupported("schnell was built without the feature `cuda`".to_string()))
    }

    fn new(machine: Box<dyn Machine>) -> Device {
        Device {
            inner: Arc::new(Inner {
                machine,
                num_allocations: AtomicUsize::new(0),
                num_waits: AtomicUsize::new(0),
                held: memory::Counter::default(),
                held_on_host: memory::Counter::default(),
                prepared: Mutex::default(),
                launched: Mutex::default(),
            }),
        }
    }

    fn machine(&self) -> &dyn Machine {
        &*self.inner.machine
    }

    /// What this machine is.
    pub fn capability(&self) -> &Capability {
        self.machine().capability()
    }

    /// Device memory that is free now.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn free_bytes(&self) -> Result<u64> {
        self.machine().free_bytes()
    }
}

/// What the crate itself, its tests and `gpu-check` ask of it.
#[doc(hidden)]
impl Device {
    /// Makes the device's context this thread's current one until the returned value is dropped: calls in between need
    /// not switch to it and back. Does nothing on the emulator.
    ///
    /// The host program may switch contexts meanwhile, if it undoes that before the value is dropped.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn enter(&self) -> Result<Entered> {
        Ok(Entered { pushed: self.machine().enter()?, device: self.clone(), thread: PhantomData })
    }

    /// How many device allocations were ever made here; a pipeline makes one.
    pub fn num_allocations(&self) -> usize {
        self.inner.num_allocations.load(Ordering::Relaxed)
    }

    /// Bytes of device memory that were allocated here and are not given back, and the most there were since the last call.
    pub fn held_bytes(&self) -> Held {
        self.inner.held.read()
    }

    /// As [`Device::held_bytes`], of pinned host memory.
    pub fn held_host_bytes(&self) -> Held {
        self.inner.held_on_host.read()
    }

    /// How often the host has waited for this machine so far: for an event or for a stream.
    pub fn num_waits(&self) -> usize {
        self.inner.num_waits.load(Ordering::Relaxed)
    }

    /// The entry points that were launched here so far, by name.
    pub fn launched(&self) -> Vec<&'static str> {
        self.inner.launched.lock().unwrap_or_else(|e| e.into_inner()).iter().copied().collect()
    }

    /// Allocates device memory, aligned to at least 256 bytes (the emulator: 1024). Its content is undefined.
    ///
    /// # Errors
    /// [`Error::Capacity`] when the machine has not that much left.
    pub fn allocate(&self, bytes: usize) -> Result<Arc<DeviceMemory>> {
        // SAFETY: `DeviceMemory` owns the address and gives it back once.
        let address = unsafe { self.machine().allocate(bytes)? };
        self.inner.num_allocations.fetch_add(1, Ordering::Relaxed);
        self.inner.held.take(bytes);
        Ok(Arc::new(DeviceMemory { device: self.clone(), address, bytes, is_ours: true }))
    }

    /// Allocates pinned host memory for copies.
    ///
    /// # Errors
    /// [`Error::Capacity`] or [`Error::Device`] when the machine refuses.
    pub fn allocate_host(&self, bytes: usize) -> Result<HostBuffer> {
        let used = Some([self.create_event()?, self.create_event()?]);
        // SAFETY: `HostBuffer` owns the address and gives it back once; nothing fails in between.
        let address = unsafe { self.machine().allocate_host(bytes)? };
        self.inner.held_on_host.take(bytes);
        Ok(HostBuffer { device: self.clone(), address, bytes, used, pending: Default::default() })
    }

    /// Makes a kernel ready to launch.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when this build has no code for the machine.
    pub fn prepare(&self, kernel: &'static Kernel) -> Result<()> {
        self.machine().prepare(kernel)?;
        self.inner.prepared.lock().unwrap_or_else(|e| e.into_inner()).insert(kernel.name);
        Ok(())
    }

    /// The entry points that were made ready here so far, by name.
    pub fn prepared(&self) -> Vec<&'static str> {
        self.inner.prepared.lock().unwrap_or_else(|e| e.into_inner()).iter().copied().collect()
    }

    /// A new event.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn create_event(&self) -> Result<Event> {
        Ok(Event { id: self.machine().create_event()?, device: self.clone() })
    }

    /// Enqueues a copy of `dst.len()` elements from `src`, starting at byte `src_offset`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the range leaves `src` or either is another machine's; [`Error::Device`] when the driver
    /// refuses.
    pub fn copy_to_device<T>(
        &self,
        stream: StreamId,
        dst: &View<T>,
        src: &HostBuffer,
        src_offset: usize,
    ) -> Result<()> {
        let bytes = dst.num_bytes();
        src.check(src_offset, bytes)?;
        self.check_own(&dst.memory.device)?;
        self.check_own(&src.device)?;
        // SAFETY: both ends are this machine's and were checked; the view lies in live memory, whose drop drains the
        // streams; the host buffer's bytes cannot be written before `settle` has waited for the copy.
        let copied = unsafe {
            self.machine().copy_to_device(stream, dst.address(), src.address.add(src_offset), bytes)
        };
        self.mark_used(stream, src, copied)
    }

    /// Enqueues a copy of `src.len()` elements to `dst`, starting at byte `dst_offset`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the range leaves `dst` or either is another machine's; [`Error::Device`] when the driver
    /// refuses.
    pub fn copy_to_host<T>(
        &self,
        stream: StreamId,
        dst: &mut HostBuffer,
        dst_offset: usize,
        src: &View<T>,
    ) -> Result<()> {
        let bytes = src.num_bytes();
        dst.check(dst_offset, bytes)?;
        self.check_own(&src.memory.device)?;
        self.check_own(&dst.device)?;
        // SAFETY: as in `copy_to_device`; nobody can look at the bytes before `settle` has waited for the copy.
        let copied =
            unsafe { self.machine().copy_to_host(stream, dst.address.add(dst_offset), src.address(), bytes) };
        self.mark_used(stream, dst, copied)
    }

    /// After a copy: records that `host` is in use until `stream` has passed this point.
    fn mark_used(&self, stream: StreamId, host: &HostBuffer, copied: Result<()>) -> Result<()> {
        // One of no bytes has nothing to wait for.
        let Some(used) = &host.used else { return copied };
        host.pending[stream.index()].store(true, Ordering::Relaxed);
        let marked = copied.and_then(|()| self.record(stream, &used[stream.index()]));
        if marked.is_err() {
            // The copy may be queued, with no event behind it that anyone could wait for.
            let _ = self.synchronize(stream);
        }
        marked
    }

    /// Whether the other is a clone.
    pub(crate) fn is_same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Views, host buffers and events belong to the machine that made them.
    fn check_own(&self, other: &Device) -> Result<()> {
        if self.is_same(other) {
            return Ok(());
        }
        let (mine, theirs) = (&self.capability().name, &other.capability().name);
        Err(Error::Internal(format!("memory or an event of {theirs} was given to another machine, {mine}")))
    }

    /// Enqueues setting every byte of `dst` to `value`.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn fill<T>(&self, stream: StreamId, dst: &View<T>, value: u8) -> Result<()> {
        self.check_own(&dst.memory.device)?;
        // SAFETY: the view lies in live memory of this machine.
        unsafe { self.machine().fill(stream, dst.address(), value, dst.num_bytes()) }
    }

    /// Enqueues a launch.
    ///
    /// # Safety
    /// `P` is the generated params struct of `config`'s kernel, every address in it comes from `footprint`, and the views there cover
    /// what the kernel touches for `grid`, until the stream has passed the launch.
    pub(crate) unsafe fn launch<P: Copy>(
        &self,
        stream: StreamId,
        config: Config,
        params: &P,
        footprint: &Footprint<'_>,
    ) -> Result<()> {
        self.check_own(footprint.device)?;
        let Config { kernel, grid } = config;
        if grid.contains(&0) {
            return Ok(());
        }
        // CUDA's limits; the emulator has them too, so that no shape passes here and fails there.
        if grid[0] > i32::MAX as u32 || grid[1] > 0xffff || grid[2] > 0xffff {
            return Err(Error::Unsupported(format!(
                "{kernel:?}: a grid of {grid:?} CTAs; make the image smaller"
            )));
        }
        self.note_launched(kernel);
        let pointer = std::ptr::from_ref(params).cast::<c_void>();
        // SAFETY: the caller's promise; the machine copies the params before it returns.
        unsafe { self.machine().launch(stream, kernel, grid, pointer, size_of::<P>(), &footprint.work) }
    }

    /// Enqueues a launch that was recorded, its params and addresses as they were then.
    ///
    /// # Safety
    /// As for [`Device::launch`], of the addresses in `params` and `work`: they are live memory of this machine until the
    /// stream has passed the launch.
    pub(crate) unsafe fn replay(
        &self,
        stream: StreamId,
        config: Config,
        params: &Params,
        work: &Work,
    ) -> Result<()> {
        let Config { kernel, grid } = config;
        // SAFETY: the caller's promise; the params were those of this kernel when `Device::launch` took them.
        unsafe { self.machine().launch(stream, kernel, grid, params.as_ptr(), params.bytes, work) }
    }

    /// Counts `kernel` among those of [`Device::launched`].
    pub(crate) fn note_launched(&self, kernel: &'static Kernel) {
        self.inner.launched.lock().unwrap_or_else(|e| e.into_inner()).insert(kernel.name);
    }

    /// A machine that writes down what is launched on it.
    pub(crate) fn tape(tape: Arc<Tape>) -> Device {
        Device::new(Box::new(tape))
    }

    /// What the memory accesses of all launches so far cost. For the emulator alone, and there a matter of build and
    /// options: see [`EmulatorOptions::count_accesses`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] says what is missing.
    #[cfg(feature = "emulator")]
    pub fn access_counts(&self) -> Result<AccessCounts> {
        self.machine().access_counts()
    }

    /// Launches that were counted instead of carried out: see [`EmulatorOptions::launches_nothing`].
    pub fn num_skipped_launches(&self) -> u64 {
        self.machine().num_skipped_launches()
    }

    /// Which launch, CTA, thread and source line wrote element `index` of `view` last, in words, or that none did since the
    /// host wrote there. `None` unless the machine knows: see [`EmulatorOptions::track_writers`].
    pub fn last_writer<T>(&self, view: &View<T>, index: usize) -> Option<String> {
        self.check_own(&view.memory.device).ok()?;
        let element = view.slice(index, 1).ok()?;
        self.machine().last_writer(element.address())
    }

    /// Enqueues recording `event`.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn record(&self, stream: StreamId, event: &Event) -> Result<()> {
        self.check_own(&event.device)?;
        // SAFETY: the event is alive and of this machine.
        unsafe { self.machine().record(stream, event.id) }
    }

    /// Makes `stream` wait for the last recording of `event`.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn wait(&self, stream: StreamId, event: &Event) -> Result<()> {
        self.check_own(&event.device)?;
        // SAFETY: as in `record`.
        unsafe { self.machine().wait(stream, event.id) }
    }

    /// Blocks until the last recording of `event` has been reached.
    ///
    /// # Errors
    /// [`Error::Device`] with whatever failed on the way.
    pub fn synchronize_event(&self, event: &Event) -> Result<()> {
        self.check_own(&event.device)?;
        self.inner.num_waits.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `record`.
        unsafe { self.machine().synchronize_event(event.id) }
    }

    /// Blocks until `stream` is empty.
    ///
    /// # Errors
    /// [`Error::Device`] with whatever failed on the way.
    pub fn synchronize(&self, stream: StreamId) -> Result<()> {
        self.inner.num_waits.fetch_add(1, Ordering::Relaxed);
        self.machine().synchronize(stream)
    }

    /// Waits until both streams are empty, whatever came of it.
    pub(crate) fn drain(&self) {
        for stream in [StreamId::Compute, StreamId::Copy] {
            // A failure was, or will be, reported by the call that waits for the result.
            let _ = self.machine().synchronize(stream);
        }
    }
}

/// The device's context is the thread's current one while this lives; see [`Device::enter`].
#[derive(Debug)]
#[must_use = "the context is current only while this lives"]
pub struct Entered {
    device: Device,
    pushed: bool,
    /// What is current belongs to a thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.pushed {
            // SAFETY: this value was made by the `enter` of this thread, which it cannot leave, and undoes it once.
            unsafe { self.device.machine().leave() };
        }
    }
}

/// A point in a stream: orders the two streams and measures time.
#[derive(Debug)]
pub struct Event {
    device: Device,
    id: EventId,
}

impl Event {
    /// Milliseconds of device time from `start` to this event; both must have been reached.
    ///
    /// # Errors
    /// [`Error::Device`] when one has not, [`Error::Internal`] when they are of two machines.
    pub fn elapsed_ms_since(&self, start: &Event) -> Result<f32> {
        self.device.check_own(&start.device)?;
        // SAFETY: both events are alive and of one machine.
        unsafe { self.device.machine().elapsed_ms(start.id, self.id) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event came from `create_event` and is destroyed once; the driver defers it past pending records.
        unsafe { self.device.machine().destroy_event(self.id) };
    }
}
