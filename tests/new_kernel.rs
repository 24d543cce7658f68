//! `scripts/new-kernel` still finds the lists that it adds a kernel to. (That what it makes compiles and passes, it finds out
//! itself whenever it is used; compiling all of it here would take minutes.)

use std::path::Path;
use std::process::{Command, Output};

/// Where a kernel must be known, and by what line.
const LISTS: [(&str, &str); 8] = [
    ("src/kernels/mod.rs", "pub mod demo_op;"),
    ("src/kernels/mod.rs", "&demo_op::DEMO_OP,"),
    ("src/check/kernels.rs", "small(\"demo_op\", demo_op),"),
    ("src/check/kernels.rs", "fn demo_op(lab: &Lab)"),
    ("tests/common/typical.rs", "fn demo_op(bench: &Bench)"),
    ("tests/schedules.rs", " demo_op\n}"),
    ("scripts/sanitize", " demo_op\""),
    ("Cargo.toml", "[[bench]]\nname = \"demo_op\""),
];
const MADE: [&str; 5] = [
    "kernels/demo_op.h",
    "kernels/demo_op.cu",
    "src/kernels/demo_op.rs",
    "tests/demo_op.rs",
    "benches/demo_op.rs",
];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        // Neither models nor patches are needed.
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn new_kernel(tree: &Path, name: &str) -> Output {
    let mut command = Command::new("python3");
    command.arg(tree.join("scripts/new-kernel")).args([name, "--files-only"]).output().unwrap()
}

#[test]
fn a_new_kernel_is_known_wherever_kernels_are_listed() {
    let tree = tempfile::tempdir().unwrap();
    let tree = tree.path();
    for folder in ["kernels", "src/kernels", "src/check", "tests", "tests/common", "benches", "scripts"] {
        copy(Path::new(folder), &tree.join(folder));
    }
    std::fs::copy("Cargo.toml", tree.join("Cargo.toml")).unwrap();
    let read = |file: &str| std::fs::read_to_string(tree.join(file)).unwrap();

    let output = new_kernel(tree, "demo_op");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (file, line) in LISTS {
        assert_eq!(read(file).matches(line).count(), 1, "{file} should have {line:?} once");
    }
    for file in MADE {
        assert!(read(file).contains("demo_op"), "{file}");
        for placeholder in ["NAME", "UPPER", "CAMEL"] {
            assert!(!read(file).contains(placeholder), "{file} has {placeholder}");
        }
    }

    let before = LISTS.map(|(file, _)| read(file));
    for (name, why) in [
        ("demo_op", "exists already"),
        ("attention", "exists already"),
        ("Demo", "small letters"),
        ("small", "another name"),
        ("norms", "of that name already"),
        ("probe_more", "begin with probe"),
        ("demo_sm90", "Hopper alone"),
    ] {
        let output = new_kernel(tree, name);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{name}: {said}");
    }
    // A list that is not where it is looked for: nothing is written at all.
    std::fs::write(tree.join("scripts/sanitize"), read("scripts/sanitize").replace("kernel_tests=", "x="))
        .unwrap();
    let output = new_kernel(tree, "other_op");
    assert!(String::from_utf8_lossy(&output.stderr).contains("scripts/sanitize"), "{output:?}");
    assert!(!tree.join("kernels/other_op.h").exists());
    for ((file, _), before) in LISTS.iter().zip(before).filter(|((file, _), _)| *file != "scripts/sanitize") {
        assert!(read(file) == before, "{file} was changed by a refusal");
    }
}
