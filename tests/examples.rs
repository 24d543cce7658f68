//! Every program of `examples/` runs, and says what it did or leaves a picture. `cargo test` builds them, unless it is told which tests it
//! shall build; `cargo test --all-features --examples --test examples` builds both.

use std::path::Path;
use std::process::Command;

#[test]
fn examples_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(root.join("examples")).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> =
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    names.sort();
    // <target>/<profile>/deps/examples-...
    let programs = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
    assert!(names.iter().any(|name| name == "minimal"), "{names:?}");
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        let program = programs.join(&name);
        assert!(program.is_file(), "{name} is not built: see above");
        let output = Command::new(program).current_dir(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert!(!output.stdout.is_empty() || files > 0, "{name} says nothing");
    }
}
