//! What the host is doing, told while it does it: a span of `tracing` and, with feature `nvtx`, a range of NVTX, which Nsight Systems shows
//! above the kernels that were launched within.

use std::fmt;

use tracing::span::EnteredSpan;

/// Lasts until it is dropped, on the thread that began it; those that begin meanwhile lie within.
pub(super) struct Range {
    _span: EnteredSpan,
    #[cfg(feature = "nvtx")]
    _nvtx: nvtx::Range,
}

impl Range {
    /// Of something within a picture or a load.
    pub fn begin(what: fmt::Arguments<'_>) -> Range {
        Range::of(tracing::debug_span!("host", %what), what)
    }

    /// The outermost: of what a caller asked for.
    pub fn of(span: tracing::Span, what: fmt::Arguments<'_>) -> Range {
        #[cfg(not(feature = "nvtx"))]
        let _ = what;
        Range {
            _span: span.entered(),
            #[cfg(feature = "nvtx")]
            _nvtx: nvtx::Range::begin(what),
        }
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Range").finish_non_exhaustive()
    }
}

/// Two functions of NVTX 3, from the library that CUDA and Nsight Systems bring; without it nothing happens. (NVIDIA's own crate
/// needs libclang to be built.)
#[cfg(feature = "nvtx")]
mod nvtx {
    use std::ffi::{CString, c_char, c_int};
    use std::fmt;
    use std::marker::PhantomData;
    use std::sync::LazyLock;

    use libloading::Library;

    /// Of CUDA 13 and 12; the second has the same functions.
    const LIBRARIES: [&str; 4] =
        ["libnvtx3interop.so.1", "libnvtx3interop.so", "libnvToolsExt.so.1", "libnvToolsExt.so"];

    struct Functions {
        push: unsafe extern "C" fn(*const c_char) -> c_int,
        pop: unsafe extern "C" fn() -> c_int,
        /// They are its own.
        _library: Library,
    }

    static FUNCTIONS: LazyLock<Option<Functions>> = LazyLock::new(|| {
        let found = LIBRARIES.iter().find_map(|name| Functions::open(name).ok());
        // By this variable a profiler says that it listens.
        if found.is_none() && std::env::var_os("NVTX_INJECTION64_PATH").is_some() {
            tracing::warn!(
                "no ranges for the profiler: none of {LIBRARIES:?} was found; name its folder in LD_LIBRARY_PATH"
            );
        }
        found
    });

    impl Functions {
        fn open(name: &str) -> Result<Functions, libloading::Error> {
            // SAFETY: NVTX's library does nothing when it is loaded; the types are those of nvToolsExt.h.
            unsafe {
                let library = Library::new(name)?;
                let (push, pop) = (*library.get(b"nvtxRangePushA")?, *library.get(b"nvtxRangePop")?);
                Ok(Functions { push, pop, _library: library })
            }
        }
    }

    /// On the stack of the thread that began it.
    pub struct Range(PhantomData<*const ()>);

    impl Range {
        pub fn begin(what: fmt::Arguments<'_>) -> Range {
            if let Some(functions) = &*FUNCTIONS {
                let text = CString::new(what.to_string()).unwrap_or_default();
                // SAFETY: a string that ends in zero, which is copied.
                unsafe { (functions.push)(text.as_ptr()) };
            }
            Range(PhantomData)
        }
    }

    impl Drop for Range {
        fn drop(&mut self) {
            if let Some(functions) = &*FUNCTIONS {
                // SAFETY: takes no arguments; `begin` has pushed one on this thread.
                unsafe { (functions.pop)() };
            }
        }
    }
}
