//! Models that are in the cache of the Hugging Face tools: `org/name` to the snapshot's folder there. Looks at the disk only;
//! what writes to it is the feature `fetch`.
//!
//! Layout of the cache: `models--org--name/refs/main` holds a commit, `snapshots/<commit>/` the files.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Result, files};

/// The revision that is meant where none is named.
pub(crate) const MAIN: &str = "main";

/// The folder of `name` (`org/name`, or `org/name@revision`) in the user's cache: `$HF_HUB_CACHE`, else
/// `$HUGGINGFACE_HUB_CACHE` (its older name), else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
///
/// # Errors
/// [`Error::Input`] when it is not there, saying how to get it.
pub fn snapshot(name: &str) -> Result<PathBuf> {
    snapshot_in(&cache(|name| std::env::var_os(name)), name)
}

/// Whether `text` may be `org/name` or `org/name@revision`, rather than the path of a folder.
pub(crate) fn is_name(text: &str) -> bool {
    let (id, _) = split(text);
    id.split('/').count() == 2 && !id.starts_with(['.', '/'])
}

/// `org/name` and the revision.
fn split(name: &str) -> (&str, &str) {
    name.split_once('@').unwrap_or((name, MAIN))
}

/// Refuses what can be no model of the hub. Both become parts of paths and of URLs.
pub(crate) fn check_name(id: &str, revision: &str) -> Result<()> {
    let is_usual = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_part = |part: &str| {
        !part.is_empty() && part.len() <= 96 && !part.starts_with(['.', '-']) && part.chars().all(is_usual)
    };
    let is_id = id.split_once('/').is_some_and(|(org, name)| is_part(org) && is_part(name));
    if !is_id || id.contains("..") || id.contains("--") {
        return Err(Error::Input(format!(
            "{id} is no name of a model on the hub; expected organization/name, such as black-forest-labs/FLUX.1-schnell"
        )));
    }
    let mut parts = Path::new(revision).components();
    let is_path = !revision.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)));
    let is_sane = revision.len() <= 255 && !revision.chars().any(|c| c.is_control() || "@\\".contains(c));
    // Components leave doubled slashes and dots out.
    let is_plain = revision.split('/').all(|part| !part.is_empty() && part != ".");
    match is_path && is_sane && is_plain {
        true => Ok(()),
        false => {
            Err(Error::Input(format!("{revision} is no revision; name a branch, tag or commit, as main")))
        }
    }
}

/// The folder of `org/name` in a cache.
pub(crate) fn folder_name(id: &str) -> String {
    format!("models--{}", id.replace('/', "--"))
}

/// Where the Hugging Face tools keep what they download, by the variables that they read, in their order.
pub(crate) fn cache(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .map_or_else(|| home(&variable).join("hub"), |path| from_home(path, &variable))
}

/// The folder of the Hugging Face tools, which holds the cache and the token.
pub(crate) fn home(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = set("HF_HOME")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface")))
        .unwrap_or_else(|| PathBuf::from("~/.cache/huggingface"));
    from_home(path, &variable)
}

/// `~` as a shell has it.
fn from_home(path: PathBuf, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let home = variable("HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

/// What gets `id`, in words.
fn how_to_fetch(id: &str, revision: &str) -> String {
    let flag = if revision == MAIN { String::new() } else { format!(" --revision {revision}") };
    match cfg!(feature = "fetch") {
        true => format!("`schnell fetch {id}{flag}`"),
        false => format!("`hf download {id}{flag}`"),
    }
}

/// What gets of `id` all but its weights, in words.
pub(crate) fn how_to_fetch_tokenizers(id: &str) -> String {
    match cfg!(feature = "fetch") {
        true => format!("`schnell fetch {id} --only tokenizers`"),
        false => format!("`hf download {id} --include \"*.json\" \"*.txt\"`"),
    }
}

/// What a model that cannot be loaded may lack.
pub(crate) fn advice(name: &str) -> String {
    let (id, revision) = split(name);
    format!("; if its download was interrupted, {} completes it", how_to_fetch(id, revision))
}

/// The same in another cache.
pub(crate) fn snapshot_in(cache: &Path, name: &str) -> Result<PathBuf> {
    let (id, revision) = split(name);
    check_name(id, revision)?;
    let model = cache.join(folder_name(id));
    let commit = files::read(&model.join("refs").join(revision), files::Kind::Reference).unwrap_or_default();
    let commit = String::from_utf8(commit).unwrap_or_default();
    // A commit stands for itself.
    let commit = if commit.trim().is_empty() { revision } else { commit.trim() };
    let mut parts = Path::new(commit).components();
    let is_name = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    let folder = model.join("snapshots").join(commit);
    if !is_name || !folder.is_dir() {
        return Err(Error::Input(format!(
            "{name} is neither a folder nor in the Hugging Face cache {}; get it with {}, or name a folder",
            cache.display(),
            how_to_fetch(id, revision)
        )));
    }
    // It is linked last.
    if !folder.join("model_index.json").exists() {
        return Err(Error::Input(format!(
            "{name} is not whole in the Hugging Face cache {}; {} completes it",
            cache.display(),
            how_to_fetch(id, revision)
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
        assert!(
            missing.contains("neither") && missing.contains(&how_to_fetch("org/name", MAIN)),
            "{missing}"
        );
        std::fs::write(model.join("refs/main"), "abc\n").unwrap();
        let half = snapshot_in(cache.path(), "org/name").unwrap_err().to_string();
        assert!(half.contains("not whole") && half.contains(&how_to_fetch("org/name", MAIN)), "{half}");
        std::fs::write(model.join("snapshots/abc/model_index.json"), "{}").unwrap();
        assert_eq!(snapshot_in(cache.path(), "org/name@abc").unwrap(), model.join("snapshots/abc"));
        let other = snapshot_in(cache.path(), "org/name@v2").unwrap_err().to_string();
        assert!(other.contains("--revision v2"), "{other}");
        assert_eq!(snapshot_in(cache.path(), "org/name").unwrap(), model.join("snapshots/abc"));
        std::fs::write(model.join("refs/main"), "gone").unwrap();
        assert!(matches!(snapshot_in(cache.path(), "org/name"), Err(Error::Input(_))));
        // No way out of the cache.
        std::fs::write(model.join("refs/main"), "../../..").unwrap();
        assert!(matches!(snapshot_in(cache.path(), "org/name"), Err(Error::Input(_))));
    }

    #[test]
    fn names_are_those_of_the_hub() {
        for name in ["black-forest-labs/FLUX.1-schnell", "a/b", "a_1/b.c-d"] {
            check_name(name, MAIN).unwrap();
        }
        let long = format!("a/{}", "b".repeat(97));
        for name in
            ["", "a", "a/", "/a", "a/b/c", "../a", "a/..", "a/b c", "a/b?c", "a/-b", "a--b/c", "a/b\n", &long]
        {
            let refusal = check_name(name, MAIN).unwrap_err().to_string();
            assert!(refusal.contains("organization/name"), "{name}: {refusal}");
        }
        for revision in ["v1.0", "refs/pr/1", "0123456789abcdef0123456789abcdef01234567"] {
            check_name("a/b", revision).unwrap();
        }
        for revision in ["", "..", "a/../../b", "/etc", "a//b", "a/.", "a\nb", "a\\b"] {
            let refusal = check_name("a/b", revision).unwrap_err().to_string();
            assert!(refusal.contains("no revision"), "{revision}: {refusal}");
        }
    }
}
