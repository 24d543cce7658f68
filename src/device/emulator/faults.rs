//! Kernels that fault or never end: what would kill or hang the process becomes an error that names CTA, thread and line.
//!
//! A signal handler looks whether the fault happened on a fiber. If so it notes what and where, and lets the fiber end as
//! if the kernel had returned; the scheduler finds the note. Every other fault goes to whoever handled it before. A worker
//! whose kernel makes no progress is interrupted by a signal of its own (`pool.rs`) and ends in the same way.
//!
//! Under a sanitizer, which reports faults itself, only hangs are handled, and end the process.
//!
//! # Safety
//! The handler runs on the signal stack that std gives each of its threads. It calls nothing that allocates or locks: it
//! reads the worker's own thread-local and CTA, which the interrupted fiber was using and nobody else is.

use std::ffi::{c_int, c_void};
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
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
const FAULTS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

static PREVIOUS: OnceLock<Vec<(c_int, libc::sigaction)>> = OnceLock::new();

/// Puts the handler in place. Idempotent.
pub(super) fn install() {
    PREVIOUS.get_or_init(|| {
        let faults = if SANITIZER.exists() { &[][..] } else { &FAULTS };
        let signals = faults.iter().chain([&INTERRUPT]);
        signals
            .map(|&signal| {
                // SAFETY: plain structs of C, for which zero is a value; the handler is a function of the type that
                // SA_SIGINFO asks for.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = on_signal as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
                    let mut previous: libc::sigaction = std::mem::zeroed();
                    libc::sigaction(signal, &raw const action, &raw mut previous);
                    (signal, previous)
                }
            })
            .collect()
    });
}

/// Interrupts the kernel that `worker` runs; if it runs none, nothing happens.
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
        let previous = PREVIOUS.get().and_then(|all| all.iter().find(|(s, _)| *s == signal));
        match previous.map(|(_, action)| (action.sa_sigaction, action)) {
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
