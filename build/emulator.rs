//! The emulator's half of the build: the kernels as C++, with what the emulator's runtime needs beside them.

use std::path::PathBuf;

/// A line each; `#` begins a comment.
const FLAGS: &str = include_str!("host.flags");

/// Compiles and links them.
pub fn compile(kernels: &[PathBuf]) {
    host_compiler().file("kernels/emulator.cpp").compile("schnell_emulator");
    host_compiler().flag("-x").flag("c++").files(kernels).compile("schnell_kernels");
}

fn host_compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).opt_level(2).include("kernels");
    for flag in FLAGS.lines().filter(|line| line.starts_with('-')) {
        build.flag(flag);
    }
    build
}
