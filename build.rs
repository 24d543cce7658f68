//! Compiles `kernels/*.cu` twice: with the host's C++ compiler for the emulator (always), and with nvcc into one
//! fatbin per file (where nvcc is found). Never touches the network.
//!
//! `SCHNELL_SANITIZE=address`, `thread` or `accesses` instruments the emulator's kernels (see scripts/sanitize).

#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=SCHNELL_SANITIZE");
    let kernels = kernel_sources();
    compile_for_the_emulator(&kernels);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    nvcc::compile(&kernels, &out);
}

/// Every `kernels/*.cu`, sorted, so that builds are reproducible.
fn kernel_sources() -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels")
        .expect("the folder kernels/")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    sources
}

fn compile_for_the_emulator(kernels: &[PathBuf]) {
    // The runtime's side is never instrumented.
    let sanitize = std::env::var("SCHNELL_SANITIZE").unwrap_or_default();
    println!("cargo::rustc-check-cfg=cfg(schnell_accesses)");
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
