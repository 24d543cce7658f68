//! What is said to people, and to the next program in a pipe. Whoever does not listen costs neither picture nor panic.

use std::io::{ErrorKind, IsTerminal, Write};

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

/// Whether standard error shows colors: it is a terminal, and nobody has said no (<https://no-color.org>).
pub fn has_colors() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Characters of a line: a flag's value may have a hundred thousand.
const LONGEST_LINE: usize = 2000;

/// Lines for people. Names of files, prompts and values of flags may hold what would steer the terminal, and may be of any
/// length; errors of the library come escaped and cut already.
pub fn say(text: impl std::fmt::Display) {
    let text = text.to_string();
    let lines: Vec<String> = text.split('\n').map(fit).collect();
    let _ = writeln!(Stderr, "{}", lines.join("\n"));
}

/// Bytes of a digest.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The end of a name, for a line that has little room.
#[cfg(feature = "fetch")]
pub fn shortened(name: &str) -> String {
    const ROOM: usize = 40;
    let len = name.chars().count();
    match len <= ROOM {
        true => fit(name),
        false => format!("..{}", fit(&name.chars().skip(len - ROOM + 2).collect::<String>())),
    }
}

/// Whether [`say`] shows `text` as it is.
pub fn fits(text: &str) -> bool {
    text.split('\n').all(|line| fit(line) == line)
}

fn fit(line: &str) -> String {
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let escaped = |c: char| if steers(c) { c.escape_unicode().to_string() } else { c.to_string() };
    let len = line.chars().count();
    if len <= LONGEST_LINE {
        return line.chars().map(escaped).collect();
    }
    let half = LONGEST_LINE / 2;
    let start: String = line.chars().take(half).map(escaped).collect();
    let end: String = line.chars().skip(len - half).map(escaped).collect();
    format!("{start} [{} characters] {end}", len - 2 * half)
}

/// Machine output. A reader that has gone away, as `head` does, has what it wanted.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::io("write", "standard output")),
    }
}
