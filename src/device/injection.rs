//! Faults of a machine, for the tests: one that fails where it is told to, and is the emulator otherwise.
//!
//! There is one seam, `Machine`, which every operation of every path goes through: [`Device::failing`] puts [`Faults`] before it.
//! Operations are counted by kind and all together; the one whose turn it is, or each from then on, gets a [`Fault`] in place of
//! what it would have done. What is given back (memory, events, graphs) never fails: a driver has no way to refuse that.
//!
//! Nothing of this is in a build without the feature `check`.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use super::emulator::{Emulator, accesses::AccessCounts};
use super::lost::Loss;
use super::{
    Capability, Device, EmulatorOptions, EventId, GraphId, HostFunction, Kernel, Machine, Node, StreamId,
    TensorTile, Work,
};
use crate::abi;
use crate::{Error, Result};

/// What a machine is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Makes it ready for calls of this thread.
    Enter,
    /// Asks how much memory is free.
    FreeBytes,
    /// Of device memory.
    Allocate,
    /// Of pinned host memory.
    AllocateHost,
    /// Encodes a box for TMA.
    TensorMap,
    /// Loads a kernel.
    Prepare,
    /// Enqueues a copy.
    CopyToDevice,
    /// Enqueues a copy.
    CopyToHost,
    /// Enqueues a fill.
    Fill,
    /// Enqueues a call of the host.
    Call,
    /// Enqueues a kernel.
    Launch,
    /// Makes a graph ready.
    MakeGraph,
    /// Enqueues one.
    LaunchGraph,
    /// Makes an event.
    CreateEvent,
    /// Enqueues its recording.
    Record,
    /// Enqueues that a stream waits for it.
    Wait,
    /// Asks how much time is between two.
    Elapsed,
    /// Waits for an event.
    SynchronizeEvent,
    /// Waits for a stream.
    Synchronize,
}

impl Operation {
    /// All kinds.
    pub const ALL: [Operation; 19] = [
        Operation::Enter,
        Operation::FreeBytes,
        Operation::Allocate,
        Operation::AllocateHost,
        Operation::TensorMap,
        Operation::Prepare,
        Operation::CopyToDevice,
        Operation::CopyToHost,
        Operation::Fill,
        Operation::Call,
        Operation::Launch,
        Operation::MakeGraph,
        Operation::LaunchGraph,
        Operation::CreateEvent,
        Operation::Record,
        Operation::Wait,
        Operation::Elapsed,
        Operation::SynchronizeEvent,
        Operation::Synchronize,
    ];

    /// Whether it is over when it returns only in that something has been enqueued.
    pub fn is_enqueued(self) -> bool {
        use Operation::{Call, CopyToDevice, CopyToHost, Fill, Launch, LaunchGraph, Record, Wait};
        matches!(self, Call | CopyToDevice | CopyToHost | Fill | Launch | LaunchGraph | Record | Wait)
    }

    /// Whether it waits for what has been enqueued, so that its failure leaves unknown what was done.
    pub fn is_awaited(self) -> bool {
        matches!(self, Operation::SynchronizeEvent | Operation::Synchronize)
    }

    /// As errors name it, of whatever machine.
    pub fn words(self) -> &'static str {
        match self {
            Operation::Enter => "enter the context",
            Operation::FreeBytes => "read the free memory",
            Operation::Allocate => "the device allocation",
            Operation::AllocateHost => "a pinned host buffer",
            Operation::TensorMap => "encode a box",
            Operation::Prepare => "load kernel",
            Operation::CopyToDevice => "bytes to the device",
            Operation::CopyToHost => "bytes to the host",
            Operation::Fill => "fill",
            Operation::Call => "enqueue a call of the host",
            Operation::Launch => "launch kernel",
            Operation::MakeGraph => "make a graph",
            Operation::LaunchGraph => "launch a graph",
            Operation::CreateEvent => "create an event",
            Operation::Record => "record an event",
            Operation::Wait => "wait for an event",
            Operation::Elapsed => "read a timing event",
            Operation::SynchronizeEvent => "finish the work before an event",
            Operation::Synchronize => "finish the",
        }
    }
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused, and nothing has happened: for lack of memory or of another resource.
    Refused,
    /// The machine is lost by it. What is enqueued says nothing yet: whoever waits is told, and everybody after.
    Lost,
    /// Whoever asked for the work wants it no more, and says so here: [`Error::Stopped`].
    Stopped,
}

/// Which operations fail, and how; the test's hand on a machine of [`Device::failing`].
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Armed>>);

#[derive(Debug, Default)]
struct Armed {
    fault: Option<Due>,
    counts: [u64; Operation::ALL.len()],
    fired: Option<Operation>,
    /// What was enqueued has lost the machine, and nobody has waited yet.
    is_doomed: bool,
    handles: usize,
    /// Bytes of the last allocation.
    asked: u64,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    /// `None`: of any kind.
    operation: Option<Operation>,
    nth: u64,
    fault: Fault,
    lasts: bool,
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, Armed> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// From now on the `nth` operation of this kind (of any, if none is named), counted from 0, gets `fault`; if it `lasts`, so does
    /// each after it. Takes the place of what was said before.
    pub fn arm(&self, operation: Option<Operation>, nth: u64, fault: Fault, lasts: bool) {
        let mut armed = self.lock();
        (armed.fault, armed.counts, armed.fired) =
            (Some(Due { operation, nth, fault, lasts }), Default::default(), None);
    }

    /// Nothing fails any more, but on a machine that is lost. Returns the operation that failed first, if one did.
    pub fn clear(&self) -> Option<Operation> {
        let mut armed = self.lock();
        (armed.fault, armed.counts) = (None, Default::default());
        armed.fired.take()
    }

    /// How many operations of a kind there have been since somebody armed or cleared.
    pub fn count(&self, operation: Operation) -> u64 {
        self.lock().counts[operation as usize]
    }

    /// Allocations, pinned buffers, events and graphs that have not been given back.
    pub fn num_handles(&self) -> usize {
        self.lock().handles
    }

    /// Of all kinds.
    pub fn total(&self) -> u64 {
        self.lock().counts.iter().sum()
    }
}

impl Armed {
    /// Counts an operation, and says what becomes of it.
    fn due(&mut self, operation: Operation) -> Option<Fault> {
        let all: u64 = self.counts.iter().sum();
        let of_kind = self.counts[operation as usize];
        self.counts[operation as usize] += 1;
        let due = self.fault?;
        let count = match due.operation {
            None => all,
            Some(kind) if kind == operation => of_kind,
            Some(_) => return None,
        };
        let is_due = count == due.nth || due.lasts && count > due.nth;
        is_due.then(|| {
            self.fired.get_or_insert(operation);
            due.fault
        })
    }
}

/// See the module's text.
struct Failing {
    machine: Emulator,
    faults: Faults,
    loss: Loss,
}

#[doc(hidden)]
impl Device {
    /// The emulator, where `faults` lets it.
    pub fn failing(options: EmulatorOptions, faults: &Faults) -> Device {
        let machine = Emulator::new(options);
        Device::new(Box::new(Failing { machine, faults: faults.clone(), loss: Loss::default() }))
    }
}

impl Failing {
    /// Something that has been made, or not.
    fn made<T>(&self, made: Result<T>) -> Result<T> {
        self.faults.lock().handles += usize::from(made.is_ok());
        made
    }

    /// It has been given back.
    fn unmade(&self) {
        self.faults.lock().handles -= 1;
    }

    fn failed(&self, operation: String, reason: &str) -> Error {
        Error::Device { device: self.machine.name().to_string(), operation, reason: reason.to_string() }
    }

    /// Carries an operation out, or not.
    fn pass<T>(
        &self,
        operation: Operation,
        what: impl FnOnce() -> String,
        nothing: impl FnOnce() -> Option<T>,
        carry_out: impl FnOnce(&Emulator) -> Result<T>,
    ) -> Result<T> {
        let lost = |what: String| {
            let error = self.failed(
                what,
                "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered (injected)",
            );
            self.loss.note(&error);
            error
        };
        // Waiting for a lock while another thread is in an operation would order what shall not be.
        let (fault, is_doomed) = {
            let mut armed = self.faults.lock();
            let fault = armed.due(operation);
            armed.is_doomed |= fault == Some(Fault::Lost) && operation.is_enqueued();
            (fault, armed.is_doomed)
        };
        if self.loss.cause().is_some() {
            return Err(lost(what()));
        }
        match fault {
            Some(Fault::Stopped) => return Err(Error::Stopped),
            Some(Fault::Refused) if !operation.is_awaited() => return Err(self.refused(operation, what())),
            Some(Fault::Refused | Fault::Lost) if !operation.is_enqueued() => return Err(lost(what())),
            _ => {}
        }
        if is_doomed {
            if operation.is_awaited() {
                return Err(lost(what()));
            }
            if let Some(nothing) = nothing() {
                return Ok(nothing);
            }
        }
        carry_out(&self.machine)
    }

    fn refused(&self, operation: Operation, what: String) -> Error {
        let asked = self.faults.lock().asked;
        match operation {
            // There is three quarters of it.
            Operation::Allocate | Operation::AllocateHost => Error::Capacity {
                what,
                needed_bytes: asked,
                available_bytes: asked / 4 * 3,
                advice: "free some memory (injected)".to_string(),
            },
            _ => self.failed(
                what,
                "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch (injected)",
            ),
        }
    }

    /// Of what is enqueued, and so has nothing to return.
    fn enqueue(
        &self,
        operation: Operation,
        what: impl FnOnce() -> String,
        carry_out: impl FnOnce(&Emulator) -> Result<()>,
    ) -> Result<()> {
        self.pass(operation, what, || Some(()), carry_out)
    }

    /// Of everything else.
    fn ask<T>(
        &self,
        operation: Operation,
        what: impl FnOnce() -> String,
        carry_out: impl FnOnce(&Emulator) -> Result<T>,
    ) -> Result<T> {
        self.pass(operation, what, || None, carry_out)
    }
}

fn said(operation: Operation) -> String {
    operation.words().to_string()
}

impl Machine for Failing {
    fn capability(&self) -> &Capability {
        self.machine.capability()
    }

    fn enter(&self) -> Result<bool> {
        self.ask(Operation::Enter, || said(Operation::Enter), Machine::enter)
    }

    fn name(&self) -> &str {
        self.machine.name()
    }

    fn free_bytes(&self) -> Result<u64> {
        self.ask(Operation::FreeBytes, || said(Operation::FreeBytes), Machine::free_bytes)
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        let what = || format!("{} of {bytes} bytes", Operation::Allocate.words());
        self.faults.lock().asked = bytes as u64;
        // SAFETY: the caller's promise, here and below, which is passed on.
        self.made(self.ask(Operation::Allocate, what, |machine| unsafe { machine.allocate(bytes) }))
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        // SAFETY: as above. What is queued on a lost machine is never carried out, so that nothing touches this.
        unsafe { self.machine.free(address, bytes) };
        self.unmade();
    }

    unsafe fn allocate_host(&self, bytes: usize) -> Result<*mut u8> {
        let what = || format!("{} of {bytes} bytes", Operation::AllocateHost.words());
        self.faults.lock().asked = bytes as u64;
        // SAFETY: as above.
        self.made(self.ask(Operation::AllocateHost, what, |machine| unsafe { machine.allocate_host(bytes) }))
    }

    unsafe fn free_host(&self, address: *mut u8, bytes: usize) {
        // SAFETY: as in `free`.
        unsafe { self.machine.free_host(address, bytes) };
        self.unmade();
    }

    fn tensor_map(&self, address: u64, tile: &TensorTile) -> Result<abi::tensor_map> {
        self.ask(
            Operation::TensorMap,
            || format!("encode a box: {tile:?}"),
            |machine| machine.tensor_map(address, tile),
        )
    }

    fn prepare(&self, kernel: &'static Kernel) -> Result<()> {
        self.ask(
            Operation::Prepare,
            || format!("load kernel {}", kernel.name),
            |machine| machine.prepare(kernel),
        )
    }

    unsafe fn copy_to_device(&self, stream: StreamId, dst: u64, src: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        let carry_out = |machine: &Emulator| unsafe { machine.copy_to_device(stream, dst, src, bytes) };
        self.enqueue(Operation::CopyToDevice, || format!("copy {bytes} bytes to the device"), carry_out)
    }

    unsafe fn copy_to_host(&self, stream: StreamId, dst: *mut u8, src: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        let carry_out = |machine: &Emulator| unsafe { machine.copy_to_host(stream, dst, src, bytes) };
        self.enqueue(Operation::CopyToHost, || format!("copy {bytes} bytes to the host"), carry_out)
    }

    unsafe fn fill(&self, stream: StreamId, dst: u64, value: u8, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        let carry_out = |machine: &Emulator| unsafe { machine.fill(stream, dst, value, bytes) };
        self.enqueue(Operation::Fill, || format!("fill {bytes} bytes"), carry_out)
    }

    unsafe fn call(&self, stream: StreamId, function: HostFunction, data: *mut c_void) -> Result<()> {
        // SAFETY: as above.
        let carry_out = |machine: &Emulator| unsafe { machine.call(stream, function, data) };
        self.enqueue(Operation::Call, || said(Operation::Call), carry_out)
    }

    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: *const c_void,
        params_bytes: usize,
        work: &Work,
    ) -> Result<()> {
        let what = || format!("launch kernel {} with grid {grid:?}", kernel.name);
        self.enqueue(Operation::Launch, what, |machine| {
            // SAFETY: as above.
            unsafe { machine.launch(stream, kernel, grid, params, params_bytes, work) }
        })
    }

    unsafe fn graph(&self, nodes: &[Node<'_>]) -> Result<GraphId> {
        let what = || format!("make a graph of {} nodes", nodes.len());
        // SAFETY: as above.
        self.made(self.ask(Operation::MakeGraph, what, |machine| unsafe { machine.graph(nodes) }))
    }

    unsafe fn destroy_graph(&self, graph: GraphId) {
        // SAFETY: as above.
        unsafe { self.machine.destroy_graph(graph) };
        self.unmade();
    }

    unsafe fn launch_graph(&self, stream: StreamId, graph: GraphId) -> Result<()> {
        // SAFETY: as above.
        let carry_out = |machine: &Emulator| unsafe { machine.launch_graph(stream, graph) };
        self.enqueue(Operation::LaunchGraph, || said(Operation::LaunchGraph), carry_out)
    }

    fn create_event(&self) -> Result<EventId> {
        self.made(self.ask(Operation::CreateEvent, || said(Operation::CreateEvent), Machine::create_event))
    }

    unsafe fn destroy_event(&self, event: EventId) {
        // SAFETY: as above.
        unsafe { self.machine.destroy_event(event) };
        self.unmade();
    }

    unsafe fn record(&self, stream: StreamId, event: EventId) -> Result<()> {
        // SAFETY: as above.
        self.enqueue(
            Operation::Record,
            || said(Operation::Record),
            |machine| unsafe { machine.record(stream, event) },
        )
    }

    unsafe fn wait(&self, stream: StreamId, event: EventId) -> Result<()> {
        // SAFETY: as above.
        self.enqueue(
            Operation::Wait,
            || said(Operation::Wait),
            |machine| unsafe { machine.wait(stream, event) },
        )
    }

    unsafe fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        // SAFETY: as above.
        self.ask(
            Operation::Elapsed,
            || said(Operation::Elapsed),
            |machine| unsafe { machine.elapsed_ms(start, end) },
        )
    }

    unsafe fn synchronize_event(&self, event: EventId) -> Result<()> {
        // SAFETY: as above.
        self.ask(
            Operation::SynchronizeEvent,
            || said(Operation::SynchronizeEvent),
            |machine| unsafe { machine.synchronize_event(event) },
        )
    }

    fn synchronize(&self, stream: StreamId) -> Result<()> {
        let what = || format!("finish the {stream:?} stream");
        self.ask(Operation::Synchronize, what, |machine| machine.synchronize(stream))
    }

    fn lost(&self) -> Option<String> {
        self.loss.cause().or_else(|| self.machine.lost())
    }

    fn revive(&self) -> Result<bool> {
        if !self.machine.revive()? {
            return Ok(false);
        }
        let mut armed = self.faults.lock();
        if armed.fault.is_some_and(|due| due.fault == Fault::Lost && due.lasts) {
            return Err(self.failed("create a stream".to_string(), "CUDA_ERROR_ILLEGAL_ADDRESS (injected)"));
        }
        armed.is_doomed = false;
        drop(armed);
        self.loss.forget();
        Ok(true)
    }

    fn access_counts(&self) -> Result<AccessCounts> {
        self.machine.access_counts()
    }

    fn num_skipped_launches(&self) -> u64 {
        self.machine.num_skipped_launches()
    }

    fn last_writer(&self, address: u64) -> Option<String> {
        self.machine.last_writer(address)
    }
}
