//! Compiles `kernels/*.cu` twice: with the host's C++ compiler for the emulator (feature `emulator`), and with nvcc into
//! one fatbin per file (feature `cuda`, where nvcc is found). Never touches the network.

#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(schnell_nvcc)");
    let kernels = kernel_sources();
    let _ = &kernels;
    println!("cargo::rustc-env=SCHNELL_KERNELS={:016x}", fingerprint(Path::new("kernels"), FNV_OFFSET));
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

/// FNV-1a, 64 bits: tells sources apart, and is no defense against anyone.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// Of every file in `folder` and below, by name and content, in the order of names: receipts of pictures say by it which kernels
/// drew them.
fn fingerprint(folder: &Path, begun: u64) -> u64 {
    let add = |hash: u64, bytes: &[u8]| {
        bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let entries = std::fs::read_dir(folder).expect("a folder of kernels");
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().fold(begun, |hash, path| match path.is_dir() {
        true => fingerprint(path, hash),
        false => {
            let named = add(hash, path.to_string_lossy().as_bytes());
            add(named, &std::fs::read(path).expect("a kernel's source"))
        }
    })
}
