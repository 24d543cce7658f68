//! What a machine runs: kernels, how they are launched, and params.

use std::ffi::c_void;

/// A kernel entry point, as both machines need it. The wrappers in [`crate::kernels`] define these as statics, and only
/// they can: what a kernel holds is loaded by the driver and called as it is.
///
/// ```
/// let kernel = &schnell::kernels::conv2d::CONV2D;
/// assert_eq!((kernel.stem(), kernel.threads()), ("conv2d", 128));
/// ```
///
/// ```compile_fail
/// unsafe extern "C" fn nothing(_: *const std::ffi::c_void) {}
/// static MINE: schnell::device::Kernel = schnell::device::Kernel {
///     stem: "mine", name: "mine", image: b"any bytes", emulated: nothing, threads: 32, smem_bytes: 0,
/// };
/// ```
pub struct Kernel {
    /// The file in `kernels/`, without its ending; one module each.
    pub(crate) stem: &'static str,
    /// The `extern "C"` entry.
    pub(crate) name: &'static str,
    /// The module's fatbin, which nvcc wrote; empty when the crate was built without nvcc.
    #[cfg(feature = "cuda")]
    pub(crate) image: &'static [u8],
    /// The entry compiled for the host.
    #[cfg(feature = "emulator")]
    pub(crate) emulated: unsafe extern "C" fn(*const c_void),
    /// CTA size.
    pub(crate) threads: u32,
    /// Dynamic shared memory per CTA.
    pub(crate) smem_bytes: u32,
}

impl Kernel {
    /// The file in `kernels/`, without its ending.
    pub fn stem(&self) -> &'static str {
        self.stem
    }

    /// The `extern "C"` entry.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// CTA size.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Dynamic shared memory per CTA.
    pub fn smem_bytes(&self) -> u32 {
        self.smem_bytes
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// How a problem is launched. A kernel with several entry points has a `select` that finds it from the problem and the
/// [`Capability`](super::Capability) alone, never from memory or what else runs: the same problem is the same bits under every budget.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The entry point: tile, stages and variant are compiled in.
    pub kernel: &'static Kernel,
    /// CTAs.
    pub grid: [u32; 3],
}

impl PartialEq for Config {
    fn eq(&self, other: &Config) -> bool {
        std::ptr::eq(self.kernel, other.kernel) && self.grid == other.grid
    }
}

impl std::fmt::Display for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Config { kernel, grid: [x, y, z] } = self;
        f.pad(&format!("{kernel:?} {x}x{y}x{z} of {}, {} B", kernel.threads, kernel.smem_bytes))
    }
}

/// A kernel's params struct, kept.
#[derive(Clone)]
pub(crate) struct Params {
    lines: Box<[ParamsLine]>,
    /// Size of the struct.
    pub bytes: usize,
}

/// A piece of a params struct: as aligned as the most demanding member, a tensor map.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct ParamsLine([u64; 8]);

impl Params {
    /// A copy of the `bytes` bytes at `params`.
    ///
    /// # Safety
    /// They can be read.
    pub unsafe fn copy(params: *const c_void, bytes: usize) -> Params {
        let mut lines = vec![ParamsLine([0; 8]); bytes.div_ceil(size_of::<ParamsLine>())].into_boxed_slice();
        // SAFETY: the caller's promise, and `lines` is at least as large.
        unsafe { std::ptr::copy_nonoverlapping(params.cast::<u8>(), lines.as_mut_ptr().cast::<u8>(), bytes) };
        Params { lines, bytes }
    }

    /// Of the params struct.
    pub fn as_ptr(&self) -> *const c_void {
        self.lines.as_ptr().cast()
    }
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes)
    }
}
