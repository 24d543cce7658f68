//! The cache of the Hugging Face tools, as one writes to it. For a repository `org/name` there is
//!
//! ```text
//! .locks/models--org--name/<digest>.lock            held (flock) by who fetches that file
//! models--org--name/blobs/<digest>                  a whole file, checked
//! models--org--name/blobs/<digest>.incomplete       what has arrived of one
//! models--org--name/snapshots/<commit>/<path>       a link to a blob
//! models--org--name/refs/<revision>                 a commit
//! ```
//!
//! These are the names that huggingface_hub uses, so that what either begins the other goes on with.
//!
//! The order makes half a model visible to nobody. A blob has its name once it is whole, checked and on the disk. Links come
//! after all blobs, that of `model_index.json`, without which no folder counts as a model, after the others, and the
//! revision after the links. Nothing is written that is there already: a complete cache may be read-only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::listing::{Digest, Wanted};
use crate::weights::hub;
use crate::{Error, Result, files};

/// Between two looks at a lock that somebody else holds.
const LOOK: Duration = Duration::from_millis(100);

pub(super) struct Store {
    cache: PathBuf,
    repo: PathBuf,
    locks: PathBuf,
}

impl Store {
    pub(super) fn new(cache: &Path, id: &str) -> Store {
        let name = hub::folder_name(id);
        Store { cache: cache.to_path_buf(), repo: cache.join(&name), locks: cache.join(".locks").join(&name) }
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.repo.join("blobs").join(digest.hex())
    }

    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.repo.join("blobs").join(format!("{}.incomplete", digest.hex()))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.join("snapshots").join(commit)
    }

    /// Whether all of a file is there. What has its name but not its size is none.
    pub(super) fn has(&self, wanted: &Wanted) -> bool {
        let found = std::fs::metadata(self.blob(&wanted.digest));
        found.is_ok_and(|found| found.is_file() && found.len() == wanted.bytes)
    }

    /// Bytes of a file that have arrived.
    pub(super) fn arrived(&self, wanted: &Wanted) -> u64 {
        if self.has(wanted) {
            return wanted.bytes;
        }
        let partial = std::fs::symlink_metadata(self.partial(&wanted.digest));
        partial.map_or(0, |found| found.len().min(wanted.bytes))
    }

    /// Waits until nobody else fetches this file, and holds the lock for as long as what this returns lives: a process that
    /// dies gives it back. `waiting` is called now and then meanwhile.
    pub(super) fn lock(&self, digest: &Digest, mut waiting: impl FnMut() -> Result<()>) -> Result<File> {
        for folder in [&self.locks, &self.repo.join("blobs")] {
            std::fs::create_dir_all(folder).map_err(disk("create", folder))?;
        }
        let path = self.locks.join(format!("{}.lock", digest.hex()));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(disk("write", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    waiting()?;
                    std::thread::sleep(LOOK);
                }
                // A file system without locks: two at a time cost time, but a digest that is wrong is noticed.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(disk("lock", &path)(e)),
            }
        }
    }

    /// Gives what has arrived, and was checked, its name. The lock is held.
    pub(super) fn publish(&self, digest: &Digest, file: &File) -> Result<()> {
        let (partial, blob) = (self.partial(digest), self.blob(digest));
        // After a power cut the name must not be there without the bytes.
        file.sync_all().map_err(disk("write", &partial))?;
        std::fs::rename(&partial, &blob).map_err(disk("write", &blob))
    }

    /// The snapshot of `commit` with a link to each of these files, in their order.
    pub(super) fn link(&self, commit: &str, wanted: &[Wanted]) -> Result<()> {
        let snapshot = self.snapshot(commit);
        for file in wanted {
            let link = snapshot.join(&file.path);
            let folder = link.parent().unwrap_or(&snapshot);
            // As the tools do, so that a cache can be moved.
            let up = "../".repeat(2 + file.path.split('/').count() - 1);
            let to = PathBuf::from(format!("{up}blobs/{}", file.digest.hex()));
            if std::fs::read_link(&link).is_ok_and(|there| there == to) {
                continue;
            }
            std::fs::create_dir_all(folder).map_err(disk("create", folder))?;
            self.replace(&link, |fresh| std::os::unix::fs::symlink(&to, fresh))?;
        }
        Ok(())
    }

    /// Lets `revision` mean `commit`, unless it is one itself.
    pub(super) fn refer(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.repo.join("refs").join(revision);
        let there = files::read(&path, files::Kind::Reference).unwrap_or_default();
        if revision == commit || there == commit.as_bytes() {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&self.repo);
        std::fs::create_dir_all(folder).map_err(disk("create", folder))?;
        self.replace(&path, |fresh| std::fs::write(fresh, commit))
    }

    /// Gives what `make` makes the name `path`, at once and in place of what has it. It is made in the repository's own
    /// folder: the tools take every file below `refs` for a reference, and all below `snapshots` for the model's.
    fn replace(&self, path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let fresh = self.repo.join(format!(".schnell.{}.{count}", std::process::id()));
        // Of a process that had the same number and was killed.
        let _ = std::fs::remove_file(&fresh);
        make(&fresh).and_then(|()| std::fs::rename(&fresh, path)).map_err(|error| {
            let _ = std::fs::remove_file(&fresh);
            disk("write", path)(error)
        })
    }

    /// Bytes that the disk has left for us; nothing where that cannot be told.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let folder = self.cache.ancestors().find(|folder| folder.is_dir())?;
        files::free_bytes(folder).ok().filter(|bytes| *bytes < u64::MAX)
    }

    /// That `needed_bytes` more do not fit.
    pub(super) fn too_full(&self, needed_bytes: u64, free_bytes: u64) -> Error {
        let text = format!("{needed_bytes} bytes are to be fetched, but {free_bytes} are free");
        disk("fetch into", &self.cache)(std::io::Error::new(ErrorKind::StorageFull, text))
    }
}

/// An [`Error::Io`] that says what to do about a disk.
pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| {
        let advice = match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "; make room, or set HF_HUB_CACHE to a folder on another disk; what has arrived is kept, and the next \
                 `schnell fetch` goes on from there"
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                "; set HF_HUB_CACHE to a folder that you may write to"
            }
            _ => "",
        };
        let source = match advice {
            "" => source,
            advice => std::io::Error::new(source.kind(), format!("{source}{advice}")),
        };
        Error::io(action, path)(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_come_with_advice() {
        for (code, words) in [
            (libc::ENOSPC, "make room"),
            (libc::EDQUOT, "make room"),
            (libc::EFBIG, "make room"),
            (libc::EACCES, "HF_HUB_CACHE"),
            (libc::EROFS, "HF_HUB_CACHE"),
        ] {
            let error = disk("write", Path::new("/cache/blob"))(std::io::Error::from_raw_os_error(code));
            assert!(error.to_string().contains(words), "{error}");
            assert!(matches!(error, Error::Io { .. }));
        }
    }

    #[test]
    fn a_lock_is_waited_for() {
        let cache = tempfile::tempdir().unwrap();
        let digest = Digest::new(&"0".repeat(64)).unwrap();
        let store = Store::new(cache.path(), "org/name");
        let mut held = Some(store.lock(&digest, || panic!("nobody holds it")).unwrap());
        let mut looks = 0;
        let second = store.lock(&digest, || {
            looks += 1;
            if looks == 2 {
                held = None;
            }
            Ok(())
        });
        assert!(second.is_ok() && looks == 2);
        let third = store.lock(&digest, || Err(Error::Stopped)).unwrap_err();
        assert!(matches!(third, Error::Stopped), "{third}");
    }
}
