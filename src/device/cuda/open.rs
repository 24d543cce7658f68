//! Opening a GPU: what it must have, and how its absence is told.

use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUstream_flags_enum as StreamFlags};

use super::advice;
use super::driver::{Code, Driver};
use super::{Context, Cuda, Sm};
use crate::device::Capability;
use crate::device::lost::Loss;
use crate::{Error, Result};

/// The nvcc that compiled the kernels, as the driver counts: 13000 for 13.0; 0 without nvcc.
pub(super) const BUILT_BY: i32 = parse(env!("SCHNELL_NVCC_VERSION"));

impl Cuda {
    /// Opens the GPU with this ordinal.
    pub fn open(ordinal: usize) -> Result<Self> {
        Cuda::open_with(Driver::get()?, ordinal, BUILT_BY)
    }

    /// Opens what a driver shows, for kernels that the nvcc `built_by` has compiled.
    pub(super) fn open_with(driver: &'static Driver, ordinal: usize, built_by: i32) -> Result<Self> {
        let name = format!("cuda:{ordinal}");
        // SAFETY: no promise is needed; it may be called any number of times.
        unsafe { (driver.cuInit)(0) }.ok().map_err(|e| advice::no_gpu(driver, &name, e))?;
        let driver_version = driver.version().map_err(|e| advice::no_gpu(driver, &name, e))?;
        let mut count = 0;
        // SAFETY: the out-pointer is a local.
        unsafe { (driver.cuDeviceGetCount)(&mut count) }
            .ok()
            .map_err(|e| advice::no_gpu(driver, &name, e))?;
        let gpu = match c_int::try_from(ordinal) {
            Ok(ordinal) if ordinal < count => Gpu::get(driver, &name, ordinal)?,
            _ => {
                return Err(Error::Unsupported(format!(
                    "there is no GPU {name}: the driver shows {count}, counted from 0; choose one of those, or look whether \
                     CUDA_VISIBLE_DEVICES hides it"
                )));
            }
        };
        let arch = gpu.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
            + gpu.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let called = gpu.called()?;
        check_versions(&format!("{name} ({called})"), arch, driver_version, built_by)?;
        let capability = Capability {
            name: called,
            arch,
            num_sms: gpu.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            smem_per_cta_bytes: gpu
                .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            total_bytes: gpu.total_bytes()?,
            is_emulator: false,
            threads: 0,
            driver: version(driver_version),
            pci_bus_id: gpu.pci_bus_id(),
        };
        // For a hint: nothing depends on these.
        let or_0 = |which| gpu.attribute(which).unwrap_or(0);
        let sm = Sm {
            smem_bytes: or_0(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
            reserved_bytes: or_0(Attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK),
        };
        let device = gpu.device;
        let cuda = Cuda {
            driver,
            capability,
            sm,
            name,
            device,
            context: RwLock::new(Context::NONE),
            code: Mutex::default(),
            live: AtomicUsize::new(0),
            loss: Loss::default(),
        };
        let context = cuda.make_context()?;
        *cuda.context.write().unwrap_or_else(PoisonError::into_inner) = context;
        Ok(cuda)
    }

    /// Retains the primary context and makes the streams there. What fails leaves nothing behind.
    pub(super) fn make_context(&self) -> Result<Context> {
        let mut context = Context::NONE;
        // SAFETY: `device` is the driver's own; `close` releases what is retained here.
        unsafe { (self.driver.cuDevicePrimaryCtxRetain)(&mut context.handle, self.device) }
            .ok()
            .map_err(|e| self.error("create the context", e))?;
        match self.create_streams(&mut context) {
            Ok(()) => Ok(context),
            Err(error) => {
                self.close(&mut context);
                Err(error)
            }
        }
    }

    fn create_streams(&self, context: &mut Context) -> Result<()> {
        let pushed = self.push(context)?;
        let created = context.streams.iter_mut().try_for_each(|stream| {
            // Not ordered by the default stream, which is the host program's.
            let flags = StreamFlags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: the out-pointer is a local; `close` destroys the stream.
            unsafe { (self.driver.cuStreamCreate)(stream, flags) }
                .ok()
                .map_err(|e| self.error("create a stream", e))
        });
        if pushed {
            self.pop();
        }
        created
    }
}

/// A GPU before it has a context.
struct Gpu<'a> {
    driver: &'static Driver,
    name: &'a str,
    device: sys::CUdevice,
}

impl<'a> Gpu<'a> {
    fn get(driver: &'static Driver, name: &'a str, ordinal: c_int) -> Result<Self> {
        let mut gpu = Gpu { driver, name, device: 0 };
        // SAFETY: the out-pointer is a field of a local.
        let found = unsafe { (driver.cuDeviceGet)(&mut gpu.device, ordinal) }.ok();
        found.map_err(|e| gpu.error("open the device", e))?;
        Ok(gpu)
    }

    fn error(&self, operation: &str, code: Code) -> Error {
        advice::failure(self.driver, self.name, operation, code)
    }

    fn attribute(&self, which: Attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: `device` is the driver's own; the out-pointer is a local.
        unsafe { (self.driver.cuDeviceGetAttribute)(&mut value, which, self.device) }
            .ok()
            .map_err(|e| self.error("read a device attribute", e))?;
        Ok(value.max(0) as u32)
    }

    /// The driver's name for it.
    fn called(&self) -> Result<String> {
        let text = self.text(|to, len| {
            // SAFETY: `device` is the driver's own; it writes at most `len` bytes.
            unsafe { (self.driver.cuDeviceGetName)(to, len, self.device) }
        });
        text.map_err(|e| self.error("read the name", e))
    }

    /// Where it sits, `0000:41:00.0`: what other programs know it by. Nothing depends on it, so it may be unknown.
    fn pci_bus_id(&self) -> Option<String> {
        let text = self.text(|to, len| {
            // SAFETY: as in `called`.
            unsafe { (self.driver.cuDeviceGetPCIBusId)(to, len, self.device) }
        });
        text.ok()
    }

    fn text(&self, read: impl FnOnce(*mut c_char, c_int) -> Code) -> Result<String, Code> {
        let mut bytes = [0u8; 256];
        read(bytes.as_mut_ptr().cast(), bytes.len() as c_int).ok()?;
        let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    fn total_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        // SAFETY: as in `attribute`.
        unsafe { (self.driver.cuDeviceTotalMem_v2)(&mut bytes, self.device) }
            .ok()
            .map_err(|e| self.error("read the memory's size", e))?;
        Ok(bytes as u64)
    }
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

pub(super) fn no_kernels() -> Error {
    Error::Unsupported(
        "this build has no CUDA kernels, because there was no nvcc when it was compiled: run scripts/get-nvcc and build \
         again, or use the emulator"
            .to_string(),
    )
}

/// `13.0` of 13000.
pub(super) fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// `8.6` of 86.
pub(super) fn version_of_arch(arch: u32) -> String {
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
