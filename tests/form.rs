//! The form of the sources: no file is longer than a reader can keep in mind. (How long a function may be says
//! `clippy.toml`.)

use std::path::{Path, PathBuf};

/// What no file should come near: one that does wants to be two, each with a name.
const MOST_LINES: usize = 700;

/// Where people write code. `src/abi.rs` is generated.
const FOLDERS: [&str; 7] = ["benches", "build", "kernels", "models", "scripts", "src", "tests"];
const ENDINGS: [&str; 5] = ["cu", "cuh", "h", "py", "rs"];
const GENERATED: &str = "src/abi.rs";

/// The files in `folder` and below that are code: by their ending, or scripts, which have none.
fn add_sources(folder: &Path, sources: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_code = match path.extension() {
            Some(ending) => ENDINGS.iter().any(|known| ending == *known),
            None => folder == Path::new("scripts"),
        };
        if path.is_dir() {
            add_sources(&path, sources);
        } else if is_code && path != Path::new(GENERATED) {
            sources.push(path);
        }
    }
}

#[test]
fn no_source_file_is_too_long() {
    let mut sources = vec![PathBuf::from("build.rs")];
    for folder in FOLDERS {
        let before = sources.len();
        add_sources(Path::new(folder), &mut sources);
        assert!(sources.len() > before, "nothing found in {folder}/");
    }
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    let too_long: Vec<String> = sources
        .iter()
        .filter(|path| lines(path) > MOST_LINES)
        .map(|path| format!("{}: {} lines", path.display(), lines(path)))
        .collect();
    assert!(too_long.is_empty(), "more than {MOST_LINES} lines:\n{}", too_long.join("\n"));
}
