//! A driver for tests, behind the same table as the real one: it keeps the rules that these tests are about (which
//! context is current on which thread, what is retained and made, what is queued) and fails where it is told to.
//!
//! Each test has a driver of its own, its thread's; [`Fake::join`] lets another thread in.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use super::driver::{Code, Driver};

/// The handle of the one GPU's primary context.
pub const PRIMARY: usize = 0x9000;
pub const FREE_BYTES: usize = 12_345_678;

const NEEDS_CONTEXT: [&str; 7] =
    ["cuMem", "cuModule", "cuFunc", "cuStream", "cuEvent", "cuLaunch", "cuGraph"];

#[derive(Default)]
pub struct State {
    /// Of every call, in order.
    pub calls: Vec<&'static str>,
    /// The call of this function after so many others of its own returns this.
    failures: HashMap<&'static str, (usize, u32)>,
    /// The call of any function after so many others.
    pub fail_any: Option<(usize, u32)>,
    /// What every call returns from now on that may report an earlier failure.
    pub broken: u32,
    stacks: HashMap<ThreadId, Vec<usize>>,
    pub retained: usize,
    pub streams: usize,
    pub modules: usize,
    pub events: usize,
    /// Graphs, and what was made of them.
    pub graphs: usize,
    /// Of each node, the one that it comes after, or 0.
    pub nodes: Vec<(usize, usize)>,
    pub pinned: usize,
    pub device_memory: usize,
    /// Attributes that were set.
    pub attributes: Vec<(u32, c_int)>,
    /// Source, destination and size of copies that no one has waited for.
    queue: Vec<(usize, usize, usize)>,
    /// Events that were recorded.
    recorded: Vec<usize>,
    handles: usize,
}

impl State {
    pub fn fail(&mut self, function: &'static str, after: usize, code: u32) {
        self.failures.insert(function, (after, code));
    }

    pub fn stack(&mut self) -> &mut Vec<usize> {
        self.stacks.entry(std::thread::current().id()).or_default()
    }

    pub fn count(&self, function: &str) -> usize {
        self.calls.iter().filter(|call| **call == function).count()
    }

    fn handle(&mut self) -> usize {
        self.handles += 1;
        0x100 * self.handles
    }

    /// The failure that is due at this call.
    fn failure(&mut self, function: &'static str) -> Option<u32> {
        for due in [self.fail_any.as_mut(), self.failures.get_mut(function)].into_iter().flatten() {
            match due {
                (0, code) => {
                    let code = *code;
                    due.0 = usize::MAX;
                    return Some(code);
                }
                (after, _) => *after -= 1,
            }
        }
        if self.broken != 0 && !function.starts_with("cuCtx") && !function.starts_with("cuDevicePrimaryCtx") {
            return Some(self.broken);
        }
        let needs_context = NEEDS_CONTEXT.iter().any(|start| function.starts_with(start));
        let is_current = self.retained > 0 && self.stack().last() == Some(&PRIMARY);
        (needs_context && !is_current).then_some(sys::CUresult::CUDA_ERROR_INVALID_CONTEXT as u32)
    }

    /// Takes down a node of a graph.
    fn chain(&mut self, after: *const sys::CUgraphNode, num_after: usize, node: usize) {
        assert!(num_after <= 1);
        // SAFETY: the code under test has as many there as it says.
        let before = if num_after == 1 { unsafe { *after as usize } } else { 0 };
        self.nodes.push((before, node));
    }

    /// The context is gone, and with it what is wrong and what could not be given back.
    pub fn reset(&mut self) {
        (self.broken, self.streams, self.modules, self.events) = (0, 0, 0, 0);
        (self.graphs, self.pinned, self.device_memory) = (0, 0, 0);
        self.queue.clear();
    }

    fn run_queue(&mut self) {
        for (src, dst, bytes) in self.queue.drain(..) {
            // SAFETY: copies between allocations of the test, which are alive until they have been waited for; that they
            // are is what the test is about, and its allocations are never given back.
            unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, bytes) };
        }
    }
}

thread_local! {
    static STATE: RefCell<Arc<Mutex<State>>> = RefCell::default();
}

/// The driver of a test.
#[derive(Clone)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    /// A fresh one for this thread.
    pub fn new() -> Fake {
        let fake = Fake(Arc::default());
        fake.join();
        fake
    }

    /// This thread calls it, too.
    pub fn join(&self) {
        STATE.set(self.0.clone());
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn call(function: &'static str, body: impl FnOnce(&mut State)) -> Code {
    let state = STATE.with_borrow(|state| state.clone());
    let mut state = state.lock().unwrap();
    state.calls.push(function);
    if let Some(code) = state.failure(function) {
        return Code(code);
    }
    body(&mut state);
    Code::SUCCESS
}

/// Defines the functions and the table of them.
macro_rules! fake {
    (
        required { $($name:ident($($arg:ident: $ty:ty),*) |$state:ident| $body:block)* }
        optional { $($newer:ident($($newer_arg:ident: $newer_ty:ty),*) |$newer_state:ident| $newer_body:block)* }
    ) => {
        $(#[allow(non_snake_case, unused_variables)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> Code {
            call(stringify!($name), |$state| $body)
        })*
        $(#[allow(non_snake_case, unused_variables)]
        unsafe extern "C" fn $newer($($newer_arg: $newer_ty),*) -> Code {
            call(stringify!($newer), |$newer_state| $newer_body)
        })*
        pub static DRIVER: Driver = Driver {
            $($name,)*
            $($newer: Some($newer),)*
            cuGetErrorName: error_name,
            cuGetErrorString: error_name,
        };
    };
}

/// Writes to an out-pointer.
fn put<T>(to: *mut T, value: T) {
    // SAFETY: the out-pointers of the code under test, which point to its locals.
    unsafe { to.write(value) };
}

fn put_text(to: *mut c_char, text: &[u8]) {
    // SAFETY: the buffers of the code under test have 256 bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len()) };
}

/// Knows the codes below 900.
unsafe extern "C" fn error_name(code: Code, text: *mut *const c_char) -> Code {
    if code.0 >= 900 {
        return Code(sys::CUresult::CUDA_ERROR_INVALID_VALUE as u32);
    }
    put(text, c"CUDA_ERROR_SOMETHING".as_ptr());
    Code::SUCCESS
}

fn attribute(which: Attribute) -> c_int {
    match which {
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 8,
        Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => 4,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => 163 << 10,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR => 164 << 10,
        Attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK => 1 << 10,
        _ => 0,
    }
}

fake! {
    required {
        cuInit(flags: c_uint) |state| {}
        cuDriverGetVersion(to: *mut c_int) |state| { put(to, 13000) }
        cuDeviceGet(to: *mut sys::CUdevice, ordinal: c_int) |state| { put(to, 0) }
        cuDeviceGetCount(to: *mut c_int) |state| { put(to, 1) }
        cuDeviceGetName(to: *mut c_char, len: c_int, device: sys::CUdevice) |state| { put_text(to, b"a GPU\0") }
        cuDeviceGetAttribute(to: *mut c_int, which: sys::CUdevice_attribute, device: sys::CUdevice) |state| {
            put(to, attribute(which))
        }
        cuDeviceGetPCIBusId(to: *mut c_char, len: c_int, device: sys::CUdevice) |state| {
            put_text(to, b"0000:41:00.0\0")
        }
        cuDeviceTotalMem_v2(to: *mut usize, device: sys::CUdevice) |state| { put(to, 1 << 34) }
        cuDevicePrimaryCtxRetain(to: *mut sys::CUcontext, device: sys::CUdevice) |state| {
            state.retained += 1;
            put(to, PRIMARY as sys::CUcontext);
        }
        cuDevicePrimaryCtxRelease_v2(device: sys::CUdevice) |state| {
            state.retained -= 1;
            if state.retained == 0 && state.broken != 0 {
                state.reset();
            }
        }
        cuCtxGetCurrent(to: *mut sys::CUcontext) |state| {
            put(to, state.stack().last().copied().unwrap_or(0) as sys::CUcontext)
        }
        cuCtxPushCurrent_v2(context: sys::CUcontext) |state| { state.stack().push(context as usize) }
        cuCtxPopCurrent_v2(to: *mut sys::CUcontext) |state| {
            put(to, state.stack().pop().expect("a context to pop") as sys::CUcontext)
        }
        cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |state| {
            put(free, FREE_BYTES);
            put(total, 1 << 34);
        }
        cuMemAlloc_v2(to: *mut sys::CUdeviceptr, bytes: usize) |state| {
            state.device_memory += 1;
            put(to, vec![0u64; bytes.div_ceil(8)].leak().as_ptr() as u64);
        }
        cuMemFree_v2(address: sys::CUdeviceptr) |state| { state.device_memory -= 1 }
        cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, flags: c_uint) |state| {
            state.pinned += 1;
            put(to, vec![0u64; bytes.div_ceil(8)].leak().as_mut_ptr().cast());
        }
        cuMemFreeHost(address: *mut c_void) |state| { state.pinned -= 1 }
        cuMemcpyHtoDAsync_v2(dst: sys::CUdeviceptr, src: *const c_void, bytes: usize, stream: sys::CUstream) |state| {
            state.queue.push((src as usize, dst as usize, bytes))
        }
        cuMemcpyDtoHAsync_v2(dst: *mut c_void, src: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream) |state| {
            state.queue.push((src as usize, dst as usize, bytes))
        }
        cuMemsetD8Async(dst: sys::CUdeviceptr, value: u8, bytes: usize, stream: sys::CUstream) |state| {}
        cuModuleLoadData(to: *mut sys::CUmodule, image: *const c_void) |state| {
            state.modules += 1;
            put(to, state.handle() as sys::CUmodule);
        }
        cuModuleUnload(module: sys::CUmodule) |state| { state.modules -= 1 }
        cuModuleGetFunction(to: *mut sys::CUfunction, module: sys::CUmodule, name: *const c_char) |state| {
            put(to, state.handle() as sys::CUfunction)
        }
        cuFuncSetAttribute(function: sys::CUfunction, which: sys::CUfunction_attribute, value: c_int) |state| {
            state.attributes.push((which as u32, value))
        }
        cuOccupancyMaxActiveBlocksPerMultiprocessor(
            to: *mut c_int, function: sys::CUfunction, threads: c_int, smem_bytes: usize
        ) |state| { put(to, 2) }
        cuLaunchKernel(
            function: sys::CUfunction, x: c_uint, y: c_uint, z: c_uint, tx: c_uint, ty: c_uint, tz: c_uint,
            smem_bytes: c_uint, stream: sys::CUstream, params: *mut *mut c_void, extra: *mut *mut c_void
        ) |state| {}
        cuLaunchHostFunc(stream: sys::CUstream, function: sys::CUhostFn, data: *mut c_void) |state| {}
        cuGraphCreate(to: *mut sys::CUgraph, flags: c_uint) |state| {
            state.graphs += 1;
            put(to, state.handle() as sys::CUgraph);
        }
        cuGraphDestroy(graph: sys::CUgraph) |state| { state.graphs -= 1 }
        cuGraphAddKernelNode_v2(
            to: *mut sys::CUgraphNode, graph: sys::CUgraph, after: *const sys::CUgraphNode, num_after: usize,
            node: *const sys::CUDA_KERNEL_NODE_PARAMS
        ) |state| {
            let handle = state.handle();
            state.chain(after, num_after, handle);
            put(to, handle as sys::CUgraphNode);
        }
        cuGraphAddMemsetNode(
            to: *mut sys::CUgraphNode, graph: sys::CUgraph, after: *const sys::CUgraphNode, num_after: usize,
            node: *const sys::CUDA_MEMSET_NODE_PARAMS, context: sys::CUcontext
        ) |state| {
            let handle = state.handle();
            state.chain(after, num_after, handle);
            put(to, handle as sys::CUgraphNode);
        }
        cuGraphInstantiateWithFlags(to: *mut sys::CUgraphExec, graph: sys::CUgraph, flags: u64) |state| {
            state.graphs += 1;
            put(to, state.handle() as sys::CUgraphExec);
        }
        cuGraphUpload(graph: sys::CUgraphExec, stream: sys::CUstream) |state| {}
        cuGraphLaunch(graph: sys::CUgraphExec, stream: sys::CUstream) |state| {}
        cuGraphExecDestroy(graph: sys::CUgraphExec) |state| { state.graphs -= 1 }
        cuStreamCreate(to: *mut sys::CUstream, flags: c_uint) |state| {
            state.streams += 1;
            put(to, state.handle() as sys::CUstream);
        }
        cuStreamDestroy_v2(stream: sys::CUstream) |state| { state.streams -= 1 }
        cuStreamSynchronize(stream: sys::CUstream) |state| { state.run_queue() }
        cuStreamWaitEvent(stream: sys::CUstream, event: sys::CUevent, flags: c_uint) |state| {}
        cuEventCreate(to: *mut sys::CUevent, flags: c_uint) |state| {
            state.events += 1;
            put(to, state.handle() as sys::CUevent);
        }
        cuEventDestroy_v2(event: sys::CUevent) |state| { state.events -= 1 }
        cuEventRecord(event: sys::CUevent, stream: sys::CUstream) |state| { state.recorded.push(event as usize) }
        cuEventSynchronize(event: sys::CUevent) |state| {
            // One that was never recorded is reached at once.
            if state.recorded.contains(&(event as usize)) {
                state.run_queue();
            }
        }
        cuEventElapsedTime(to: *mut f32, start: sys::CUevent, end: sys::CUevent) |state| { put(to, 1.0) }
        cuTensorMapEncodeTiled(
            map: *mut sys::CUtensorMap, element: sys::CUtensorMapDataType, rank: c_uint, address: *mut c_void,
            size: *const u64, strides: *const u64, boxes: *const u32, steps: *const u32,
            interleave: sys::CUtensorMapInterleave, swizzle: sys::CUtensorMapSwizzle,
            promotion: sys::CUtensorMapL2promotion, fill: sys::CUtensorMapFloatOOBfill
        ) |state| {}
    }
    optional {
        cuFuncLoad(function: sys::CUfunction) |state| {}
        cuFuncGetParamInfo(function: sys::CUfunction, index: usize, offset: *mut usize, bytes: *mut usize) |state| {
            put(offset, 0);
            put(bytes, 8);
        }
    }
}
