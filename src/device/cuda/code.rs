//! Code on the GPU: one module per file of `kernels/`, one function per entry, loaded at first sight.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::sync::MutexGuard;

use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};

use super::advice::{self, Target};
use super::open::no_kernels;
use super::{Cuda, Current, Kernel, Sm, driver};
use crate::{Error, Result};

/// More than this much shared memory has to be asked for.
const SMEM_WITHOUT_ASKING: u32 = 48 << 10;

/// What has been loaded.
#[derive(Default)]
pub(super) struct Code {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
}

impl Code {
    /// Forgets all of it; the modules are the caller's to unload.
    pub fn clear(&mut self) -> Vec<sys::CUmodule> {
        self.functions.clear();
        self.modules.drain().map(|(_, module)| module).collect()
    }
}

#[derive(Clone, Copy)]
pub(super) struct Function {
    pub handle: sys::CUfunction,
    /// Size of the params struct that nvcc compiled, where the driver tells.
    pub params_bytes: Option<usize>,
}

impl Cuda {
    pub(super) fn code(&self) -> MutexGuard<'_, Code> {
        self.code.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Code that this GPU or driver does not take: the driver may say so at any call that looks at it.
    pub(super) fn no_code(&self, kernel: &Kernel, code: driver::Code) -> Option<Error> {
        let target = Target {
            gpu: &self.capability.name,
            arch: self.capability.arch,
            driver: &self.capability.driver,
        };
        advice::no_code(self.driver, kernel.stem, &target, code)
    }

    /// The kernel's function, loaded with its module at first sight.
    pub(super) fn function(&self, kernel: &'static Kernel, current: &Current<'_>) -> Result<Function> {
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
                let module = self.load(kernel, current)?;
                code.modules.insert(kernel.stem, module);
                module
            }
        };
        let failed = |verb: &str, e| {
            self.no_code(kernel, e).unwrap_or_else(|| self.error(format!("{verb} kernel {}", kernel.name), e))
        };
        let symbol = CString::new(kernel.name)
            .map_err(|_| Error::Unsupported(format!("kernel {:?} has no valid name", kernel.name)))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module was loaded above or before, and is unloaded only by `Drop`; the out-pointer is a local.
        unsafe { (self.driver.cuModuleGetFunction)(&mut handle, module, symbol.as_ptr()) }
            .ok()
            .map_err(|e| failed("find", e))?;
        let mut params_bytes = None;
        if let (Some(load), Some(param_info)) = (self.driver.cuFuncLoad, self.driver.cuFuncGetParamInfo) {
            let (mut offset, mut bytes) = (0, 0);
            // SAFETY: `handle` is alive; out-pointers are locals.
            unsafe {
                // Otherwise the first launch would load it, in the middle of a run.
                load(handle).ok().map_err(|e| failed("load", e))?;
                param_info(handle, 0, &mut offset, &mut bytes).ok().map_err(|e| failed("inspect", e))?;
            }
            params_bytes = Some(bytes);
        }
        let set = |attribute, value: u32| {
            // SAFETY: `handle` is alive.
            unsafe { (self.driver.cuFuncSetAttribute)(handle, attribute, value as c_int) }.ok()
        };
        if kernel.smem_bytes > SMEM_WITHOUT_ASKING {
            set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.smem_bytes)
                .map_err(|e| failed("reserve shared memory for", e))?;
        }
        if let Some(percent) = carve_out(self.sm, kernel.smem_bytes, self.ctas_per_sm(kernel, handle)) {
            // A hint, without which the kernel may be slower.
            let _ = set(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, percent);
        }
        let function = Function { handle, params_bytes };
        code.functions.insert(kernel.name, function);
        Ok(function)
    }

    /// The same, to be launched with a params struct of so many bytes.
    pub(super) fn function_for(
        &self,
        kernel: &'static Kernel,
        params_bytes: usize,
        current: &Current<'_>,
    ) -> Result<Function> {
        let function = self.function(kernel, current)?;
        match function.params_bytes {
            Some(compiled) if compiled != params_bytes => Err(Error::Device {
                device: self.name.clone(),
                operation: format!("launch kernel {}", kernel.name),
                reason: format!("it was compiled for params of {compiled} bytes and is given {params_bytes}"),
            }),
            _ => Ok(function),
        }
    }

    /// How many CTAs of a kernel an SM takes; 0 where the driver does not say.
    fn ctas_per_sm(&self, kernel: &Kernel, handle: sys::CUfunction) -> u32 {
        let mut ctas = 0;
        // SAFETY: the caller's function, which is alive; the out-pointer is a local.
        let told = unsafe {
            (self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor)(
                &mut ctas,
                handle,
                kernel.threads as c_int,
                kernel.smem_bytes as usize,
            )
        };
        told.ok().map_or(0, |()| ctas.max(0) as u32)
    }

    /// Loads the module of `kernel`.
    fn load(&self, kernel: &'static Kernel, _current: &Current<'_>) -> Result<sys::CUmodule> {
        if kernel.image.is_empty() {
            return Err(no_kernels());
        }
        // The driver reads the image as a struct; `include_bytes!` promises no alignment.
        let mut image = vec![0u64; kernel.image.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..kernel.image.len()].copy_from_slice(kernel.image);
        let mut module = std::ptr::null_mut();
        // SAFETY: `image` is a whole fatbin that nvcc wrote (build.rs; only this crate makes kernels), aligned, and alive
        // during the call, after which the driver has its own copy; the out-pointer is a local.
        unsafe { (self.driver.cuModuleLoadData)(&mut module, image.as_ptr().cast()) }.ok().map_err(|e| {
            let operation = || format!("load kernels/{}.cu", kernel.stem);
            self.no_code(kernel, e).unwrap_or_else(|| self.error(operation(), e))
        })?;
        Ok(module)
    }
}

/// Per cent of an SM's memory that must be shared memory, and not cache, for as many CTAs as fit; `None` where one CTA is
/// all, which gets what it needs without asking.
fn carve_out(sm: Sm, smem_bytes: u32, ctas: u32) -> Option<u32> {
    if ctas < 2 || smem_bytes == 0 || sm.smem_bytes == 0 {
        return None;
    }
    // Shared memory is given out in units of 128 bytes.
    let each = (smem_bytes + sm.reserved_bytes).next_multiple_of(128);
    let needed = u64::from(ctas) * u64::from(each);
    Some((needed * 100).div_ceil(u64::from(sm.smem_bytes)).min(100) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctas_that_share_an_sm_get_the_shared_memory_for_it() {
        let ga100 = Sm { smem_bytes: 164 << 10, reserved_bytes: 1 << 10 };
        // 2 x (80 + 1) KiB of 164: the driver rounds up to what the hardware has.
        assert_eq!(carve_out(ga100, 80 << 10, 2), Some(99));
        assert_eq!(carve_out(ga100, 163 << 10, 1), None);
        assert_eq!(carve_out(ga100, 0, 8), None);
        let ga102 = Sm { smem_bytes: 100 << 10, reserved_bytes: 1 << 10 };
        assert_eq!(carve_out(ga102, 40 << 10, 2), Some(82));
        assert_eq!(carve_out(Sm { smem_bytes: 0, reserved_bytes: 0 }, 40 << 10, 2), None, "not told");
    }
}
