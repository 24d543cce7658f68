//! The kernels as functions of the host: linked into this program or, with feature `check`, those of a library that
//! `SCHNELL_EMU_KERNELS` names (`scripts/emulated-kernels` compiles it). So instrumented kernels and planted defects run in tests that
//! are compiled once.
//!
//! # Safety
//! The library is of the same headers (`kernels/*.h`, `kernels/gpu.cuh`, `kernels/gpu_sm90.cuh`) as this program, and is never
//! closed.

use std::ffi::c_void;

use crate::device::Kernel;

/// An entry point of a kernel; its argument are the kernel's params.
pub(super) type Entry = unsafe extern "C" fn(*const c_void);

/// Sets a thread-local, which kernels that run read.
pub(super) type SetSelf = unsafe extern "C" fn(*mut c_void);

/// What tells the emulator of an access: thread, kind, address, bytes, instruction.
pub(super) type Hook =
    unsafe extern "C" fn(*mut super::runtime::Thread, super::accesses::How, usize, u32, usize);

/// Functions of `kernels/emulator.cpp` and, where kernels tell of their accesses, `kernels/accesses.cpp`.
struct Functions {
    set_runtime: unsafe extern "C" fn(*const c_void),
    set_hopper: unsafe extern "C" fn(*const c_void),
    set_self: SetSelf,
    get_self: unsafe extern "C" fn() -> *mut c_void,
    install_accesses: Option<unsafe extern "C" fn(Hook)>,
}

unsafe extern "C" {
    fn schnell_emu_set_runtime(table: *const c_void);
    fn schnell_emu_set_hopper(table: *const c_void);
    fn schnell_emu_set_self(thread: *mut c_void);
    fn schnell_emu_get_self() -> *mut c_void;
}

/// Those of this program.
const LINKED: Functions = Functions {
    set_runtime: schnell_emu_set_runtime,
    set_hopper: schnell_emu_set_hopper,
    set_self: schnell_emu_set_self,
    get_self: schnell_emu_get_self,
    install_accesses: None,
};

#[cfg(not(feature = "check"))]
mod chosen {
    use super::{Entry, Functions, Kernel, LINKED};

    pub(super) fn functions() -> &'static Functions {
        &LINKED
    }

    pub(super) fn entry(kernel: &Kernel) -> Entry {
        kernel.emulated
    }
}

#[cfg(feature = "check")]
mod chosen {
    use std::ffi::OsString;
    use std::sync::LazyLock;

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    use super::{Entry, Functions, Kernel, LINKED};

    struct Chosen {
        functions: Functions,
        library: Option<(OsString, Library)>,
    }

    static CHOSEN: LazyLock<Chosen> = LazyLock::new(|| {
        let Some(path) = std::env::var_os("SCHNELL_EMU_KERNELS") else {
            return Chosen { functions: LINKED, library: None };
        };
        // SAFETY: the library is of the same headers (module text); its initializers are those of C++ and a sanitizer.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.unwrap_or_else(|error| panic!("SCHNELL_EMU_KERNELS: {error}"));
        let named = (path, library);
        // SAFETY: the types are those of emulator.cpp and accesses.cpp.
        let functions = unsafe {
            Functions {
                set_runtime: function(&named, "schnell_emu_set_runtime"),
                set_hopper: function(&named, "schnell_emu_set_hopper"),
                set_self: function(&named, "schnell_emu_set_self"),
                get_self: function(&named, "schnell_emu_get_self"),
                install_accesses: named.1.get(b"schnell_accesses_install").ok().map(|found| *found),
            }
        };
        Chosen { functions, library: Some(named) }
    });

    /// The function called `name`.
    ///
    /// # Safety
    /// It is an `F`.
    unsafe fn function<F: Copy>(library: &(OsString, Library), name: &str) -> F {
        // SAFETY: the caller's.
        let found = unsafe { library.1.get::<F>(name.as_bytes()) };
        *found.unwrap_or_else(|error| panic!("SCHNELL_EMU_KERNELS={}: {error}", library.0.display()))
    }

    pub(super) fn functions() -> &'static Functions {
        &CHOSEN.functions
    }

    pub(super) fn entry(kernel: &Kernel) -> Entry {
        match &CHOSEN.library {
            // SAFETY: every entry point has this type.
            Some(library) => unsafe { function(library, kernel.name) },
            None => kernel.emulated,
        }
    }
}

/// The function that a launch of `kernel` calls.
pub(super) fn entry(kernel: &Kernel) -> Entry {
    chosen::entry(kernel)
}

/// Tells the kernels where the runtime is: `emu_runtime` of gpu.cuh.
///
/// # Safety
/// The table is one and never moves.
pub(super) unsafe fn set_runtime(table: *const c_void) {
    // SAFETY: stores the address.
    unsafe { (chosen::functions().set_runtime)(table) }
}

/// Tells them where the rest of it is: `emu_hopper` of gpu_sm90.cuh.
///
/// # Safety
/// As of [`set_runtime`].
pub(super) unsafe fn set_hopper(table: *const c_void) {
    // SAFETY: stores the address.
    unsafe { (chosen::functions().set_hopper)(table) }
}

/// What says which CUDA thread runs on this OS thread, or null; for keeping, since it is called each time a thread is resumed.
pub(super) fn self_setter() -> SetSelf {
    chosen::functions().set_self
}

/// The CUDA thread that runs on this OS thread, or null.
pub(super) fn get_self() -> *mut c_void {
    // SAFETY: reads a thread-local.
    unsafe { (chosen::functions().get_self)() }
}

/// Has the kernels tell of their accesses, after [`set_runtime`]; only where [`tells_of_accesses`].
pub(super) fn install_accesses(hook: Hook) {
    if let Some(install) = chosen::functions().install_accesses {
        // SAFETY: stores the address.
        unsafe { install(hook) }
    }
}

/// Whether the kernels were compiled to tell of their accesses (`scripts/sanitize accesses`).
pub(super) fn tells_of_accesses() -> bool {
    chosen::functions().install_accesses.is_some()
}
