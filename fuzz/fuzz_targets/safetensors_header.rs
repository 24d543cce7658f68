//! The container: bytes as a whole file, or as a header behind a length that fits it and before data of some length. What
//! opens is read.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use schnell::weights::SafeTensors;

mod folder;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| folder::new().join("model.safetensors"));

fuzz_target!(|data: &[u8]| {
    let [mode, low, high, rest @ ..] = data else { return };
    let file = match mode % 2 {
        0 => rest.to_vec(),
        _ => {
            let mut file = (rest.len() as u64).to_le_bytes().to_vec();
            file.extend_from_slice(rest);
            file.resize(file.len() + usize::from(u16::from_le_bytes([*low, *high])), 0x3f);
            file
        }
    };
    std::fs::write(&*FILE, file).unwrap();
    let Ok(opened) = SafeTensors::open(&FILE) else { return };
    for tensor in opened.iter() {
        let _ = tensor.row_bytes();
        // All of it is in the file, which is small.
        let _ = tensor.read_f32();
    }
});
