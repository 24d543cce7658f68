//! A machine that computes nothing: memory has addresses only, and launches are written down.
//!
//! On a fresh tape every allocation gets addresses of its own, far from all others, so that what a launch touches tells the
//! allocations; on a placed one the addresses are given, and what is written down can be replayed where they are real.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{
    Capability, Config, Device, EventId, GraphId, HostFunction, Kernel, Machine, NO_MAP, Node, Params,
    StreamId, TensorTile, Work,
};
use crate::abi;
use crate::{Error, Result};

/// The first address, and what the addresses of two allocations are apart at least.
const FIRST: u64 = 1 << 40;
const APART: u64 = 1 << 12;

/// See the module's text.
pub(crate) struct Tape {
    capability: Capability,
    /// Where the given addresses are, which encodes what launches hold of them.
    device: Option<Device>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of every allocation, in order.
    addresses: Vec<u64>,
    given: Option<Vec<u64>>,
    next: u64,
    launches: Vec<TapedLaunch>,
}

/// A launch as it was written down.
#[derive(Debug)]
pub(crate) struct TapedLaunch {
    pub config: Config,
    pub params: Params,
    pub work: Work,
}

impl Tape {
    /// For a machine of this kind.
    pub fn fresh(capability: Capability) -> Arc<Tape> {
        let state = State { next: FIRST, ..State::default() };
        Arc::new(Tape { capability, device: None, state: Mutex::new(state) })
    }

    /// Allocation after allocation gets the next of `addresses`, which are `device`'s.
    pub fn placed(device: &Device, addresses: Vec<u64>) -> Arc<Tape> {
        let (capability, state) = (device.capability(), State { given: Some(addresses), ..State::default() });
        Arc::new(Tape {
            capability: capability.clone(),
            device: Some(device.clone()),
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What was launched since the last call.
    pub fn take(&self) -> Vec<TapedLaunch> {
        std::mem::take(&mut self.lock().launches)
    }

    /// On a fresh tape, which allocation an address is in.
    pub fn allocation_of(&self, address: u64) -> Option<(usize, u64)> {
        let state = self.lock();
        let index = state.addresses.partition_point(|&a| a <= address).checked_sub(1)?;
        Some((index, address - state.addresses[index]))
    }

    fn refuse<T>(&self, what: &str) -> Result<T> {
        Err(Error::Unsupported(format!("a tape cannot {what}: it only writes launches down")))
    }
}

impl Machine for Arc<Tape> {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    fn name(&self) -> &str {
        "tape"
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.capability.total_bytes)
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut state = self.lock();
        let index = state.addresses.len();
        let address = match &state.given {
            Some(given) => *given.get(index).ok_or_else(|| {
                Error::Internal(format!("recorded again, the program has more than {index} buffers"))
            })?,
            None => state.next,
        };
        state.next = address + (bytes as u64).next_multiple_of(APART) + APART;
        state.addresses.push(address);
        Ok(address)
    }

    unsafe fn free(&self, _address: u64, _bytes: usize) {}

    unsafe fn allocate_host(&self, _bytes: usize) -> Result<*mut u8> {
        self.refuse("allocate host memory")
    }

    unsafe fn free_host(&self, _address: *mut u8, _bytes: usize) {}

    /// Of addresses that are nothing's, it is nothing.
    fn tensor_map(&self, address: u64, tile: &TensorTile) -> Result<abi::tensor_map> {
        match &self.device {
            Some(device) => device.machine().tensor_map(address, tile),
            None => Ok(NO_MAP),
        }
    }

    fn prepare(&self, _kernel: &'static Kernel) -> Result<()> {
        Ok(())
    }

    unsafe fn copy_to_device(&self, _: StreamId, _: u64, _: *const u8, _: usize) -> Result<()> {
        self.refuse("copy")
    }

    unsafe fn copy_to_host(&self, _: StreamId, _: *mut u8, _: u64, _: usize) -> Result<()> {
        self.refuse("copy")
    }

    unsafe fn fill(&self, _: StreamId, _: u64, _: u8, _: usize) -> Result<()> {
        self.refuse("fill")
    }

    unsafe fn call(&self, _: StreamId, _: HostFunction, _: *mut c_void) -> Result<()> {
        self.refuse("call")
    }

    unsafe fn launch(
        &self,
        _stream: StreamId,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: *const c_void,
        params_bytes: usize,
        work: &Work,
    ) -> Result<()> {
        // SAFETY: the caller's promise: the kernel's params struct.
        let params = unsafe { Params::copy(params, params_bytes) };
        self.lock().launches.push(TapedLaunch {
            config: Config { kernel, grid },
            params,
            work: work.clone(),
        });
        Ok(())
    }

    unsafe fn graph(&self, _: &[Node<'_>]) -> Result<GraphId> {
        self.refuse("make graphs")
    }

    unsafe fn destroy_graph(&self, _: GraphId) {}

    unsafe fn launch_graph(&self, _: StreamId, _: GraphId) -> Result<()> {
        self.refuse("launch graphs")
    }

    fn create_event(&self) -> Result<EventId> {
        self.refuse("create events")
    }

    unsafe fn destroy_event(&self, _event: EventId) {}

    unsafe fn record(&self, _stream: StreamId, _event: EventId) -> Result<()> {
        self.refuse("record events")
    }

    unsafe fn wait(&self, _stream: StreamId, _event: EventId) -> Result<()> {
        self.refuse("wait for events")
    }

    unsafe fn elapsed_ms(&self, _start: EventId, _end: EventId) -> Result<f32> {
        self.refuse("measure time")
    }

    unsafe fn synchronize_event(&self, _event: EventId) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, _stream: StreamId) -> Result<()> {
        Ok(())
    }
}
