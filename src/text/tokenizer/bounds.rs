//! What keeps a tokenizer's files and a prompt from taking more than their share: limits, each with what FLUX.1 has, and
//! a thread of their own for whatever the `tokenizers` crate does.

use std::path::Path;

use crate::files::{self, Kind};
use crate::{Error, Result};

/// CLIP's longest token has 64 bytes, T5's 20. The trie of pieces has a level per byte and is dropped recursively.
pub(super) const LARGEST_PIECE_BYTES: usize = 512;

/// CLIP has 49,408 tokens, T5 32,100.
pub(super) const MOST_PIECES: usize = 1 << 18;

/// All together: CLIP's have 429 KB, T5's 267 KB. The trie has a map for each byte that begins nothing else.
pub(super) const MOST_PIECE_BYTES: usize = 2 << 20;

/// T5 has 103.
pub(super) const MOST_ADDED_TOKENS: usize = 4096;

/// T5's has 238 KB.
pub(super) const LARGEST_CHARSMAP_BYTES: usize = 1 << 20;

/// What one character may become: 33 in T5's.
pub(super) const LARGEST_REPLACEMENT_BYTES: usize = 64;

/// Some 200,000 words: 100 times what any encoder sees.
pub(super) const LARGEST_PROMPT_BYTES: usize = 1 << 20;

/// Far more than [`LARGEST_PIECE_BYTES`] levels of anything.
const STACK_BYTES: usize = 8 << 20;

/// The bytes of a file; `None` when there is none.
pub(super) fn read_file(path: &Path, kind: Kind) -> Result<Option<Vec<u8>>> {
    if files::exists(path)? { files::read(path, kind).map(Some) } else { Ok(None) }
}

/// The tokens of a vocabulary are few and short enough.
pub(super) fn check_pieces<'a>(path: &Path, pieces: impl Iterator<Item = &'a str>) -> Result<()> {
    let (mut count, mut total) = (0, 0);
    for piece in pieces {
        check_piece(path, piece)?;
        count += 1;
        total += piece.len();
        if count > MOST_PIECES || total > MOST_PIECE_BYTES {
            let most = format!("expected at most {MOST_PIECES} tokens of {MOST_PIECE_BYTES} bytes together");
            return Err(Error::weights(path, format!("the vocabulary is too large: {most}")));
        }
    }
    Ok(())
}

/// One token of a vocabulary, or one added to it.
pub(super) fn check_piece(path: &Path, piece: &str) -> Result<()> {
    if piece.is_empty() || piece.len() > LARGEST_PIECE_BYTES {
        let (start, bytes) = (short(piece), piece.len());
        let text = format!("token {start:?} has {bytes} bytes: expected 1 to {LARGEST_PIECE_BYTES}");
        return Err(Error::weights(path, text));
    }
    Ok(())
}

/// The beginning of a text, for messages.
pub(super) fn short(text: &str) -> &str {
    let end = (0..=text.len().min(60)).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// Runs `work` on a thread with a stack of its own; a panic in it is the fault of the file at `path`.
pub(super) fn guarded<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tokenizer".to_string()).stack_size(STACK_BYTES);
        let running = thread.spawn_scoped(scope, work).map_err(Error::io("start a thread for", path))?;
        running.join().map_err(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Error::weights(path, format!("the tokenizer fails with it: {}", short(said)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_names_the_file() {
        let path = Path::new("tokenizer.json");
        assert_eq!(guarded(path, || 7).unwrap(), 7);
        for error in [
            guarded(path, || panic!("index {} is too large", 9)).map(|()| 0).unwrap_err(),
            guarded(path, || panic!("index 9 is too large")).map(|()| 0).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Weights { .. }), "{error}");
            assert_eq!(
                error.to_string(),
                "tokenizer.json: the tokenizer fails with it: index 9 is too large"
            );
        }
    }

    #[test]
    fn texts_in_messages_are_cut_between_characters() {
        assert_eq!(short("abc"), "abc");
        assert_eq!(short(&"猫".repeat(21)), "猫".repeat(20));
        assert_eq!(short(&format!("a{}", "猫".repeat(21))), format!("a{}", "猫".repeat(19)));
    }
}
