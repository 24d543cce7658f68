//! One error type, split by who can act on it: the caller ([`Error::Input`]), the owner of the model files
//! ([`Error::Weights`]), the owner of the memory ([`Error::Capacity`]), the choice of machine or build
//! ([`Error::Unsupported`]), the machine itself ([`Error::Device`], and [`Error::Poisoned`] from then on), the clock ([`Error::Deadline`]), the file system ([`Error::Io`]), the network
//! ([`Error::Network`]) and the authors of this crate ([`Error::Internal`]).
//!
//! Messages are lower case, say what was expected and what was found, and end with what to do about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a library said that this crate uses.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Everything that can go wrong. The variants say who can mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A prompt, size, flag or number that cannot be honored. The caller mends it.
    #[error("{}", shown(_0))]
    Input(String),

    /// A model folder, file or tensor that is missing, damaged or not what its config says.
    #[error("{}: {}", shown(&path.to_string_lossy()), shown(what))]
    Weights {
        /// The file (or folder) at fault.
        path: PathBuf,
        /// What is wrong with it: tensor, expected, got.
        what: String,
        /// The reason of whoever read it, where there is one; `what` has its words.
        source: Option<Cause>,
    },

    /// More memory, or room on a disk, is needed than there is or than the budget allows.
    #[error("{what} needs {}; {advice}", lack(*needed_bytes, *available_bytes))]
    Capacity {
        /// What wanted the memory.
        what: String,
        /// Bytes that it needs; 0 where nobody tells, as when the driver lacks memory for a context or a module.
        needed_bytes: u64,
        /// Bytes that the budget or the machine leaves; where it needs an unknown amount, 0 is unknown, too.
        available_bytes: u64,
        /// What the caller can change.
        advice: String,
    },

    /// A GPU, driver, model width or build that this crate has no code for.
    #[error("{}", shown(_0))]
    Unsupported(String),

    /// The machine refused or failed an operation.
    #[error("{operation} failed on {device}: {reason}")]
    Device {
        /// `cuda:0`, `emulator`.
        device: String,
        /// What was asked of it, with the kernel's name where there is one.
        operation: String,
        /// The driver's or the emulator's words.
        reason: String,
    },

    /// The machine has failed before in a way that leaves nothing on it to be trusted: nothing was computed, and nothing will be until
    /// [`Pipeline::recover`](crate::Pipeline::recover) or another load has opened it again.
    #[error("{device} is lost ({cause}); {advice}")]
    Poisoned {
        /// `cuda:0`, `emulator`.
        device: String,
        /// The operation that showed it, and the driver's or the emulator's words.
        cause: String,
        /// What the caller can do.
        advice: String,
    },

    /// Whoever was told of the progress wanted no more of it. What it stopped can be asked for again.
    #[error("stopped")]
    Stopped,

    /// A picture cannot be there by its deadline, and should not be drawn then. What is left of it is nothing; the pipeline can draw others.
    #[error(
        "the picture would take {:.1} ms, by what was known {when}, and shall take {:.1} ms; allow more time, fewer steps or a smaller \
         picture",
        needed.as_secs_f64() * 1e3,
        deadline.as_secs_f64() * 1e3
    )]
    Deadline {
        /// `before it was begun`, `before step 3`.
        when: String,
        /// From the request on, as far as could be told.
        needed: Duration,
        /// As it was asked for.
        deadline: Duration,
    },

    /// Numbers that are not finite where they were computed: weights that are damaged, or that bf16 is too narrow for.
    #[error("{count} numbers of {place} are not finite: the weights overflow bf16 or f32")]
    NotFinite {
        /// `the latents of step 0`, `the VAE's image`, ...
        place: String,
        /// How many.
        count: u64,
    },

    /// Two machines, or a machine and a reference, differ by more than is allowed.
    #[error("{0}")]
    Mismatch(String),

    /// What no caller of the public API can bring about: a plan that its own check refuses, a kernel called with what does not
    /// fit it.
    #[error("a fault of schnell that deserves a report: {0}")]
    Internal(String),

    /// A file that cannot be read or written.
    #[error("cannot {action} {}: {source}", shown(&path.to_string_lossy()))]
    Io {
        /// `read`, `write`, `create`, ...
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A server that cannot be reached, or sends what it should not. It may be otherwise later.
    #[error("{}", shown(_0))]
    Network(String),
}

/// Longest piece of a message in characters: files may hold names of megabytes.
const LONGEST: usize = 600;

/// Text for a terminal: much of it comes from files and arguments. Control characters are escaped, the middle of what is long
/// left out.
pub fn shown(text: &str) -> String {
    let escaped = |c: char| match c {
        // Line ends are our own, or harmless.
        '\n' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        // What turns the direction of writing, or joins the line unseen.
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' => {
            c.escape_unicode().to_string()
        }
        c => c.to_string(),
    };
    let len = text.chars().count();
    if len <= LONGEST {
        return text.chars().map(escaped).collect();
    }
    let half = LONGEST / 2;
    let start: String = text.chars().take(half).map(escaped).collect();
    let end: String = text.chars().skip(len - half).map(escaped).collect();
    format!("{start} [{} characters] {end}", len - 2 * half)
}

/// How much more memory than there is.
fn lack(needed_bytes: u64, available_bytes: u64) -> String {
    match (needed_bytes, available_bytes) {
        (0, 0) => "more memory than is free".to_string(),
        (0, _) => format!("more memory than the {available_bytes} bytes that are free"),
        _ => format!("{needed_bytes} bytes, but {available_bytes} are available"),
    }
}

impl Error {
    /// That the system gives this process no thread more.
    pub(crate) fn no_thread(source: &std::io::Error) -> Error {
        Error::Capacity {
            what: format!("a thread ({source})"),
            needed_bytes: 0,
            available_bytes: 0,
            advice:
                "free host memory, or allow this process more of it, or more threads (ulimit -v, -u, cgroups)"
                    .to_string(),
        }
    }

    /// An [`Error::Weights`] about `path`.
    #[doc(hidden)]
    pub fn weights(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Weights { path: path.as_ref().to_path_buf(), what: what.into(), source: None }
    }

    /// An [`Error::Network`].
    #[cfg(feature = "fetch")]
    pub(crate) fn network(what: impl Into<String>) -> Self {
        Error::Network(what.into())
    }

    /// Keeps the `cause` of an [`Error::Weights`], whose text it is in.
    pub(crate) fn because(mut self, cause: impl Into<Cause>) -> Self {
        if let Error::Weights { source, .. } = &mut self {
            *source = Some(cause.into());
        }
        self
    }

    /// An [`Error::Io`]: `Error::io("read", &path)` is meant for `map_err`.
    #[doc(hidden)]
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// The process exit code that the command line gives for this error; documented in the README.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input(_) => 2,
            Error::Weights { .. } | Error::NotFinite { .. } => 3,
            Error::Capacity { .. } => 4,
            Error::Unsupported(_) => 5,
            Error::Device { .. } => 6,
            Error::Io { .. } => 7,
            Error::Internal(_) => 8,
            Error::Stopped => 9,
            Error::Mismatch(_) => 10,
            Error::Network(_) => 11,
            Error::Deadline { .. } => 12,
            Error::Poisoned { .. } => 13,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_files_neither_steers_the_terminal_nor_fills_it() {
        let shown = |what: &str| Error::weights("a\u{1b}[2Jb", what).to_string();
        assert_eq!(shown("tensor x\0y\u{202e}"), "a\\u{1b}[2Jb: tensor x\\u{0}y\\u{202e}");
        let long = shown(&format!("tensor {} is missing", "\u{e9}".repeat(1 << 20)));
        assert!(long.chars().count() < 700, "{} characters", long.chars().count());
        assert!(
            long.starts_with("a\\u{1b}[2Jb: tensor \u{e9}") && long.ends_with("\u{e9} is missing"),
            "{long}"
        );
        assert!(Error::Input("\u{7}".to_string()).to_string() == "\\u{7}");
        assert!(Error::Unsupported("\u{7}".to_string()).to_string() == "\\u{7}");
    }

    #[test]
    fn the_reason_of_another_library_is_kept() {
        use std::error::Error as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{").unwrap();
        let read = crate::files::read_json::<serde_json::Value>(&path, crate::files::Kind::Config);
        let error = read.unwrap_err();
        let source = error.source().unwrap();
        assert!(source.downcast_ref::<serde_json::Error>().is_some(), "{source}");
        assert!(error.to_string().contains(&source.to_string()), "{error}");
        let missing = crate::files::read(&dir.path().join("none"), crate::files::Kind::Config).unwrap_err();
        assert!(missing.source().unwrap().downcast_ref::<std::io::Error>().is_some());
    }

    #[test]
    fn numbers_that_nobody_told_are_not_made_up() {
        let text = |needed_bytes, available_bytes| {
            let (what, advice) = ("a context".to_string(), "free some".to_string());
            Error::Capacity { what, needed_bytes, available_bytes, advice }.to_string()
        };
        assert_eq!(text(8, 0), "a context needs 8 bytes, but 0 are available; free some");
        assert_eq!(text(0, 7), "a context needs more memory than the 7 bytes that are free; free some");
        assert_eq!(text(0, 0), "a context needs more memory than is free; free some");
    }
}
