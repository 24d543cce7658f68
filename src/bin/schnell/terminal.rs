//! What is said to people, and to the next program in a pipe. Whoever does not listen costs neither picture nor panic.

use std::io::{ErrorKind, Write};

use schnell::{Error, Result};

/// Standard error that nobody needs to read: what cannot be written there is lost.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let _ = std::io::stderr().flush();
        Ok(())
    }
}

/// A line for people. Names of files and prompts may hold what would steer the terminal; errors come escaped already.
pub fn say(text: impl std::fmt::Display) {
    let escaped = |c: char| if is_control(c) { c.escape_unicode().to_string() } else { c.to_string() };
    let line: String = text.to_string().chars().map(escaped).collect();
    let _ = writeln!(Stderr, "{line}");
}

/// Whether a terminal would take some of `text` for an order.
pub fn steers(text: &str) -> bool {
    text.contains(is_control)
}

fn is_control(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Machine output. A reader that has gone away, as `head` does, has what it wanted.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::io("write", "standard output")),
    }
}
