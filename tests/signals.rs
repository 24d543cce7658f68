//! The process's signal handlers, which are the host program's: what the emulator puts in their place, and puts back.
//! One test, because they are one for all threads.

#![allow(unsafe_code)]

use schnell::device::{Device, EmulatorOptions};

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGURG];

extern "C" fn of_the_host(_: libc::c_int) {}

extern "C" fn put_over_it(_: libc::c_int) {}

fn handlers() -> [usize; 5] {
    SIGNALS.map(|signal| {
        // SAFETY: only asks, into a local; zero is a value of this plain struct.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            assert_eq!(libc::sigaction(signal, std::ptr::null(), &raw mut action), 0);
            action.sa_sigaction
        }
    })
}

fn emulator(no_signal_handlers: bool) -> Device {
    Device::emulator(EmulatorOptions { threads: 1, no_signal_handlers, ..EmulatorOptions::default() })
}

#[test]
fn handlers_are_put_back_and_may_be_declined() {
    // SAFETY: the handlers have the type that is asked for, and do nothing.
    unsafe { libc::signal(libc::SIGURG, of_the_host as *const () as usize) };
    let before = handlers();
    for _ in 0..2 {
        let declined = emulator(true);
        assert_eq!(handlers(), before, "declined");
        let (first, second) = (emulator(false), emulator(false));
        let memory = first.allocate(64).unwrap();
        let ours = handlers();
        // Under a sanitizer it is the only one: that has handlers of its own for faults.
        assert_ne!(ours[4], before[4]);
        drop((first, declined));
        assert_eq!(handlers(), ours, "memory keeps the first");
        drop(second);
        assert_eq!(handlers(), ours, "memory keeps the first");
        drop(memory);
        assert_eq!(handlers(), before, "after the last");
    }
    // What the host program has put in place meanwhile is not taken away.
    let device = emulator(false);
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGURG, put_over_it as *const () as usize) };
    drop(device);
    for _ in 0..2 {
        assert_eq!(handlers()[..4], before[..4]);
        assert_eq!(handlers()[4], put_over_it as *const () as usize);
        // Nor the next time: it may pass signals on to ours, which would pass them back.
        drop(emulator(false));
    }
}
