//! Kernels that fault or never end: what would kill or hang the process becomes an error that names CTA, thread and line.
//!
//! A signal handler looks whether the fault happened on a fiber. If so it notes what and where, and lets the fiber end as
//! if the kernel had returned; the scheduler finds the note. Every other fault goes to whoever handled it before. A worker
//! whose kernel makes no progress is interrupted by a signal of its own (`pool.rs`) and ends in the same way.
//!
//! Signal handlers are the process's, and the host program may have its own: ours is in place while an emulator lives that
//! was not told to do without ([`super::EmulatorOptions::no_signal_handlers`]), and then those before it are again.
//!
//! Under a sanitizer, which reports faults itself, only hangs are handled, and end the process.
//!
//! # Safety
//! The handler runs on the signal stack that std gives each of its threads. It calls nothing that allocates or locks: it
//! reads the worker's own thread-local and CTA, which the interrupted fiber was using and nobody else is.

use std::ffi::{c_int, c_void};
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread::JoinHandle;

use super::runtime::{self, Site};
use super::sanitizer::SANITIZER;

/// Why a fiber was ended from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    signal: c_int,
    /// That could not be accessed; `None` for one that no pointer may have, which the processor does not tell.
    address: Option<usize>,
    /// Of the instruction.
    pc: usize,
}

/// Interrupts a worker: ignored by default, and seldom used by anyone else.
const INTERRUPT: c_int = libc::SIGURG;
/// `si_code` of a fault that has no address (asm-generic/siginfo.h).
const SI_KERNEL: c_int = 0x80;
/// What is handled: faults, and last the interrupt.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, INTERRUPT];

/// Who wants the handler in place.
struct Users {
    emulators: usize,
    /// Handlers that the host program put over ours, in the order of [`SIGNALS`]; 0 for none.
    over_ours: [usize; SIGNALS.len()],
}

static USERS: Mutex<Users> = Mutex::new(Users { emulators: 0, over_ours: [0; SIGNALS.len()] });

/// What was in place before, in the order of [`SIGNALS`]; null before the first emulator. The handler reads these without a
/// lock, so what one pointed to is never freed.
static PREVIOUS: [AtomicPtr<libc::sigaction>; SIGNALS.len()] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; SIGNALS.len()];

/// The handler is in place while one of these lives.
#[derive(Debug)]
pub(super) struct Handler(());

impl Handler {
    /// Puts it in place, if it is not.
    pub fn install() -> Handler {
        let mut users = USERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        users.emulators += 1;
        if users.emulators > 1 {
            return Handler(());
        }
        for place in ours() {
            let (signal, found) = (SIGNALS[place], in_place(SIGNALS[place]));
            // It may pass signals on to ours: over it, ours would pass them back without end.
            if is_ours(&found)
                || (users.over_ours[place] != 0 && found.sa_sigaction == users.over_ours[place])
            {
                continue;
            }
            users.over_ours[place] = 0;
            // Known before the handler is in place, which may run at once.
            remember(&PREVIOUS[place], found);
            let mut action = nothing();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            // SAFETY: the handler is a function of the type that SA_SIGINFO asks for, in a struct that is whole.
            unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        }
        Handler(())
    }
}

impl Drop for Handler {
    /// The last one puts back what was in place before. Where the host program has put a handler over ours since, that one
    /// stays, and ours behind it, which goes on to pass signals on.
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        users.emulators -= 1;
        if users.emulators > 0 {
            return;
        }
        for place in ours() {
            let found = in_place(SIGNALS[place]);
            let previous = PREVIOUS[place].load(Ordering::Acquire);
            if !is_ours(&found) {
                // SIG_DFL is nothing over ours.
                users.over_ours[place] = found.sa_sigaction;
            } else if !previous.is_null() {
                // SAFETY: `previous` was told by the system, and is never freed.
                unsafe { libc::sigaction(SIGNALS[place], previous, std::ptr::null_mut()) };
            }
        }
    }
}

/// The signals that are handled in this build, by their places: a sanitizer has handlers of its own for faults.
fn ours() -> std::ops::Range<usize> {
    if SANITIZER.exists() { SIGNALS.len() - 1..SIGNALS.len() } else { 0..SIGNALS.len() }
}

fn nothing() -> libc::sigaction {
    // SAFETY: a plain struct of C, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn in_place(signal: c_int) -> libc::sigaction {
    let mut action = nothing();
    // SAFETY: only asks; the out-pointer is a local.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    action
}

fn is_ours(action: &libc::sigaction) -> bool {
    action.sa_sigaction == on_signal as *const () as usize
}

/// Keeps `action` for the handler; what was kept before stays allocated, and serves again if it is the same.
fn remember(slot: &AtomicPtr<libc::sigaction>, action: libc::sigaction) {
    // SAFETY: null, or what an earlier call leaked.
    let known = unsafe { slot.load(Ordering::Acquire).as_ref() };
    let same = |known: &libc::sigaction| {
        // SAFETY: both masks were told by the system.
        let masks =
            |n| unsafe { libc::sigismember(&known.sa_mask, n) == libc::sigismember(&action.sa_mask, n) };
        (known.sa_sigaction, known.sa_flags) == (action.sa_sigaction, action.sa_flags) && (1..=64).all(masks)
    };
    if !known.is_some_and(same) {
        slot.store(Box::leak(Box::new(action)), Ordering::Release);
    }
}

/// Interrupts the kernel that `worker` runs; if it runs none, nothing happens. The caller has a [`Handler`].
pub(super) fn interrupt(worker: &JoinHandle<()>) {
    // SAFETY: the thread has not been joined, so its handle is valid.
    unsafe { libc::pthread_kill(worker.as_pthread_t(), INTERRUPT) };
}

unsafe extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid pointers; the rest is the module's text.
    unsafe {
        let registers = Registers(context.cast());
        if let Some(fiber) = runtime::fiber_at(registers.sp())
            && (signal != INTERRUPT || fiber.interrupted.swap(false, Ordering::Relaxed))
        {
            if SANITIZER.exists() {
                super::sanitizer::say("the kernel makes no progress");
                libc::_exit(66);
            }
            let told = (*info).si_code != SI_KERNEL;
            let address = told.then(|| (*info).si_addr() as usize);
            *fiber.fault = Some(Fault { signal, address, pc: registers.pc() });
            registers.set(&fiber.handler.setup_trap_handler(|| ()));
            return;
        }
        let place = SIGNALS.iter().position(|known| *known == signal);
        let previous = place.and_then(|place| PREVIOUS[place].load(Ordering::Acquire).as_ref());
        match previous.map(|action| (action.sa_sigaction, action)) {
            None | Some((libc::SIG_IGN, _)) => {}
            Some((libc::SIG_DFL, _)) if signal == INTERRUPT => {}
            Some((libc::SIG_DFL, action)) => {
                // The instruction faults again and ends the process.
                libc::sigaction(signal, action, std::ptr::null_mut());
            }
            Some((handler, action)) if action.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
            Some((handler, _)) => {
                let handler: unsafe extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

/// The registers of the interrupted instruction.
struct Registers(*mut libc::ucontext_t);

#[cfg(target_arch = "x86_64")]
impl Registers {
    unsafe fn get(&self, register: c_int) -> usize {
        // SAFETY: the context that the handler received.
        unsafe { (*self.0).uc_mcontext.gregs[register as usize] as usize }
    }

    unsafe fn sp(&self) -> usize {
        // SAFETY: as above.
        unsafe { self.get(libc::REG_RSP) }
    }

    unsafe fn pc(&self) -> usize {
        // SAFETY: as above.
        unsafe { self.get(libc::REG_RIP) }
    }

    unsafe fn set(&self, new: &corosensei::trap::TrapHandlerRegs) {
        let new = [
            (libc::REG_RIP, new.rip),
            (libc::REG_RSP, new.rsp),
            (libc::REG_RBP, new.rbp),
            (libc::REG_RDI, new.rdi),
            (libc::REG_RSI, new.rsi),
        ];
        for (register, value) in new {
            // SAFETY: as above.
            unsafe { (*self.0).uc_mcontext.gregs[register as usize] = value as i64 };
        }
    }
}

#[cfg(target_arch = "aarch64")]
impl Registers {
    unsafe fn sp(&self) -> usize {
        // SAFETY: the context that the handler received.
        unsafe { (*self.0).uc_mcontext.sp as usize }
    }

    unsafe fn pc(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.0).uc_mcontext.pc as usize }
    }

    unsafe fn set(&self, new: &corosensei::trap::TrapHandlerRegs) {
        // SAFETY: as above.
        unsafe {
            let context = &mut (*self.0).uc_mcontext;
            context.pc = new.pc;
            context.sp = new.sp;
            context.regs[0] = new.x0;
            context.regs[1] = new.x1;
            context.regs[29] = new.x29;
            context.regs[30] = new.lr;
        }
    }
}

impl Fault {
    /// In words, with the place in the source; `stack` is the fiber's, `near` says what is known of an address.
    pub fn describe(&self, stack: std::ops::Range<usize>, near: impl Fn(usize) -> String) -> String {
        let what = match self.signal {
            INTERRUPT => "makes no progress: an endless loop without a barrier".to_string(),
            libc::SIGFPE => "divides an integer by zero".to_string(),
            libc::SIGILL => "reached what the compiler took for unreachable".to_string(),
            _ => match self.address {
                None => "accesses an address that no memory can have".to_string(),
                // The pages below the stack, into which a probe of a large frame may reach.
                Some(at) if (stack.start.saturating_sub(1 << 20)..stack.start + 4096).contains(&at) => {
                    format!("has more than {} bytes of locals", stack.len())
                }
                Some(at) => format!("accesses {at:#x}, {}", near(at)),
            },
        };
        format!("at {}: {what}", source_line(self.pc))
    }
}

/// `file:line` of an instruction, of the innermost function that was inlined there.
fn source_line(pc: usize) -> String {
    let mut place = None;
    // It looks one byte before the address, taking it for a return address.
    backtrace::resolve((pc + 1) as *mut c_void, |symbol| {
        if let (None, Some(file), Some(line)) = (&place, symbol.filename(), symbol.lineno()) {
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            place = Some(format!("{file}:{line}"));
        }
    });
    place.unwrap_or_else(|| Site::NOWHERE.to_string())
}
