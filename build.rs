//! Compiles `kernels/*.cu` twice: with the host's C++ compiler for the emulator (always), and with nvcc into one
//! fatbin per file (where nvcc is found). Never touches the network.

#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=kernels");
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
        .flag("-Wno-unknown-pragmas")
        .file(Path::new("kernels/emulator.cpp"));
    build.flag("-x").flag("c++");
    build.files(kernels);
    build.compile("schnell_kernels");
}
