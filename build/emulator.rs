//! The emulator's half of the build: the kernels as C++, with what the emulator's runtime needs beside them.
//!
//! `SCHNELL_SANITIZE=address`, `thread` or `accesses` instruments the kernels (see scripts/sanitize).

use std::path::PathBuf;

/// Compiles and links them.
pub fn compile(kernels: &[PathBuf]) {
    println!("cargo::rerun-if-env-changed=SCHNELL_SANITIZE");
    // The runtime's side is never instrumented.
    let sanitize = std::env::var("SCHNELL_SANITIZE").unwrap_or_default();
    if matches!(sanitize.as_str(), "address" | "thread") {
        println!("cargo::rustc-cfg=schnell_sanitizer");
    }
    let mut runtime = host_compiler();
    runtime.file("kernels/emulator.cpp");
    if sanitize == "accesses" {
        println!("cargo::rustc-cfg=schnell_accesses");
        runtime.file("kernels/accesses.cpp");
    }
    runtime.compile("schnell_emulator");

    let mut build = host_compiler();
    build.flag("-x").flag("c++").files(kernels);
    let (flags, libraries): (&[&str], &[&str]) = match sanitize.as_str() {
        "" => (&[], &[]),
        // Bounds also inside a struct, of which shared memory consists; the first error ends the process.
        "address" => (
            &["-fsanitize=address,undefined", "-fsanitize=bounds-strict", "-fno-sanitize-recover=all"],
            &["-lasan", "-lubsan"],
        ),
        "thread" => (&["-fsanitize=thread"], &["-ltsan"]),
        // The functions that g++ calls are in kernels/accesses.cpp.
        "accesses" => (&["-fsanitize=thread", "-DSCHNELL_ACCESSES"], &[]),
        other => panic!("SCHNELL_SANITIZE is {other:?}: expected address, thread or accesses"),
    };
    if !flags.is_empty() {
        build.opt_level(1).flag("-g").flag("-fno-omit-frame-pointer");
        for flag in flags {
            build.flag(flag);
        }
        println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
        for library in libraries {
            println!("cargo::rustc-link-arg={library}");
        }
    }
    build.compile("schnell_kernels");
}

fn host_compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .include("kernels")
        // The same bits on every host: no fused multiply-adds that the source does not ask for.
        .flag("-ffp-contract=off")
        // Kernels reinterpret shared memory, as CUDA code does.
        .flag("-fno-strict-aliasing")
        .flag("-fno-exceptions")
        .flag("-fno-rtti")
        // A frame larger than a fiber's stack must hit the guard page, not jump over it.
        .flag("-fstack-clash-protection")
        .flag("-Wno-unknown-pragmas");
    build
}
