//! The one way in and the one way out: every file that a user names, or that lies in a model's folder, is read through
//! `read.rs` and written through `write.rs`.
//!
//! In: a file is opened without waiting, must be a regular one (whatever links lead to it), and has a limit of bytes. An
//! optional file is absent only where there is no entry at all: a link that leads nowhere is damage.
//!
//! Out: [`Target`] tries before the work what [`Target::write`] does after it. Links are followed and stay; a regular file
//! gets its new content at once, by a temporary file in its folder that takes its name (hard links to the old one keep the
//! old content); what is no regular file is written through. Temporary files and folders go when they are dropped, and with
//! [`remove_temporaries`], which is for a program's handler of signals. [`WholeFolder`] is a folder that takes its name when all
//! of it is there.
//!
//! Weight files are read piece by piece, by whoever knows where the pieces are (`src/weights`), but through `read_exact_at` all the same:
//! what is opened or read here is what tests can make fail (`injection.rs`).

mod foreign;
#[cfg(feature = "check")]
mod injection;
mod read;
mod room;
mod temporary;
mod whole;
mod write;

pub(crate) use foreign::{FOREIGN_BYTES, foreign};
#[cfg(feature = "check")]
pub use injection::ReadFaults;
pub use read::{Kind, exists, open, read, read_json};
pub(crate) use read::{Reader, read_at, read_exact_at};
pub use room::free_bytes;
pub use temporary::{Temporary, remove_temporaries};
pub use whole::WholeFolder;
pub use write::{Growing, Target, write};
