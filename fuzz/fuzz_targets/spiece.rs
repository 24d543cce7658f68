//! A SentencePiece model, and a prompt by what is taken.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use schnell::text::tokenizer::T5Tokenizer;

mod folder;

static DIR: LazyLock<PathBuf> = LazyLock::new(folder::new);

fuzz_target!(|data: &[u8]| {
    std::fs::write(DIR.join("spiece.model"), data).unwrap();
    if let Ok(tokenizer) = T5Tokenizer::open(&DIR) {
        for text in ["a red circle", "", "\u{212b}\u{fb01}</s>  a\u{301}\u{0}"] {
            let _ = tokenizer.encode(text, 24);
        }
    }
});
