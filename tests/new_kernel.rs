//! `scripts/new-kernel` still finds the lists that it adds a kernel to. (That what it makes compiles and passes, it finds out
//! itself whenever it is used; compiling all of it here would take minutes.)

use std::path::Path;
use std::process::{Command, Output};

/// Where a kernel must be known, and by what line.
const LISTS: [(&str, &str); 8] = [
    ("src/kernels/mod.rs", "pub mod stem_of_a_test;"),
    ("src/kernels/mod.rs", "&stem_of_a_test::STEM_OF_A_TEST,"),
    ("src/check/kernels.rs", "small(\"stem_of_a_test\", stem_of_a_test),"),
    ("src/check/kernels.rs", "fn stem_of_a_test(lab: &Lab)"),
    ("tests/common/typical.rs", "fn stem_of_a_test(bench: &Bench)"),
    ("tests/schedules.rs", " stem_of_a_test\n}"),
    ("scripts/sanitize", " stem_of_a_test\""),
    ("Cargo.toml", "[[bench]]\nname = \"stem_of_a_test\""),
];
const MADE: [&str; 5] = [
    "kernels/stem_of_a_test.h",
    "kernels/stem_of_a_test.cu",
    "src/kernels/stem_of_a_test.rs",
    "tests/stem_of_a_test.rs",
    "benches/stem_of_a_test.rs",
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

    let output = new_kernel(tree, "stem_of_a_test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // What is wrong with views is a fault of the caller within this crate (src/kernels/mod.rs): wrapper and test say so.
    for file in ["src/kernels/stem_of_a_test.rs", "tests/stem_of_a_test.rs"] {
        assert!(read(file).contains("Error::Internal") && !read(file).contains("Error::Input"), "{file}");
    }
    for (file, line) in LISTS {
        assert_eq!(read(file).matches(line).count(), 1, "{file} should have {line:?} once");
    }
    for file in MADE {
        assert!(read(file).contains("stem_of_a_test"), "{file}");
        for placeholder in ["NAME", "UPPER", "CAMEL"] {
            assert!(!read(file).contains(placeholder), "{file} has {placeholder}");
        }
    }

    let before = LISTS.map(|(file, _)| read(file));
    for (name, why) in [
        ("stem_of_a_test", "exists already"),
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
