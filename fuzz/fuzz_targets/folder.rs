//! A folder for what a target writes; it outlives a process that a finding ends. `scripts/fuzz` says where and removes it.

use std::path::PathBuf;

pub fn new() -> PathBuf {
    tempfile::tempdir().expect("a folder").keep()
}
