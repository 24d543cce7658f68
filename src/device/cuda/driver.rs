//! The driver's functions: a table of addresses out of libcuda, and the codes they return.
//!
//! cudarc's own loader is not used (docs/adr/0007): it panics where a library or a symbol is missing, takes whatever is
//! called `libcuda.so` before the real driver, and returns a Rust enum, which a code of a newer driver makes undefined
//! behavior. Here a code is a number, and what is missing is an [`Error::Unsupported`] with its name. Types and constants
//! are cudarc's, and every signature below is compared with cudarc's declaration when this compiles.
//!
//! # Safety
//! An address is called only with the signature of its name. The library is never unloaded, so addresses stay valid.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;
use libloading::Library;

use super::advice;
use crate::{Error, Result};

/// What a function of the driver returns: CUresult as the number it is, which may be newer than any list of names.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub u32);

impl Code {
    pub const SUCCESS: Code = Code(0);

    pub fn ok(self) -> Result<(), Code> {
        if self == Code::SUCCESS { Ok(()) } else { Err(self) }
    }

    pub fn is(self, known: sys::CUresult) -> bool {
        self.0 == known as u32
    }
}

/// Declares [`Driver`]: the functions that every driver has, those that newer ones have, and those whose signature is not
/// cudarc's (they take a code).
macro_rules! driver {
    (
        required { $($name:ident($($ty:ty),*);)* }
        optional { $($newer:ident($($newer_ty:ty),*);)* }
        codes { $($on_codes:ident($($codes_ty:ty),*);)* }
    ) => {
        /// The driver. Fields have the names of CUDA's documentation, versions included.
        #[allow(non_snake_case)]
        pub(super) struct Driver {
            $(pub $name: unsafe extern "C" fn($($ty),*) -> Code,)*
            $(pub $newer: Option<unsafe extern "C" fn($($newer_ty),*) -> Code>,)*
            $(pub $on_codes: unsafe extern "C" fn($($codes_ty),*) -> Code,)*
        }

        $(const _: unsafe fn($($ty),*) -> sys::CUresult = sys::$name;)*
        $(const _: unsafe fn($($newer_ty),*) -> sys::CUresult = sys::$newer;)*

        impl Driver {
            /// Finds every function in `library`; the error is the first that is missing.
            fn resolve(library: &Library) -> Result<Driver, &'static str> {
                // SAFETY: each name is looked up as a function of the signature that it has in cudarc's bindings (compared
                // above), but for the code, which is as large as CUresult.
                unsafe {
                    Ok(Driver {
                        $($name: *library.get(stringify!($name)).map_err(|_| stringify!($name))?,)*
                        $($newer: library.get(stringify!($newer)).ok().map(|found| *found),)*
                        $($on_codes: *library.get(stringify!($on_codes)).map_err(|_| stringify!($on_codes))?,)*
                    })
                }
            }
        }
    };
}

driver! {
    // In all drivers since 12.0.
    required {
        cuInit(c_uint);
        cuDriverGetVersion(*mut c_int);
        cuDeviceGet(*mut sys::CUdevice, c_int);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGetName(*mut c_char, c_int, sys::CUdevice);
        cuDeviceGetAttribute(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);
        cuDeviceGetPCIBusId(*mut c_char, c_int, sys::CUdevice);
        cuDeviceTotalMem_v2(*mut usize, sys::CUdevice);
        cuDevicePrimaryCtxRetain(*mut sys::CUcontext, sys::CUdevice);
        cuDevicePrimaryCtxRelease_v2(sys::CUdevice);
        cuCtxGetCurrent(*mut sys::CUcontext);
        cuCtxPushCurrent_v2(sys::CUcontext);
        cuCtxPopCurrent_v2(*mut sys::CUcontext);
        cuMemGetInfo_v2(*mut usize, *mut usize);
        cuMemAlloc_v2(*mut sys::CUdeviceptr, usize);
        cuMemFree_v2(sys::CUdeviceptr);
        cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
        cuMemFreeHost(*mut c_void);
        cuMemcpyHtoDAsync_v2(sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
        cuMemcpyDtoHAsync_v2(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
        cuMemsetD8Async(sys::CUdeviceptr, u8, usize, sys::CUstream);
        cuModuleLoadData(*mut sys::CUmodule, *const c_void);
        cuModuleUnload(sys::CUmodule);
        cuModuleGetFunction(*mut sys::CUfunction, sys::CUmodule, *const c_char);
        cuFuncSetAttribute(sys::CUfunction, sys::CUfunction_attribute, c_int);
        cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, sys::CUfunction, c_int, usize);
        cuLaunchKernel(
            sys::CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, sys::CUstream,
            *mut *mut c_void, *mut *mut c_void
        );
        cuLaunchHostFunc(sys::CUstream, sys::CUhostFn, *mut c_void);
        cuGraphCreate(*mut sys::CUgraph, c_uint);
        cuGraphDestroy(sys::CUgraph);
        cuGraphAddKernelNode_v2(
            *mut sys::CUgraphNode, sys::CUgraph, *const sys::CUgraphNode, usize,
            *const sys::CUDA_KERNEL_NODE_PARAMS
        );
        cuGraphAddMemsetNode(
            *mut sys::CUgraphNode, sys::CUgraph, *const sys::CUgraphNode, usize,
            *const sys::CUDA_MEMSET_NODE_PARAMS, sys::CUcontext
        );
        cuGraphInstantiateWithFlags(*mut sys::CUgraphExec, sys::CUgraph, u64);
        cuGraphUpload(sys::CUgraphExec, sys::CUstream);
        cuGraphLaunch(sys::CUgraphExec, sys::CUstream);
        cuGraphExecDestroy(sys::CUgraphExec);
        cuStreamCreate(*mut sys::CUstream, c_uint);
        cuStreamDestroy_v2(sys::CUstream);
        cuStreamSynchronize(sys::CUstream);
        cuStreamWaitEvent(sys::CUstream, sys::CUevent, c_uint);
        cuEventCreate(*mut sys::CUevent, c_uint);
        cuEventDestroy_v2(sys::CUevent);
        cuEventRecord(sys::CUevent, sys::CUstream);
        cuEventSynchronize(sys::CUevent);
        cuEventElapsedTime(*mut f32, sys::CUevent, sys::CUevent);
        cuTensorMapEncodeTiled(
            *mut sys::CUtensorMap, sys::CUtensorMapDataType, c_uint, *mut c_void, *const u64, *const u64,
            *const u32, *const u32, sys::CUtensorMapInterleave, sys::CUtensorMapSwizzle,
            sys::CUtensorMapL2promotion, sys::CUtensorMapFloatOOBfill
        );
    }
    // Since 12.4.
    optional {
        cuFuncLoad(sys::CUfunction);
        cuFuncGetParamInfo(sys::CUfunction, usize, *mut usize, *mut usize);
    }
    codes {
        cuGetErrorName(Code, *mut *const c_char);
        cuGetErrorString(Code, *mut *const c_char);
    }
}

/// Where the driver is: `libcuda.so` alone may be the toolkit's stub, which links programs and runs none.
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

impl Driver {
    /// The driver of this machine, initialized as far as it goes: its own refusal is the inner error.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none, or none with all that is needed.
    pub fn get() -> Result<&'static Driver> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        match DRIVER.get() {
            Some(driver) => Ok(driver),
            // What fails is tried anew by the next caller.
            None => Driver::load(&LIBRARIES).map(|driver| DRIVER.get_or_init(|| driver)),
        }
    }

    /// The first of these libraries that is a whole driver.
    fn load(libraries: &[&str]) -> Result<Driver> {
        let (mut found, mut not_found) = (None, Vec::new());
        for name in libraries {
            // SAFETY: runs the initializers of the vendor's library, or of what the user put in its place.
            let library = match unsafe { Library::new(*name) } {
                Ok(library) => library,
                Err(error) => {
                    // The loader's words are the reason of libloading's.
                    let reason = std::error::Error::source(&error).map(|reason| reason.to_string());
                    not_found.push(reason.unwrap_or_else(|| error.to_string()));
                    continue;
                }
            };
            let fault = match Driver::resolve(&library) {
                Ok(driver) => {
                    // SAFETY: no promise is needed; it may be called any number of times.
                    match unsafe { (driver.cuInit)(0) } {
                        code if code.is(sys::CUresult::CUDA_ERROR_STUB_LIBRARY) => advice::stub(name),
                        _ => {
                            std::mem::forget(library);
                            return Ok(driver);
                        }
                    }
                }
                Err(symbol) => advice::missing_symbol(name, symbol, version_of(&library)),
            };
            // Of two that will not do the first is the one to mend.
            found.get_or_insert(fault);
            std::mem::forget(library);
        }
        Err(Error::Unsupported(found.unwrap_or_else(|| advice::no_library(libraries, &not_found))))
    }

    /// `CUDA_ERROR_OUT_OF_MEMORY: out of memory`, or the number alone where this driver has no words for it.
    pub fn words(&self, code: Code) -> String {
        type Lookup = unsafe extern "C" fn(Code, *mut *const c_char) -> Code;
        let look_up = |lookup: Lookup| {
            let mut text = std::ptr::null();
            // SAFETY: the out-pointer is a local; the driver takes any number here.
            let found = unsafe { lookup(code, &mut text) }.ok().is_ok() && !text.is_null();
            // SAFETY: on success it is a string that the driver keeps for ever.
            found.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (look_up(self.cuGetErrorName), look_up(self.cuGetErrorString)) {
            (Some(name), Some(text)) => format!("{name}: {text}"),
            (Some(name), None) => format!("{name} ({})", code.0),
            (None, _) => format!("error {}, which this driver has no name for", code.0),
        }
    }

    /// The CUDA that the driver knows: 13000 for 13.0.
    pub fn version(&self) -> Result<i32, Code> {
        let mut version = 0;
        // SAFETY: the out-pointer is a local.
        unsafe { (self.cuDriverGetVersion)(&mut version) }.ok()?;
        Ok(version)
    }
}

/// The version of a driver that lacks something, if it tells.
fn version_of(library: &Library) -> Option<i32> {
    let mut version = 0;
    // SAFETY: a function of this name has this signature in every driver; the out-pointer is a local.
    unsafe {
        let tell = library.get::<unsafe extern "C" fn(*mut c_int) -> Code>("cuDriverGetVersion").ok()?;
        tell(&mut version).ok().ok().map(|()| version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(libraries: &[&str]) -> String {
        match Driver::load(libraries) {
            Err(Error::Unsupported(text)) => text,
            Err(other) => panic!("expected Unsupported, got {other:?}"),
            Ok(_) => panic!("{libraries:?} is no driver"),
        }
    }

    #[test]
    fn the_driver_is_looked_for_before_what_may_be_a_stub() {
        assert_eq!(LIBRARIES, ["libcuda.so.1", "libcuda.so"]);
    }

    #[test]
    fn no_library_is_told_with_the_loaders_words() {
        let text = refusal(&["libschnell-none.so.1", "libschnell-none.so"]);
        assert!(
            text.contains("no NVIDIA driver") && text.contains("libschnell-none.so.1: cannot open"),
            "{text}"
        );
        assert!(text.contains("use the emulator"), "{text}");
    }

    /// It was a panic, which no caller can handle.
    #[test]
    fn a_library_without_the_functions_is_told_with_the_first_that_is_missing() {
        let text = refusal(&["libschnell-none.so.1", "libm.so.6"]);
        assert!(text.contains("libm.so.6") && text.contains("cuInit"), "{text}");
        assert!(text.contains("install"), "{text}");
    }
}
