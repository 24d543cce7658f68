//! How much a disk has room for.

use std::path::Path;

use crate::{Error, Result};

/// Bytes that this user may still write in the file system of `folder`; no bound where it does not say.
///
/// # Errors
/// [`Error::Io`] when `folder` is not there.
pub fn free_bytes(folder: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(folder).map_err(|e| Error::io("write", folder)(e.into()))?;
    Ok(match found.f_blocks {
        0 => u64::MAX,
        _ => found.f_bavail.saturating_mul(found.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_says_what_it_has_room_for() {
        let of_root = free_bytes(Path::new("/")).unwrap();
        assert!((1..u64::MAX).contains(&of_root), "{of_root}");
        assert_eq!(free_bytes(Path::new("/proc")).unwrap(), u64::MAX);
        let missing = free_bytes(Path::new("/no/such/folder")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
    }
}
