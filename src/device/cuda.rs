//! The GPU: `Machine` on the CUDA driver API, through cudarc's thin layer (`driver::result` and `driver::sys`).
//!
//! Not cudarc's safe layer: its allocator takes memory from a pool, its host buffers are write-combined, and it tracks
//! every slice with events; this crate plans all of that itself.
//!
//! Read [`Cuda::open`] for what a machine must have (and how its absence is told), [`Cuda::function`] for how code gets
//! onto it; the rest is one driver call per method.
//!
//! # Safety
//! - cudarc panics when libcuda or a symbol of it is missing: nothing here is called before [`Cuda::open`] has found
//!   the library, and every symbol used is in all drivers since 12.0 (the two that are not, are asked for by version).
//! - `context`, `streams`, modules and functions are made in this file, never leave it, and are released by `Drop`.
//! - The driver's functions may be called from any thread once the context is current there: every method begins with
//!   [`Cuda::enter`].
//! - Addresses, events and params come from [`super::Device`] under the promise of `Machine`.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Mutex, MutexGuard};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use super::{Capability, EventId, Kernel, Machine, StreamId, TensorElement, TensorTile, Work};
use crate::abi;
use crate::{Error, Result};

/// The nvcc that compiled the kernels, as the driver counts: 13000 for 13.0; 0 without nvcc.
const BUILT_BY: i32 = parse(env!("SCHNELL_NVCC_VERSION"));

/// The first driver with `cuFuncLoad` and `cuFuncGetParamInfo`.
const VERSION_WITH_FUNC_LOAD: i32 = 12040;

/// More than this much shared memory has to be asked for.
const SMEM_WITHOUT_ASKING: u32 = 48 << 10;

/// See the module's text.
pub(crate) struct Cuda {
    capability: Capability,
    /// `cuda:0`, for errors.
    name: String,
    driver_version: i32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    streams: [sys::CUstream; StreamId::COUNT],
    code: Mutex<Code>,
}

/// What has been loaded: one module per `kernels/` file, one function per entry.
#[derive(Default)]
struct Code {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Size of the params struct that nvcc compiled, where the driver tells.
    params_bytes: Option<usize>,
}

// SAFETY: the handles are the driver's, which takes them from any thread once the context is current (module text);
// the maps are behind a mutex and nothing else changes after `open`.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Opens the GPU with this ordinal.
    pub fn open(ordinal: usize) -> Result<Self> {
        // SAFETY: loads a shared library, whose initialisers are the vendor's.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Unsupported(
                "no NVIDIA driver on this machine: libcuda.so.1 was not found; install the driver, or use the emulator"
                    .to_string(),
            ));
        }
        let name = format!("cuda:{ordinal}");
        result::init().map_err(|e| no_driver(&name, e))?;
        let driver_version = driver_version().map_err(|e| no_driver(&name, e))?;
        let count = result::device::get_count().map_err(|e| no_driver(&name, e))?;
        let device = match c_int::try_from(ordinal) {
            Ok(ordinal) if ordinal < count => {
                result::device::get(ordinal).map_err(|e| device_error(&name, "open the device", e))?
            }
            _ => {
                return Err(Error::Unsupported(format!(
                    "there is no GPU {name}: the driver shows {count} (is CUDA_VISIBLE_DEVICES set?)"
                )));
            }
        };
        let attribute = |which: Attribute| {
            // SAFETY: `device` is the driver's own, from the line above.
            unsafe { result::device::get_attribute(device, which) }
                .map(|value| value.max(0) as u32)
                .map_err(|e| device_error(&name, "read a device attribute", e))
        };
        let gpu = result::device::get_name(device).map_err(|e| device_error(&name, "read the name", e))?;
        let arch = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        check_versions(&format!("{name} ({gpu})"), arch, driver_version, BUILT_BY)?;
        // SAFETY: `device` is the driver's own.
        let total_bytes = unsafe { result::device::total_mem(device) }
            .map_err(|e| device_error(&name, "read the memory's size", e))? as u64;
        let capability = Capability {
            name: gpu,
            arch,
            num_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            smem_per_cta_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            total_bytes,
            is_emulator: false,
            threads: 0,
            driver: version(driver_version),
        };
        // SAFETY: `device` is the driver's own; `Drop` releases what is retained here.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|e| device_error(&name, "create the context", e))?;
        // From here on `Drop` cleans up, whatever fails.
        let mut cuda = Cuda {
            capability,
            name,
            driver_version,
            device,
            context,
            streams: [std::ptr::null_mut(); StreamId::COUNT],
            code: Mutex::default(),
        };
        cuda.enter()?;
        for i in 0..StreamId::COUNT {
            cuda.streams[i] = result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(|e| cuda.error("create a stream", e))?;
        }
        Ok(cuda)
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is alive until `Drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| self.error("enter the context", e))
    }

    fn stream(&self, stream: StreamId) -> sys::CUstream {
        self.streams[stream.index()]
    }

    fn error(&self, operation: impl Into<String>, error: DriverError) -> Error {
        device_error(&self.name, operation, error)
    }

    fn out_of_memory(&self, what: &str, bytes: usize, advice: &str) -> Error {
        Error::Capacity {
            what: what.to_string(),
            needed_bytes: bytes as u64,
            // The context is current; where even this fails, nothing is available.
            available_bytes: result::mem_get_info().map_or(0, |(free, _)| free as u64),
            advice: advice.to_string(),
        }
    }

    fn code(&self) -> MutexGuard<'_, Code> {
        self.code.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The kernel's function, loaded with its module at first sight. The context must be current.
    fn function(&self, kernel: &'static Kernel) -> Result<Function> {
        let mut code = self.code();
        if let Some(function) = code.functions.get(kernel.name) {
            return Ok(*function);
        }
        if kernel.smem_bytes > self.capability.smem_per_cta_bytes {
            return Err(Error::Unsupported(format!(
                "kernel {} needs {} bytes of shared memory per CTA; {} has {}",
                kernel.name, kernel.smem_bytes, self.capability.name, self.capability.smem_per_cta_bytes
            )));
        }
        let module = match code.modules.get(kernel.stem) {
            Some(module) => *module,
            None => {
                let module = self.load(kernel)?;
                code.modules.insert(kernel.stem, module);
                module
            }
        };
        let what = |verb: &str| format!("{verb} kernel {}", kernel.name);
        let symbol = CString::new(kernel.name)
            .map_err(|_| Error::Unsupported(format!("kernel {:?} has no valid name", kernel.name)))?;
        // SAFETY: the module was loaded above or before, and is unloaded only by `Drop`.
        let handle = unsafe { result::module::get_function(module, symbol) }
            .map_err(|e| self.error(what("find"), e))?;
        let mut params_bytes = None;
        if self.driver_version >= VERSION_WITH_FUNC_LOAD {
            let (mut offset, mut bytes) = (0, 0);
            // SAFETY: `handle` is alive, and this driver has both functions; out-pointers are locals.
            unsafe {
                // Otherwise the first launch would load it, in the middle of a run.
                sys::cuFuncLoad(handle).result().map_err(|e| self.error(what("load"), e))?;
                sys::cuFuncGetParamInfo(handle, 0, &mut offset, &mut bytes)
                    .result()
                    .map_err(|e| self.error(what("inspect"), e))?;
            }
            params_bytes = Some(bytes);
        }
        if kernel.smem_bytes > SMEM_WITHOUT_ASKING {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `handle` is alive; the size was checked against the device's limit above.
            unsafe {
                result::function::set_function_attribute(handle, attribute, kernel.smem_bytes as c_int)
            }
            .map_err(|e| self.error(what("reserve shared memory for"), e))?;
        }
        let function = Function { handle, params_bytes };
        code.functions.insert(kernel.name, function);
        Ok(function)
    }

    /// Loads the module of `kernel`. The context must be current.
    fn load(&self, kernel: &'static Kernel) -> Result<sys::CUmodule> {
        if kernel.image.is_empty() {
            return Err(no_kernels());
        }
        // The driver reads the image as a struct; `include_bytes!` promises no alignment.
        let mut image = vec![0u64; kernel.image.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..kernel.image.len()].copy_from_slice(kernel.image);
        // SAFETY: `image` is a whole fatbin that nvcc wrote (build.rs), aligned, and alive during the call, after
        // which the driver has its own copy.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                Error::Unsupported(format!(
                    "kernels/{}.cu, compiled by nvcc {}, does not run on {} (compute capability {}) with driver {}: {}",
                    kernel.stem,
                    version(BUILT_BY),
                    self.capability.name,
                    version_of_arch(self.capability.arch),
                    self.capability.driver,
                    words(e)
                ))
            }
            _ => self.error(format!("load kernels/{}.cu", kernel.stem), e),
        })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Failures cannot be reported from here, and after a device error everything fails.
        if self.enter().is_ok() {
            // SAFETY: all handles were made by `open` and `function`, are released once and in the order of their
            // dependence; `Device` has freed its memory and events, which hold the device alive, before.
            unsafe {
                for stream in self.streams {
                    if !stream.is_null() {
                        let _ = result::stream::synchronize(stream);
                        let _ = result::stream::destroy(stream);
                    }
                }
                let mut code = self.code();
                code.functions.clear();
                for (_, module) in code.modules.drain() {
                    let _ = result::module::unload(module);
                }
            }
        }
        // SAFETY: retained once by `open`; nothing of this context is used after.
        unsafe {
            let _ = result::ctx::set_current(std::ptr::null_mut());
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Machine for Cuda {
    fn capability(&self) -> &Capability {
        &self.capability
    }

    fn free_bytes(&self) -> Result<u64> {
        self.enter()?;
        let (free, _) = result::mem_get_info().map_err(|e| self.error("read the free memory", e))?;
        Ok(free as u64)
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        // SAFETY: the context is current. The synchronous call: one allocation, exactly this size, from no pool.
        unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.out_of_memory(
                &format!("the device allocation on {}", self.name),
                bytes,
                "lower --budget, choose a smaller image, or free memory that other programs hold on this GPU",
            ),
            _ => self.error(format!("allocate {bytes} bytes"), e),
        })
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        if self.enter().is_ok() {
            // SAFETY: `address` came from `allocate`; the caller has drained the streams and drops it now.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    unsafe fn allocate_host(&self, bytes: usize) -> Result<*mut u8> {
        self.enter()?;
        // SAFETY: the context is current. Flags 0: cached, so that the host may read it, too.
        let base = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(|e| match e.0 {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Capacity {
                    what: "a pinned host buffer".to_string(),
                    needed_bytes: bytes as u64,
                    available_bytes: 0,
                    advice: "lower --host-budget or raise the limit of locked memory (ulimit -l)".to_string(),
                },
                _ => self.error(format!("allocate {bytes} bytes of pinned host memory"), e),
            })?
            .cast::<u8>();
        // SAFETY: `bytes` writable bytes from the line above. `HostBuffer` lends them as initialised.
        unsafe { base.write_bytes(0, bytes) };
        Ok(base)
    }

    unsafe fn free_host(&self, address: *mut u8, _bytes: usize) {
        if self.enter().is_ok() {
            // SAFETY: `address` came from `allocate_host`; the caller has drained the streams and drops it now.
            let _ = unsafe { result::free_host(address.cast()) };
        }
    }

    fn tensor_map(&self, address: u64, tile: &TensorTile) -> Result<abi::tensor_map> {
        self.enter()?;
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
            sys::cuTensorMapEncodeTiled(
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
        .result()
        .map_err(|e| self.error(format!("encode {tile:?}"), e))?;
        Ok(map)
    }

    fn prepare(&self, kernel: &'static Kernel) -> Result<()> {
        self.enter()?;
        self.function(kernel).map(|_| ())
    }

    unsafe fn copy_to_device(&self, stream: StreamId, dst: u64, src: *const u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's promise: both ranges hold `bytes` until the stream has passed the copy.
        unsafe { sys::cuMemcpyHtoDAsync_v2(dst, src.cast(), bytes, self.stream(stream)) }
            .result()
            .map_err(|e| self.error(format!("copy {bytes} bytes to the device"), e))
    }

    unsafe fn copy_to_host(&self, stream: StreamId, dst: *mut u8, src: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: as in `copy_to_device`.
        unsafe { sys::cuMemcpyDtoHAsync_v2(dst.cast(), src, bytes, self.stream(stream)) }
            .result()
            .map_err(|e| self.error(format!("copy {bytes} bytes to the host"), e))
    }

    unsafe fn fill(&self, stream: StreamId, dst: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's promise: `dst` holds `bytes` until the stream has passed the fill.
        unsafe { result::memset_d8_async(dst, value, bytes, self.stream(stream)) }
            .map_err(|e| self.error(format!("fill {bytes} bytes"), e))
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
        self.enter()?;
        let function = self.function(kernel)?;
        let operation = || format!("launch kernel {} with grid {grid:?}", kernel.name);
        if let Some(compiled) = function.params_bytes
            && compiled != params_bytes
        {
            return Err(Error::Device {
                device: self.name.clone(),
                operation: operation(),
                reason: format!("it was compiled for params of {compiled} bytes and is given {params_bytes}"),
            });
        }
        let mut arguments = [params.cast_mut()];
        // SAFETY: the function is loaded; `params` is its params struct (size compared above), copied by the driver
        // before the call returns; the addresses in it are the caller's promise.
        unsafe {
            result::launch_kernel(
                function.handle,
                grid.into(),
                (kernel.threads, 1, 1),
                kernel.smem_bytes,
                self.stream(stream),
                &mut arguments,
            )
        }
        .map_err(|e| self.error(operation(), e))?;
        if cfg!(feature = "sync-launch") {
            // SAFETY: the stream is alive until `Drop`.
            unsafe { result::stream::synchronize(self.stream(stream)) }
                .map_err(|e| self.error(format!("run kernel {} with grid {grid:?}", kernel.name), e))?;
        }
        Ok(())
    }

    fn create_event(&self) -> Result<EventId> {
        self.enter()?;
        // Default flags: events that measure time.
        let event = result::event::create(sys::CUevent_flags_enum::CU_EVENT_DEFAULT)
            .map_err(|e| self.error("create an event", e))?;
        Ok(EventId(event as u64))
    }

    unsafe fn destroy_event(&self, event: EventId) {
        if self.enter().is_ok() {
            // SAFETY: the event came from `create_event` and is dropped now; the driver defers this past pending work.
            let _ = unsafe { result::event::destroy(event.0 as sys::CUevent) };
        }
    }

    unsafe fn record(&self, stream: StreamId, event: EventId) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise: a live event of this machine.
        unsafe { result::event::record(event.0 as sys::CUevent, self.stream(stream)) }
            .map_err(|e| self.error("record an event", e))
    }

    unsafe fn wait(&self, stream: StreamId, event: EventId) -> Result<()> {
        self.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `record`.
        unsafe { result::stream::wait_event(self.stream(stream), event.0 as sys::CUevent, flags) }
            .map_err(|e| self.error("wait for an event", e))
    }

    unsafe fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        self.enter()?;
        // SAFETY: as in `record`.
        unsafe { result::event::elapsed(start.0 as sys::CUevent, end.0 as sys::CUevent) }.map_err(|e| {
            let operation = "read a timing event".to_string();
            match e.0 {
                CUresult::CUDA_ERROR_NOT_READY | CUresult::CUDA_ERROR_INVALID_HANDLE => Error::Device {
                    device: self.name.clone(),
                    operation,
                    reason: "the event has not been reached".to_string(),
                },
                _ => self.error(operation, e),
            }
        })
    }

    unsafe fn synchronize_event(&self, event: EventId) -> Result<()> {
        self.enter()?;
        // SAFETY: as in `record`.
        unsafe { result::event::synchronize(event.0 as sys::CUevent) }
            .map_err(|e| self.error("finish the work before an event", e))
    }

    fn synchronize(&self, stream: StreamId) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream is alive until `Drop`.
        unsafe { result::stream::synchronize(self.stream(stream)) }
            .map_err(|e| self.error(format!("finish the {stream:?} stream"), e))
    }
}

fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the library is loaded (checked by `open`); the out-pointer is a local.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}

/// What this crate needs of a GPU and its driver, given the nvcc that compiled the kernels.
///
/// A cubin runs on every driver of its own major version or later; the driver's version is that of the newest CUDA
/// it knows.
fn check_versions(gpu: &str, arch: u32, driver: i32, built_by: i32) -> Result<()> {
    if arch < 80 {
        return Err(Error::Unsupported(format!(
            "{gpu} has compute capability {}; 8.0 (Ampere) or newer is needed for bf16 tensor cores",
            version_of_arch(arch)
        )));
    }
    if built_by == 0 {
        return Err(no_kernels());
    }
    if driver / 1000 < built_by / 1000 {
        let release = match built_by / 1000 {
            12 => " (release 525 or newer)",
            13 => " (release 580 or newer)",
            _ => "",
        };
        return Err(Error::Unsupported(format!(
            "the NVIDIA driver of {gpu} knows CUDA {}, but the kernels were compiled by nvcc {}: install a driver for \
             CUDA {}{release}, or build with an older nvcc (12.8 or newer)",
            version(driver),
            version(built_by),
            version(built_by / 1000 * 1000),
        )));
    }
    Ok(())
}

fn no_kernels() -> Error {
    Error::Unsupported(
        "this build has no CUDA kernels, because there was no nvcc when it was compiled: run scripts/get-nvcc and build \
         again, or use the emulator"
            .to_string(),
    )
}

/// The library is there, but the driver does not come up.
fn no_driver(name: &str, error: DriverError) -> Error {
    Error::Unsupported(format!(
        "the NVIDIA driver shows no usable GPU for {name}: {}; check nvidia-smi, or use the emulator",
        words(error)
    ))
}

fn device_error(device: &str, operation: impl Into<String>, error: DriverError) -> Error {
    let mut reason = words(error);
    let from_a_kernel = matches!(
        error.0,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
    );
    if from_a_kernel && !cfg!(feature = "sync-launch") {
        reason +=
            "; some kernel before this call is at fault, a build with the feature sync-launch says which";
    }
    Error::Device { device: device.to_string(), operation: operation.into(), reason }
}

/// The driver's name and text for an error.
fn words(error: DriverError) -> String {
    let text = error.error_string().map_or("no text".into(), |text| text.to_string_lossy());
    format!("{:?}: {text}", error.0)
}

/// `13.0` of 13000.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// `8.6` of 86.
fn version_of_arch(arch: u32) -> String {
    format!("{}.{}", arch / 10, arch % 10)
}

/// 13000 of `13.0`, 0 of anything else.
const fn parse(version: &str) -> i32 {
    let bytes = version.as_bytes();
    let (mut i, mut parts, mut part) = (0, [0i32; 2], 0);
    while i < bytes.len() {
        match bytes[i] {
            b'.' if part == 0 => part = 1,
            digit @ b'0'..=b'9' => parts[part] = parts[part] * 10 + (digit - b'0') as i32,
            _ => return 0,
        }
        i += 1;
    }
    parts[0] * 1000 + parts[1] * 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(arch: u32, driver: i32, built_by: i32) -> String {
        match check_versions("cuda:0 (a GPU)", arch, driver, built_by) {
            Err(Error::Unsupported(text)) => text,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn versions_are_read_as_the_driver_counts_them() {
        assert_eq!(parse("13.0"), 13000);
        assert_eq!(parse("12.8"), 12080);
        assert_eq!(parse(""), 0);
        assert_eq!(version(12080), "12.8");
    }

    #[test]
    fn gpus_before_ampere_are_refused_with_both_capabilities() {
        let text = refusal(75, 13000, 13000);
        assert!(text.contains("7.5") && text.contains("8.0"), "{text}");
    }

    #[test]
    fn an_old_driver_is_refused_with_both_versions() {
        let text = refusal(90, 12080, 13000);
        assert!(text.contains("12.8") && text.contains("13.0") && text.contains("580"), "{text}");
    }

    #[test]
    fn a_build_without_nvcc_says_how_to_get_it() {
        assert!(refusal(90, 13000, 0).contains("scripts/get-nvcc"));
    }

    #[test]
    fn newer_drivers_and_minor_versions_apart_are_fine() {
        for (driver, built_by) in [(13000, 13000), (13010, 13000), (14000, 13000), (12040, 12080)] {
            check_versions("cuda:0", 80, driver, built_by).unwrap();
        }
    }
}
