//! Files and folders that must not outlive the process.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::{Error, Result};

/// What their names begin with.
const PREFIX: &str = ".schnell.";

/// All that there are. Who creates, renames or removes one holds the lock, so that a signal's handler finds each either
/// made and listed, or neither.
static ALIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

pub(super) fn alive() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    ALIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A file or a folder that is removed when this is dropped.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    /// Of a file: locked as long as this process lives, so that others know that it is not abandoned.
    _lock: Option<File>,
}

impl Temporary {
    /// A new folder in the system's one for temporary files, for this user alone, with what `fill` puts into it.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made, and those of `fill`; then nothing is left.
    pub fn folder(fill: impl FnOnce(&Path) -> Result<()>) -> Result<Temporary> {
        let parent = std::env::temp_dir();
        // Under the lock until it is filled: whoever removes it does not race with whoever fills it.
        let mut alive = alive();
        let (path, ()) = fresh(&parent, |path| DirBuilder::new().mode(0o700).create(path))
            .map_err(Error::io("create", &parent))?;
        if let Err(error) = fill(&path) {
            let _ = std::fs::remove_dir_all(&path);
            return Err(error);
        }
        alive.insert(path.clone());
        Ok(Temporary { path, _lock: None })
    }

    /// A new, empty file in `folder`, of a short name that no other run has.
    pub(super) fn file(folder: &Path) -> std::io::Result<(Temporary, File)> {
        let mut alive = alive();
        let make = |path: &Path| {
            let file = OpenOptions::new().write(true).create_new(true).open(path)?;
            // Some file systems know no locks; there nothing counts as abandoned.
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                // Whoever clears what is abandoned came in between, and removes it.
                return Err(ErrorKind::AlreadyExists.into());
            }
            // Somebody else may have locked and removed it before.
            let is_there = path.metadata().is_ok_and(|found| {
                file.metadata().is_ok_and(|made| (made.dev(), made.ino()) == (found.dev(), found.ino()))
            });
            if is_there { Ok(file) } else { Err(ErrorKind::AlreadyExists.into()) }
        };
        let (path, file) = fresh(folder, make)?;
        alive.insert(path.clone());
        Ok((Temporary { path, _lock: file.try_clone().ok() }, file))
    }

    /// Removes what processes that were killed have left in `folder`, as far as that can be told and done.
    pub fn clear_abandoned(folder: &Path) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_ours = entry.file_name().to_str().is_some_and(is_a_name)
                && entry.file_type().is_ok_and(|found| found.is_file());
            let Some(file) = is_ours.then(|| File::open(entry.path()).ok()).flatten() else { continue };
            // It stays locked until it is gone: who has just made it and locks it next sees that.
            if file.try_lock().is_ok() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it the name `path`, in place of what had it; from then on it stays.
    pub(super) fn rename(self, path: &Path) -> std::io::Result<()> {
        let mut alive = alive();
        std::fs::rename(&self.path, path)?;
        alive.remove(&self.path);
        Ok(())
        // Dropped here: what is no longer listed is left alone. The lock is declared later, and so free by then.
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut alive = alive();
        if alive.remove(&self.path) {
            remove(&self.path);
        }
    }
}

/// Removes every temporary file and folder of this process. Later ones wait for ever, so that a handler of signals can end
/// the process next; call it from a thread of its own, not from the handler itself.
pub fn remove_temporaries() {
    let alive = alive();
    for path in alive.iter() {
        remove(path);
    }
    std::mem::forget(alive);
}

/// Whether [`fresh`] gives such names: `.schnell.<process>.<hex>.<count>`. What a user calls `.schnell.toml` is no such.
fn is_a_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let parts: Vec<&str> = rest.split('.').collect();
    let all = |part: &str, digit: fn(&u8) -> bool| !part.is_empty() && part.as_bytes().iter().all(digit);
    matches!(parts[..], [process, nanos, count]
        if all(process, u8::is_ascii_digit) && all(nanos, u8::is_ascii_hexdigit) && all(count, u8::is_ascii_digit))
}

/// What cannot be removed stays: nobody is left who could be told.
pub(super) fn remove(path: &Path) {
    let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let _ = if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// Makes something of a name that does not exist in `folder`.
fn fresh<T>(folder: &Path, make: impl Fn(&Path) -> std::io::Result<T>) -> std::io::Result<(PathBuf, T)> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Processes of several machines or containers may share the folder, and then even their ids.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = now.map_or(0, |now| now.subsec_nanos());
        let path = folder.join(format!("{PREFIX}{}.{nanos:x}.{count}", std::process::id()));
        match make(&path) {
            Ok(made) => return Ok((path, made)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}
