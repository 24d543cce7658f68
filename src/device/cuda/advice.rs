//! The driver's refusals as this crate's errors: who can mend it, with what numbers, and how.

use cudarc::driver::sys::CUresult;

use super::driver::{Code, Driver};
use super::open::{BUILT_BY, version, version_of_arch};
use crate::{Error, Result};

const CHECK: &str = "check nvidia-smi";

/// No candidate could be loaded; `reasons` are the loader's words.
pub(super) fn no_library(libraries: &[&str], reasons: &[String]) -> String {
    format!(
        "no NVIDIA driver on this machine: neither of {} could be loaded ({}); install the driver, or use the emulator",
        libraries.join(" and "),
        reasons.join("; ")
    )
}

/// `library` lacks a function that every driver since CUDA 12.0 has.
pub(super) fn missing_symbol(library: &str, symbol: &str, driver_version: Option<i32>) -> String {
    let what = match driver_version {
        Some(known) => format!("a driver for CUDA {}, older than 12.0", version(known)),
        None => "no NVIDIA driver, or a very old one".to_string(),
    };
    format!(
        "{library} has no function {symbol}: it is {what}; install one of release 525 or newer, take what hides it out of \
         LD_LIBRARY_PATH, or use the emulator"
    )
}

/// The toolkit's stand-in, which has all functions and does nothing.
pub(super) fn stub(library: &str) -> String {
    format!(
        "{library} is the CUDA toolkit's stub, which only links programs: take its folder (stubs) out of LD_LIBRARY_PATH so \
         that the driver's own is found, install the driver, or use the emulator"
    )
}

/// The library is there, but shows no GPU.
pub(super) fn no_gpu(driver: &Driver, name: &str, code: Code) -> Error {
    let visible = std::env::var_os("CUDA_VISIBLE_DEVICES");
    let visible = visible.as_ref().map(|value| value.to_string_lossy());
    Error::Unsupported(format!(
        "the NVIDIA driver shows no usable GPU for {name}: {}; {}, or use the emulator",
        driver.words(code),
        no_gpu_advice(code, visible.as_deref())
    ))
}

fn no_gpu_advice(code: Code, visible_devices: Option<&str>) -> String {
    if code.is(CUresult::CUDA_ERROR_NO_DEVICE) {
        return match visible_devices {
            Some(value) => format!(
                "CUDA_VISIBLE_DEVICES={value:?} hides every GPU that it does not name: unset it; if that does not help, {CHECK}"
            ),
            None => format!("{CHECK} (CUDA_VISIBLE_DEVICES is not set, so it hides none)"),
        };
    }
    match CUDA_AT_START.iter().find(|(known, _)| code.is(*known)) {
        Some((_, advice)) => advice.to_string(),
        None => CHECK.to_string(),
    }
}

const CUDA_AT_START: [(CUresult, &str); 4] = [
    (
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
        "libcuda and the kernel module are of different releases: reboot after an update of the driver; in a container, let \
         the runtime mount the host's libcuda",
    ),
    (
        CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE,
        "the forward compatibility package (cuda-compat) does not serve this GPU: take it out of LD_LIBRARY_PATH and install \
         a newer driver",
    ),
    (
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY,
        "the system's services are not up: start nvidia-fabricmanager where the GPUs are joined by NVSwitch",
    ),
    (
        CUresult::CUDA_ERROR_DEVICE_NOT_LICENSED,
        "the virtual GPU has no license: check nvidia-smi -q for its state",
    ),
];

/// An operation that the driver refused or failed, on the machine called `device`. A context may be current: then an
/// error for lack of memory tells how much is free.
pub(super) fn failure(driver: &Driver, device: &str, operation: impl Into<String>, code: Code) -> Error {
    let operation = operation.into();
    if code.is(CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
        return device_memory(driver, format!("to {operation}, {device}"), 0);
    }
    let mut reason = driver.words(code);
    if let Some((_, advice)) = MENDED.iter().find(|(known, _)| code.is(*known)) {
        reason = format!("{reason}; {advice}");
    }
    for (_, advice) in consequences(code) {
        reason = format!("{reason}; {advice}");
    }
    Error::Device { device: device.to_string(), operation, reason }
}

/// What follows from the code alone.
fn consequences(code: Code) -> impl Iterator<Item = (bool, &'static str)> {
    let blames_a_kernel = is_from_a_kernel(code) && !cfg!(feature = "sync-launch");
    [(blames_a_kernel, SOME_KERNEL), (is_final(code), CONTEXT_LOST)].into_iter().filter(|(holds, _)| *holds)
}

const SOME_KERNEL: &str =
    "some kernel before this call is at fault, a build with the feature sync-launch says which";
const CONTEXT_LOST: &str = "nothing can run in this process's context on the GPU any more: recover the pipeline, which opens another, or \
                            restart the process";

/// Errors of operations that the caller can do something about.
const MENDED: [(CUresult, &str); 5] = [
    (
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
        "another process has the GPU for itself: end it, or ask for the default compute mode (nvidia-smi -c 0)",
    ),
    (
        CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        "something in this process has reset or released the GPU's primary context: open the device again",
    ),
    (
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
        "a GPU that drives a display ends kernels after some seconds: use another GPU, or a smaller image",
    ),
    (
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
        "the GPU's memory has failed: look at nvidia-smi -q, and reset or replace the GPU",
    ),
    (
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
        "the driver was updated under this process: restart it, or the machine",
    ),
];

/// Reported by whichever call comes after the kernel.
fn is_from_a_kernel(code: Code) -> bool {
    // 721: CUDA_ERROR_TENSOR_MEMORY_LEAK, of newer headers.
    FROM_A_KERNEL.iter().any(|known| code.is(*known)) || code.0 == 721
}

const FROM_A_KERNEL: [CUresult; 9] = [
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
];

/// Of which CUDA's documentation says that "the process must be terminated", or that the context is gone.
fn is_final(code: Code) -> bool {
    is_from_a_kernel(code)
        || code.is(CUresult::CUDA_ERROR_ECC_UNCORRECTABLE)
        || code.is(CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE)
        // CUDA_ERROR_CONTAINED, of newer headers.
        || code.0 == 226
}

/// Whether nothing that was made in the context is of use after it.
pub(super) fn is_lost_by(code: Code) -> bool {
    is_final(code)
        || code.is(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED)
        || code.is(CUresult::CUDA_ERROR_DEINITIALIZED)
}

/// Device memory is short: `what` says who "needs" it, 0 bytes stands for a number that the driver does not tell.
pub(super) fn device_memory(driver: &Driver, what: String, needed_bytes: u64) -> Error {
    Error::Capacity {
        what,
        needed_bytes,
        available_bytes: free_bytes(driver).unwrap_or(0),
        advice: LESS_MEMORY.to_string(),
    }
}

const LESS_MEMORY: &str =
    "end other programs that hold memory on this GPU (nvidia-smi lists them), or choose a smaller image";

/// Host memory that the driver can pin is short.
pub(super) fn host_memory(device: &str, needed_bytes: u64) -> Error {
    Error::Capacity {
        what: format!("a pinned host buffer for {device}"),
        needed_bytes,
        available_bytes: crate::device::memory::free_host_bytes(),
        advice: "choose a smaller image, or free host memory; where that much is free, the driver cannot pin it: raise \
                 the memory limit of the container"
            .to_string(),
    }
}

/// Device memory that is free; a context must be current.
pub(super) fn free_bytes(driver: &Driver) -> Result<u64, Code> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: the out-pointers are locals.
    unsafe { (driver.cuMemGetInfo_v2)(&mut free, &mut total) }.ok()?;
    Ok(free as u64)
}

/// What is known of a machine that cannot run a kernel.
pub(super) struct Target<'a> {
    pub gpu: &'a str,
    pub arch: u32,
    /// The driver's version.
    pub driver: &'a str,
}

/// A kernel's code that this GPU or driver does not take, at whatever call the driver looks at it: it loads lazily.
/// `None` for every other error.
pub(super) fn no_code(driver: &Driver, stem: &str, target: &Target<'_>, code: Code) -> Option<Error> {
    let (_, advice) = NO_CODE.iter().find(|(known, _)| code.is(*known))?;
    Some(Error::Unsupported(format!(
        "kernels/{stem}.cu, compiled by nvcc {}, does not run on {} (compute capability {}) with a driver for CUDA {}: {}; \
         {advice}, or use the emulator",
        version(BUILT_BY),
        target.gpu,
        version_of_arch(target.arch),
        target.driver,
        driver.words(code),
    )))
}

const NO_CODE: [(CUresult, &str); 6] = [
    (
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
        "build again with an nvcc that knows this GPU (build/nvcc.rs lists the architectures)",
    ),
    (
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        "install a driver at least as new as that nvcc, or build with an nvcc no newer than the driver's CUDA",
    ),
    (
        CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
        "for this GPU the driver compiles the kernels itself, and lacks libnvidia-ptxjitcompiler.so.1 for that: install it \
         in the driver's own release; in a container, let the runtime mount it (NVIDIA_DRIVER_CAPABILITIES=compute,utility)",
    ),
    (
        CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED,
        "for this GPU the driver compiles the kernels itself, which is switched off: unset CUDA_DISABLE_PTX_JIT",
    ),
    (
        CUresult::CUDA_ERROR_INVALID_PTX,
        "install a newer driver, or build with an nvcc that has code for this GPU",
    ),
    (CUresult::CUDA_ERROR_INVALID_IMAGE, "build again: the compiled kernels are damaged"),
];

/// What this crate says of one of the driver's errors.
pub(crate) struct Known {
    pub name: String,
    pub advice: String,
}

/// All errors that there is advice for, as `CUDA_ERROR_OUT_OF_MEMORY`: whatever call returned them.
pub(crate) fn known() -> Vec<Known> {
    let of = |code: CUresult, advice: &str| Known { name: format!("{code:?}"), advice: advice.to_string() };
    let tables = NO_CODE.iter().chain(&MENDED).chain(&CUDA_AT_START).chain(&ELSEWHERE);
    let mut known: Vec<Known> = tables.map(|(code, advice)| of(*code, advice)).collect();
    for code in FROM_A_KERNEL
        .iter()
        .chain(&[CUresult::CUDA_ERROR_ECC_UNCORRECTABLE, CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE])
    {
        let follows = consequences(Code(*code as u32)).map(|(_, advice)| advice);
        known.extend(follows.map(|advice| of(*code, advice)));
    }
    known
}

/// Errors that their places above have other words for.
const ELSEWHERE: [(CUresult, &str); 3] = [
    (CUresult::CUDA_ERROR_OUT_OF_MEMORY, LESS_MEMORY),
    (
        CUresult::CUDA_ERROR_NO_DEVICE,
        "the driver shows no GPU: unset CUDA_VISIBLE_DEVICES if it hides it, and check nvidia-smi",
    ),
    (
        CUresult::CUDA_ERROR_STUB_LIBRARY,
        "the CUDA toolkit's stub was loaded in place of the driver: take its folder (stubs) out of LD_LIBRARY_PATH, or install \
         the driver",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Each has some, whether it is looked for by a call or by a text.
    #[test]
    fn every_error_that_is_mended_is_known_by_name() {
        let known = known();
        for code in [
            CUresult::CUDA_ERROR_NO_DEVICE,
            CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
        ] {
            let name = format!("{code:?}");
            assert!(known.iter().any(|known| known.name == name && !known.advice.is_empty()), "{name}");
        }
    }

    #[test]
    fn hidden_gpus_are_told_from_missing_ones() {
        let no_device = Code(100);
        let hidden = no_gpu_advice(no_device, Some("-1"));
        assert!(hidden.contains("CUDA_VISIBLE_DEVICES=\"-1\"") && hidden.contains("unset"), "{hidden}");
        assert!(no_gpu_advice(no_device, None).contains("is not set"));
        assert!(no_gpu_advice(Code(803), None).contains("reboot"));
        assert_eq!(no_gpu_advice(Code(1234), None), "check nvidia-smi");
    }

    /// Every fault of a kernel ends the context; not every end of a context is a kernel's fault.
    #[test]
    fn final_errors_are_known_by_number() {
        for code in [700, 702, 710, 714, 715, 716, 717, 718, 719, 721] {
            assert!(is_from_a_kernel(Code(code)) && is_final(Code(code)), "{code}");
        }
        for code in [214, 220, 226] {
            assert!(!is_from_a_kernel(Code(code)) && is_final(Code(code)), "{code}");
        }
        for code in [1, 2, 46, 209, 600, 701, 709, 917] {
            assert!(!is_final(Code(code)), "{code}");
        }
    }

    #[test]
    fn an_old_library_is_told_with_its_version() {
        let text = missing_symbol("libcuda.so.1", "cuTensorMapEncodeTiled", Some(11040));
        assert!(
            text.contains("cuTensorMapEncodeTiled") && text.contains("11.4") && text.contains("525"),
            "{text}"
        );
        assert!(stub("libcuda.so").contains("LD_LIBRARY_PATH"));
    }
}
