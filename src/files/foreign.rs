//! What a file is that should have been a part of a model: the usual accidents of downloading.

/// What begins with `bytes`, and what to do about it; nothing for what may be right.
pub(crate) fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let starts =
        |start: &[u8]| bytes.len() >= start.len() && bytes[..start.len()].eq_ignore_ascii_case(start);
    let blank = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let is_page = [&b"<!doctype html"[..], b"<html"].iter().any(|tag| {
        let begin = bytes.get(blank..blank + tag.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(tag))
    });
    if starts(b"version https://git-lfs") {
        Some(
            "this is a Git LFS pointer, which only names the file; fetch it with `git lfs pull` or `hf download`",
        )
    } else if is_page {
        Some("this is a web page, as a server sends in place of a file that needs a login; download it again")
    } else if starts(b"GGUF") {
        Some("this is a GGUF file, which can be a transformer or T5 in a file of its own, and nothing else")
    } else if starts(b"PK\x03\x04") || starts(b"\x80\x02") {
        Some("this is PyTorch's own format (.ckpt, .pt, .bin); only safetensors and GGUF are read")
    } else {
        None
    }
}

/// Bytes that [`foreign`] looks at.
pub(crate) const FOREIGN_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accidents_are_told_from_files() {
        for (bytes, words) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"[..], "git lfs pull"),
            (b"\n <!DOCTYPE HTML PUBLIC \"-//IETF//DTD\">", "web page"),
            (b"<html lang=\"en\">", "web page"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04\0\0", "PyTorch"),
            (b"\x80\x02}q\0", "PyTorch"),
        ] {
            assert!(foreign(bytes).is_some_and(|what| what.contains(words)), "{words}");
        }
        for bytes in
            [&b""[..], b"{}", b"#version: 0.2\n", b"\x40\0\0\0\0\0\0\0{", b"\n\r\x04\n\x02<pad>", b"<"]
        {
            assert_eq!(foreign(bytes), None);
        }
    }
}
