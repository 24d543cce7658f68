//! Temporary files go when the command is stopped.

use libc::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGPWR, SIGQUIT, SIGSTKFLT, SIGTERM, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGXCPU, SIGXFSZ,
};
use std::sync::OnceLock;

use signal_hook::iterator::Signals;

use crate::terminal;

/// What a user who stops the command should know.
static LAST_WORDS: OnceLock<String> = OnceLock::new();

/// Those that end a process and may be caught; not those of faults, which the emulator handles.
const ENDING: [i32; 13] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGPROF, SIGIO, SIGPWR,
    SIGSTKFLT,
];

/// Lets `text` be the last line of a command that a signal ends.
pub fn say_before_the_end(text: String) {
    let _ = LAST_WORDS.set(text);
}

/// Waits for signals on a thread of its own, but for those that the command hears itself. A signal that the parent has told to ignore,
/// as `nohup` does, stays ignored.
pub fn watch(but: &[i32]) {
    let ignored = ignored();
    let is_ours = |signal: &i32| ignored & (1 << (signal - 1)) == 0 && !but.contains(signal);
    let heard = ENDING.into_iter().filter(is_ours);
    // A file that grows beyond a limit is an error of the write once somebody hears the signal.
    let _ = signal_hook::flag::register(SIGXFSZ, Default::default());
    // Without the watch the command still works, but may leave files behind.
    let Ok(mut signals) = Signals::new(heard) else { return };
    let _ = std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            schnell::files::remove_temporaries();
            if let Some(text) = LAST_WORDS.get() {
                terminal::say(text);
            }
            // Ends the process as the signal alone would have.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            std::process::exit(128 + signal);
        }
    });
}

/// The mask of ignored signals, bit 0 being signal 1.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
