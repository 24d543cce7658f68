//! SentencePiece's compiled map of characters to their normal form, in `spiece.model` and, as base64, in
//! `tokenizer.json`.
//!
//! `u32` length of the trie in bytes; the trie, a double array of `u32` units; replacement texts, each ended by a zero
//! byte. The crate that walks the trie trusts it, so it is checked here first.

use tokenizers::normalizers::Precompiled;

use super::bounds::{LARGEST_CHARSMAP_BYTES, LARGEST_REPLACEMENT_BYTES};

/// What is wrong with a map, in words that follow "character map".
pub(super) type Fault = &'static str;

/// The map of these bytes, checked.
pub(super) fn parse(map: &[u8]) -> Result<Precompiled, Fault> {
    check(map)?;
    Precompiled::from(map).map_err(|_| "that cannot be parsed")
}

/// The same from base64, as JSON has it.
pub(super) fn from_base64(text: &str) -> Result<Precompiled, Fault> {
    parse(&decode_base64(text).ok_or("that is no base64")?)
}

/// Every unit that can be a node must have its 256 possible children inside the array, and every text it points to
/// must start inside the texts.
fn check(map: &[u8]) -> Result<(), Fault> {
    if map.len() > LARGEST_CHARSMAP_BYTES {
        return Err("of more than a megabyte");
    }
    let (length, rest) = map.split_first_chunk::<4>().ok_or("without a length")?;
    let trie_bytes = u32::from_le_bytes(*length) as usize;
    if !trie_bytes.is_multiple_of(4) || trie_bytes == 0 || trie_bytes > rest.len() {
        return Err("with a trie beyond its end");
    }
    let (trie, texts) = rest.split_at(trie_bytes);
    let texts = std::str::from_utf8(texts).map_err(|_| "whose texts are no UTF-8")?;
    if texts.split('\0').any(|text| text.len() > LARGEST_REPLACEMENT_BYTES) {
        return Err("that makes a long text of one character");
    }
    let units: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|&unit| u32::from_le_bytes(unit)).collect();
    for (position, &unit) in units.iter().enumerate() {
        const VALUE: u32 = 1 << 31;
        // A value is no node, but whatever the root is, the walk starts from it.
        if unit & VALUE != 0 && position != 0 {
            continue;
        }
        let base = position ^ ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6);
        if base | 255 >= units.len() {
            return Err("whose trie points outside itself");
        }
        let has_text = (unit >> 8) & 1 == 1;
        if has_text && !texts.is_char_boundary((units[base] & !VALUE) as usize) {
            return Err("whose trie points outside its texts");
        }
    }
    Ok(())
}

/// The standard alphabet, padded; `None` for anything else.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take(2).take_while(|&&byte| byte == b'=').count();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for (at, group) in text.as_chunks::<4>().0.iter().enumerate() {
        let last = (at + 1) * 4 == text.len();
        let mut bits = 0;
        for (k, &byte) in group.iter().enumerate() {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' if last && k >= 4 - padding => 0,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    bytes.truncate(bytes.len() - padding);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(decode_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Zg=", "Z===", "Zg==Zg==", "Zm9-", "=", "===="] {
            assert_eq!(decode_base64(text), None, "{text}");
        }
    }

    /// 256 units without children, and texts.
    fn map(root: u32, texts: &[u8]) -> Vec<u8> {
        let mut map = 1024_u32.to_le_bytes().to_vec();
        map.extend(root.to_le_bytes());
        map.resize(4 + 1024, 0xff);
        map.extend_from_slice(texts);
        map
    }

    #[test]
    fn the_root_is_a_node_whatever_its_bits_say() {
        assert!(parse(&map(0, b"a\0")).is_ok());
        assert_eq!(parse(&map(1 << 10, b"a\0")).err(), None);
        assert_eq!(parse(&map(256 << 10, b"a\0")).err(), Some("whose trie points outside itself"));
        assert_eq!(parse(&map(1 << 31 | 256 << 10, b"a\0")).err(), Some("whose trie points outside itself"));
    }

    #[test]
    fn maps_and_what_they_make_of_a_character_are_bounded() {
        assert!(parse(&map(0, &[b'a'; LARGEST_REPLACEMENT_BYTES])).is_ok());
        let long = parse(&map(0, &[b'a'; LARGEST_REPLACEMENT_BYTES + 1]));
        assert_eq!(long.err(), Some("that makes a long text of one character"));
        assert_eq!(parse(&map(0, &[0; LARGEST_CHARSMAP_BYTES])).err(), Some("of more than a megabyte"));
    }
}
