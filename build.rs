//! Compiles `kernels/*.cu` twice: with the host's C++ compiler for the emulator (feature `emulator`), and with nvcc into
//! one fatbin per file (feature `cuda`, where nvcc is found). Never touches the network.

#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(schnell_accesses, schnell_sanitizer)");
    println!("cargo::rustc-check-cfg=cfg(schnell_nvcc)");
    let kernels = kernel_sources();
    let _ = &kernels;
    #[cfg(feature = "emulator")]
    emulator::compile(&kernels);
    #[cfg(feature = "cuda")]
    nvcc::compile(&kernels);
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
