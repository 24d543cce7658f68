//! A folder for what a target writes, for as long as the process lives; in memory where the system has such a place, since
//! every execution writes it.

use std::path::{Path, PathBuf};

pub fn new() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a folder").keep()
}
