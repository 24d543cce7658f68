//! A GGUF file: bytes as a whole, or as what follows a sound beginning. What opens is read.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use schnell::weights::Component;

mod folder;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| folder::new().join("model.gguf"));

fuzz_target!(|data: &[u8]| {
    let [mode, rest @ ..] = data else { return };
    let mut file = if mode % 2 == 0 { Vec::new() } else { b"GGUF\x03\0\0\0".to_vec() };
    file.extend_from_slice(rest);
    std::fs::write(&*FILE, file).unwrap();
    let Ok(opened) = Component::file(&FILE) else { return };
    for tensor in opened.iter() {
        let _ = tensor.row_bytes();
        // All of it is in the file, which is small.
        let _ = tensor.read_f32();
    }
});
