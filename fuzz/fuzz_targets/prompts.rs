//! A file of prompts, and each of them by both tokenizers of the bundled model.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use schnell::text::tokenizer::{ClipTokenizer, T5Tokenizer};

mod folder;
#[allow(dead_code)]
#[path = "../../src/bin/schnell/inputs.rs"]
mod inputs;

struct Tokenizers {
    dir: PathBuf,
    clip: ClipTokenizer,
    t5: T5Tokenizer,
}

static TOKENIZERS: LazyLock<Tokenizers> = LazyLock::new(|| {
    let dir = folder::new();
    schnell::demo::write(&dir).unwrap();
    let clip = ClipTokenizer::open(&dir.join("tokenizer")).unwrap();
    let t5 = T5Tokenizer::open(&dir.join("tokenizer_2")).unwrap();
    Tokenizers { dir, clip, t5 }
});

fuzz_target!(|data: &[u8]| {
    let file = TOKENIZERS.dir.join("prompts.txt");
    std::fs::write(&file, data).unwrap();
    let Ok(prompts) = inputs::prompts(&file) else { return };
    for prompt in prompts {
        assert!(!prompt.trim().is_empty() && !prompt.contains(['\n', '\r', '\0']));
        let clip = TOKENIZERS.clip.encode(&prompt, 77).unwrap();
        let t5 = TOKENIZERS.t5.encode(&prompt, 24).unwrap();
        for (tokens, vocab) in [(clip, TOKENIZERS.clip.vocab_size()), (t5, TOKENIZERS.t5.vocab_size())] {
            assert!(tokens.len <= tokens.ids.len() && tokens.eos_index < tokens.len);
            assert!(tokens.ids.iter().all(|&id| (id as usize) < vocab));
        }
    }
});
