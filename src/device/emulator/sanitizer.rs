//! Where kernels run under AddressSanitizer or ThreadSanitizer (`scripts/sanitize`), what those must be told: that CUDA
//! threads are fibers, what memory a launch may touch, and what orders memory accesses.
//!
//! Only the kernels are instrumented, this runtime never is: it looks the sanitizers' functions up when the process
//! starts and finds none in an ordinary run, where all of this does nothing.
//!
//! How a CTA looks to ThreadSanitizer: each CUDA thread is a fiber of its own, switched to without ordering anything.
//! Order comes from barriers alone (`release` on arrival, `acquire` on leaving), from launches, and, for a `cp.async`, from
//! its issue and the wait for its group. The copy itself is made by a second fiber, the thread's copy engine, since nothing
//! else orders it. Shuffles, `ldmatrix` and `mma` order nothing.
//!
//! # Safety
//! The functions have the signatures of sanitizer/{asan,common,tsan}_interface.h and are called by one OS thread for its
//! own fibers only.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::LazyLock;

/// What is there.
pub(super) static SANITIZER: LazyLock<Sanitizer> = LazyLock::new(Sanitizer::find);

pub(super) struct Sanitizer {
    pub address: Option<Address>,
    pub thread: Option<Thread>,
}

#[derive(Clone, Copy)]
pub(super) struct Address {
    poison: unsafe extern "C" fn(*const c_void, usize),
    unpoison: unsafe extern "C" fn(*const c_void, usize),
    start_switch: unsafe extern "C" fn(*mut *mut c_void, *const c_void, usize),
    finish_switch: unsafe extern "C" fn(*mut c_void, *mut *const c_void, *mut usize),
}

#[derive(Clone, Copy)]
pub(super) struct Thread {
    current: unsafe extern "C" fn() -> *mut c_void,
    create: unsafe extern "C" fn(u32) -> *mut c_void,
    destroy: unsafe extern "C" fn(*mut c_void),
    switch_to: unsafe extern "C" fn(*mut c_void, u32),
    acquire: unsafe extern "C" fn(*const c_void),
    release: unsafe extern "C" fn(*const c_void),
    read_range: unsafe extern "C" fn(*const c_void, usize),
    write_range: unsafe extern "C" fn(*const c_void, usize),
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn write(file: c_int, bytes: *const c_void, count: usize) -> isize;
}

/// The function called `name` that some loaded library has.
///
/// # Safety
/// `F` is that function's type.
unsafe fn find<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "a function pointer") };
    // SAFETY: a null handle searches all loaded libraries; a non-null result is the function.
    unsafe {
        let found = dlsym(std::ptr::null_mut(), name.as_ptr());
        (!found.is_null()).then(|| std::mem::transmute_copy::<*mut c_void, F>(&found))
    }
}

impl Sanitizer {
    pub fn exists(&self) -> bool {
        self.address.is_some() || self.thread.is_some()
    }

    fn find() -> Sanitizer {
        // SAFETY: the types are those of the interface headers.
        unsafe {
            let address = || {
                Some(Address {
                    poison: find(c"__asan_poison_memory_region")?,
                    unpoison: find(c"__asan_unpoison_memory_region")?,
                    start_switch: find(c"__sanitizer_start_switch_fiber")?,
                    finish_switch: find(c"__sanitizer_finish_switch_fiber")?,
                })
            };
            let thread = || {
                Some(Thread {
                    current: find(c"__tsan_get_current_fiber")?,
                    create: find(c"__tsan_create_fiber")?,
                    destroy: find(c"__tsan_destroy_fiber")?,
                    switch_to: find(c"__tsan_switch_to_fiber")?,
                    acquire: find(c"__tsan_acquire")?,
                    release: find(c"__tsan_release")?,
                    read_range: find(c"__tsan_read_range")?,
                    write_range: find(c"__tsan_write_range")?,
                })
            };
            let (address, thread) = (address(), thread());
            if address.is_some() || thread.is_some() {
                type SetCallback = unsafe extern "C" fn(unsafe extern "C" fn());
                if let Some(set) = find::<SetCallback>(c"__sanitizer_set_death_callback") {
                    set(say_where);
                }
            }
            Sanitizer { address, thread }
        }
    }
}

/// The last words of a process that a sanitizer ends: which CTA and thread of which kernel it was in.
unsafe extern "C" fn say_where() {
    say("");
}

/// One line on the standard error: what happened, and where.
pub(super) fn say(what: &str) {
    let place =
        super::runtime::running().unwrap_or_else(|| "no kernel was running on this thread".to_string());
    let line = format!("==schnell== {what}{}{place}\n", if what.is_empty() { "" } else { ": " });
    // SAFETY: writes bytes that are alive to the standard error.
    unsafe { write(2, line.as_ptr().cast(), line.len()) };
}

impl Address {
    /// From now on every access to these bytes is an error.
    pub fn poison(&self, at: *const u8, bytes: usize) {
        // SAFETY: marks memory in the sanitizer's own tables.
        unsafe { (self.poison)(at.cast(), bytes) }
    }

    /// Takes [`Address::poison`] back.
    pub fn unpoison(&self, at: *const u8, bytes: usize) {
        // SAFETY: as above.
        unsafe { (self.unpoison)(at.cast(), bytes) }
    }
}

/// What AddressSanitizer keeps of a stack that is not running, and the stack's extent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    pub fake: *mut c_void,
    pub bottom: *const c_void,
    pub bytes: usize,
}

impl Stack {
    pub const UNKNOWN: Stack = Stack { fake: std::ptr::null_mut(), bottom: std::ptr::null(), bytes: 0 };
}

impl Sanitizer {
    /// Before a switch from the stack `from` to the stack `to`.
    pub fn leave(&self, from: &mut Stack, to: &Stack) {
        if let Some(address) = &self.address {
            // SAFETY: `from` outlives the switch; `to` is a fiber's stack, or the worker's as `arrive` reported it.
            unsafe { (address.start_switch)(&raw mut from.fake, to.bottom, to.bytes) }
        }
    }

    /// After a switch to the stack `here`; fills in the extent of the stack `from` that was left.
    pub fn arrive(&self, here: &Stack, from: &mut Stack) {
        if let Some(address) = &self.address {
            // SAFETY: `here.fake` is what the matching `leave` stored, or null on a fresh stack.
            unsafe { (address.finish_switch)(here.fake, &raw mut from.bottom, &raw mut from.bytes) }
        }
    }
}

/// A fiber as ThreadSanitizer knows it; null where there is none.
#[derive(Debug)]
pub(super) struct Fiber(*mut c_void);

impl Default for Fiber {
    fn default() -> Fiber {
        Fiber::NONE
    }
}

impl Fiber {
    pub const NONE: Fiber = Fiber(std::ptr::null_mut());

    pub fn create() -> Fiber {
        // SAFETY: no precondition.
        SANITIZER.thread.as_ref().map_or(Fiber::NONE, |t| Fiber(unsafe { (t.create)(0) }))
    }

    /// The one that is running.
    pub fn current() -> Fiber {
        // SAFETY: no precondition.
        SANITIZER.thread.as_ref().map_or(Fiber::NONE, |t| Fiber(unsafe { (t.current)() }))
    }

    pub fn exists(&self) -> bool {
        !self.0.is_null()
    }

    /// Continues as this fiber; orders nothing.
    pub fn switch_to(&self) {
        const NO_SYNC: u32 = 1;
        if let Some(t) = SANITIZER.thread.as_ref().filter(|_| self.exists()) {
            // SAFETY: the fiber is alive and not running on another OS thread.
            unsafe { (t.switch_to)(self.0, NO_SYNC) }
        }
    }

    /// Forgets the fiber, which is not the running one.
    pub fn destroy(&mut self) {
        if let Some(t) = SANITIZER.thread.as_ref().filter(|_| self.exists()) {
            // SAFETY: the fiber is alive and never used again.
            unsafe { (t.destroy)(self.0) }
        }
        *self = Fiber::NONE;
    }
}

/// Everything the running fiber did so far comes before what follows an [`acquire`] of `at`.
pub(super) fn release<T>(at: *const T) {
    if let Some(t) = &SANITIZER.thread {
        // SAFETY: the address is a name for the sanitizer, which does not look at what is there.
        unsafe { (t.release)(at.cast()) }
    }
}

/// See [`release`].
pub(super) fn acquire<T>(at: *const T) {
    if let Some(t) = &SANITIZER.thread {
        // SAFETY: as above.
        unsafe { (t.acquire)(at.cast()) }
    }
}

/// The running fiber reads here.
pub(super) fn reads(at: *const u8, bytes: usize) {
    if let Some(t) = SANITIZER.thread.as_ref().filter(|_| bytes > 0) {
        // SAFETY: notes an access.
        unsafe { (t.read_range)(at.cast(), bytes) }
    }
}

/// The running fiber writes here.
pub(super) fn writes(at: *const u8, bytes: usize) {
    if let Some(t) = SANITIZER.thread.as_ref().filter(|_| bytes > 0) {
        // SAFETY: notes an access.
        unsafe { (t.write_range)(at.cast(), bytes) }
    }
}
