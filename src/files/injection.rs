//! Reads that fail where a test wants it: see `device/injection.rs`, which does the same for machines.
//!
//! Threads of a pipeline read, several tests at a time: so faults are those of a folder, and each test has one of its own.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Opening and reading files in a folder, and below it, as long as this lives.
#[derive(Debug)]
pub struct ReadFaults(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    armed: Mutex<Armed>,
}

#[derive(Debug, Default)]
struct Armed {
    /// Which one fails, and whether each after it does.
    due: Option<(u64, bool)>,
    count: u64,
    fired: bool,
}

static FOLDERS: Mutex<Vec<Arc<Folder>>> = Mutex::new(Vec::new());
/// As many; so that nobody waits where there is none.
static NUM_FOLDERS: AtomicUsize = AtomicUsize::new(0);

fn folders() -> MutexGuard<'static, Vec<Arc<Folder>>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Folder {
    fn lock(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadFaults {
    /// Nothing fails yet.
    pub fn under(folder: &Path) -> ReadFaults {
        let folder = Arc::new(Folder { path: folder.to_path_buf(), armed: Mutex::default() });
        folders().push(folder.clone());
        NUM_FOLDERS.fetch_add(1, Ordering::SeqCst);
        ReadFaults(folder)
    }

    /// The `nth` from now on fails, counted from 0; if it `lasts`, so does each after it.
    pub fn arm(&self, nth: u64, lasts: bool) {
        *self.0.lock() = Armed { due: Some((nth, lasts)), ..Armed::default() };
    }

    /// Nothing fails any more; whether something did.
    pub fn clear(&self) -> bool {
        std::mem::take(&mut *self.0.lock()).fired
    }

    /// How many there were since somebody armed or cleared.
    pub fn count(&self) -> u64 {
        self.0.lock().count
    }
}

impl Drop for ReadFaults {
    fn drop(&mut self) {
        folders().retain(|folder| !Arc::ptr_eq(folder, &self.0));
        NUM_FOLDERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the system says when `path` is opened or read, if it is its turn.
pub(super) fn due(path: &Path) -> Result<()> {
    if NUM_FOLDERS.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    let folder = folders().iter().find(|folder| path.starts_with(&folder.path)).cloned();
    let Some(folder) = folder else { return Ok(()) };
    let mut armed = folder.lock();
    let count = armed.count;
    armed.count += 1;
    if armed.due.is_some_and(|(nth, lasts)| count == nth || lasts && count > nth) {
        armed.fired = true;
        return Err(Error::from_raw_os_error(libc::EIO));
    }
    Ok(())
}
