//! A folder that is there whole or not at all.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::temporary::{alive, remove};
use crate::{Error, Result};

/// A folder in the making, under another name beside its own: `.NAME.schnell`. It goes when it is dropped, and with
/// [`remove_temporaries`](super::remove_temporaries); what a run that was killed has left of it goes when the next one begins.
///
/// Who makes it has it locked, which ends with the process however that ends: so what lies there is known to be left over.
#[derive(Debug)]
pub struct WholeFolder {
    /// As the user says it.
    name: PathBuf,
    temporary: PathBuf,
    target: PathBuf,
    _lock: File,
}

impl WholeFolder {
    /// The path under which [`WholeFolder::finish`] puts a folder that is called `path`: that of its parent without links.
    ///
    /// # Errors
    /// [`Error::Input`] when there is something of that name, or it is none; [`Error::Io`] when its parent is not there.
    pub fn target(path: &Path) -> Result<PathBuf> {
        let Some(name) = path.file_name() else {
            return Err(Error::Input(format!("{} is no name for a new folder", path.display())));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let target = parent.canonicalize().map_err(Error::io("create", path))?.join(name);
        match super::exists(&target)? {
            true => Err(Error::Input(format!("{} is there already; name a new folder", path.display()))),
            false => Ok(target),
        }
    }

    /// Begins the folder `path`; nothing of that name exists before [`WholeFolder::finish`].
    ///
    /// # Errors
    /// Those of [`WholeFolder::target`]; [`Error::Input`] while another process makes the same folder; [`Error::Io`].
    pub fn begin(path: &Path) -> Result<WholeFolder> {
        let failed = |source| Error::io("create", path)(source);
        loop {
            let target = WholeFolder::target(path)?;
            let mut hidden = OsString::from(".");
            hidden.push(target.file_name().unwrap_or_default());
            hidden.push(".schnell");
            let temporary = target.with_file_name(hidden);
            // From here on: whoever removes temporaries finds it made, locked and listed, or nothing of ours.
            let mut alive = alive();
            let is_new = match std::fs::create_dir(&temporary) {
                Ok(()) => true,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
                Err(e) => return Err(failed(e)),
            };
            // No link, which would lead elsewhere.
            let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
            let lock = match OpenOptions::new().read(true).custom_flags(flags).open(&temporary) {
                Ok(lock) => lock,
                // Finished, or given up, by another process just now.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let what = format!("{} is being written by another process", path.display());
                    return Err(Error::Input(what));
                }
                // Some network file systems lock no folders. One that is new is nobody else's.
                Err(TryLockError::Error(_)) if is_new => {}
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &temporary)(e)),
            }
            let same = |found: std::fs::Metadata, locked: std::fs::Metadata| {
                (found.dev(), found.ino()) == (locked.dev(), locked.ino())
            };
            let found = temporary.symlink_metadata().ok().zip(lock.metadata().ok());
            if !found.is_some_and(|(found, locked)| same(found, locked)) {
                continue;
            }
            if !is_new {
                clear(&temporary).map_err(Error::io("remove", &temporary))?;
            }
            alive.insert(temporary.clone());
            return Ok(WholeFolder { name: path.to_path_buf(), temporary, target, _lock: lock });
        }
    }

    /// Where it is until it is finished.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// A new, empty file of it, and its path; `name` may have a folder before it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(&self, name: &str) -> Result<(PathBuf, File)> {
        let path = self.temporary.join(name);
        // Not while another thread removes it all.
        let _alive = alive();
        let create = |path: &Path| {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            OpenOptions::new().read(true).write(true).create_new(true).open(path)
        };
        let file = create(&path).map_err(Error::io("create", &path))?;
        Ok((path, file))
    }

    /// Gives it its name. Its files are on the disk before, which is up to who writes them; its folders then are, too.
    ///
    /// # Errors
    /// [`Error::Io`]; then nothing is left.
    pub fn finish(self) -> Result<()> {
        let failed = |source| Error::io("create", &self.name)(source);
        sync(&self.temporary).map_err(failed)?;
        let mut alive = alive();
        std::fs::rename(&self.temporary, &self.target).map_err(failed)?;
        alive.remove(&self.temporary);
        drop(alive);
        match self.target.parent() {
            Some(parent) => File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed),
            None => Ok(()),
        }
    }
}

impl Drop for WholeFolder {
    fn drop(&mut self) {
        let mut alive = alive();
        if alive.remove(&self.temporary) {
            remove(&self.temporary);
        }
    }
}

/// Removes all that is in a folder.
fn clear(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Puts the names in a folder, and below, on the disk.
fn sync(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}
