//! `src/abi.rs` is what bindgen makes of `kernels/*.h`, committed so that users need no libclang.
//!
//! Needs libclang (`LIBCLANG_PATH`, or the one that `scripts/get-nvcc` puts beside nvcc). After changing a header: `scripts/bless-abi`.

#![allow(unsafe_code)] // sets an environment variable, which libclang's loader reads

use std::path::PathBuf;

fn headers() -> Vec<PathBuf> {
    let mut headers: Vec<PathBuf> = std::fs::read_dir("kernels")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "h"))
        .collect();
    headers.sort();
    headers
}

fn generate() -> String {
    let includes: String = headers().iter().map(|h| format!("#include \"{}\"\n", h.display())).collect();
    bindgen::Builder::default()
        .header_contents("kernels.h", &includes)
        .clang_args(["-DSCHNELL_BINDGEN", "-I."])
        .clang_args(gcc_include_folder().map(|folder| format!("-I{}", folder.display())))
        .allowlist_file(".*kernels/.*\\.h")
        .blocklist_item("SCHNELL_ABI_H")
        .blocklist_item(".*_H")
        .derive_default(true)
        // Bindgen derives nothing for aligned structs; what it writes instead is unsafe, and nobody wants an empty map.
        .no_default("tensor_map|.*_sm90_params")
        .layout_tests(true)
        .generate_comments(true)
        .default_macro_constant_type(bindgen::MacroTypeVariation::Unsigned)
        .disable_header_comment()
        .raw_line("//! The params structs and constants of `kernels/*.h`, as bindgen sees them. Generated; do not edit:")
        .raw_line("//! `scripts/bless-abi` writes this file anew.")
        .raw_line("#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, clippy::all)]")
        .generate()
        .expect("bindgen reads kernels/*.h")
        .to_string()
}

/// The libclang wheel has no compiler headers of its own; gcc's `stddef.h` will do.
fn gcc_include_folder() -> Option<PathBuf> {
    let output = std::process::Command::new("gcc").arg("-print-file-name=include").output().ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    folder.is_dir().then_some(folder)
}

fn libclang() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LIBCLANG_PATH") {
        return Some(path.into());
    }
    let venvs = std::fs::read_dir(".cuda/lib").ok()?;
    let mut folders = venvs.filter_map(|python| Some(python.ok()?.path().join("site-packages/clang/native")));
    folders.find(|folder| folder.is_dir())
}

#[test]
fn the_committed_abi_is_what_bindgen_makes_of_the_headers() {
    let folder = libclang().expect("libclang: set LIBCLANG_PATH or run scripts/get-nvcc");
    // SAFETY: this test binary has one test, so no other thread reads the environment.
    unsafe { std::env::set_var("LIBCLANG_PATH", folder) };
    let fresh = generate();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write("src/abi.rs", &fresh).unwrap();
    }
    let committed = std::fs::read_to_string("src/abi.rs").unwrap();
    assert!(fresh == committed, "src/abi.rs is stale; run scripts/bless-abi");
}
