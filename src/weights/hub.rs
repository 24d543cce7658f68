//! Models that the Hugging Face tools have already downloaded: `org/name` to the snapshot's folder in their cache. Looks
//! at the disk only.
//!
//! Layout of the cache: `models--org--name/refs/main` holds a commit, `snapshots/<commit>/` the files.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Result, files};

/// The folder of `id` (`org/name`) in the user's cache: `$HF_HUB_CACHE`, else `$HUGGINGFACE_HUB_CACHE` (its older name), else
/// `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
///
/// # Errors
/// [`Error::Input`] when it is not there, saying how to get it.
pub fn snapshot(id: &str) -> Result<PathBuf> {
    snapshot_in(&cache(|name| std::env::var_os(name)), id)
}

/// Where the Hugging Face tools keep what they download, by the variables that they read, in their order.
fn cache(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let from_home = |path: PathBuf| match (path.strip_prefix("~"), set("HOME")) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(set("HF_HOME")?.join("hub")))
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .map_or_else(|| from_home(PathBuf::from("~/.cache/huggingface/hub")), from_home)
}

fn snapshot_in(cache: &Path, id: &str) -> Result<PathBuf> {
    let model = cache.join(format!("models--{}", id.replace('/', "--")));
    let commit = files::read(&model.join("refs/main"), files::Kind::Reference).unwrap_or_default();
    let commit = String::from_utf8(commit).unwrap_or_default();
    let mut parts = Path::new(commit.trim()).components();
    let is_name = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    let folder = model.join("snapshots").join(commit.trim());
    if !is_name || !folder.is_dir() {
        return Err(Error::Input(format!(
            "{id} is neither a folder nor in the Hugging Face cache {}; download it with `hf download {id}`, or name a \
             folder",
            cache.display()
        )));
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_tools_look_for_it() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "~/b", "/home/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/home", "/home/.cache/huggingface/hub"),
        ];
        // Each counts when those before it are absent, or empty.
        for (first, (_, _, expected)) in all.iter().enumerate() {
            for before in [None, Some(OsString::new())] {
                let found = cache(|name| match all.iter().position(|(known, ..)| *known == name)? {
                    at if at < first => before.clone(),
                    at => Some(all[at].1.into()),
                });
                assert_eq!(found, Path::new(expected));
            }
        }
    }

    #[test]
    fn finds_the_snapshot_that_main_points_to_and_says_what_to_do_otherwise() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--org--name");
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::create_dir_all(model.join("snapshots/abc")).unwrap();
        let missing = snapshot_in(cache.path(), "org/name").unwrap_err().to_string();
        assert!(missing.contains("hf download org/name"), "{missing}");
        std::fs::write(model.join("refs/main"), "abc\n").unwrap();
        assert_eq!(snapshot_in(cache.path(), "org/name").unwrap(), model.join("snapshots/abc"));
        std::fs::write(model.join("refs/main"), "gone").unwrap();
        assert!(matches!(snapshot_in(cache.path(), "org/name"), Err(Error::Input(_))));
        // No way out of the cache.
        std::fs::write(model.join("refs/main"), "../../..").unwrap();
        assert!(matches!(snapshot_in(cache.path(), "org/name"), Err(Error::Input(_))));
    }
}
