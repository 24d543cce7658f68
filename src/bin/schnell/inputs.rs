//! Files that the user gives beside the model: prompts and noise.

use std::path::Path;

use schnell::files::{self, Kind};
use schnell::{Error, Noise, NoiseFile, NoiseKind, Plan, Result};

/// The prompts of a file, one per line, whatever system wrote it: a byte order mark and the ends of lines are no part of
/// them, and blank lines do not count.
pub fn prompts(path: &Path) -> Result<Vec<String>> {
    Ok(lines(path)?.into_iter().map(|(_, line)| line).collect())
}

/// As [`prompts`], each with the number of its line, from 1.
pub fn lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let bytes = files::read(path, Kind::Prompts)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let line_of = |at: usize| {
        let text = &bytes[..at];
        let ends = (0..text.len()).filter(|&i| match text[i] {
            b'\n' => true,
            b'\r' => bytes.get(i + 1) != Some(&b'\n'),
            _ => false,
        });
        1 + ends.count()
    };
    let wrong = |at: usize, what: &str| {
        Error::Input(format!("{}: line {}: {what}; save as UTF-8", path.display(), line_of(at)))
    };
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(wrong(0, "this is UTF-16"));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| wrong(e.valid_up_to(), "not UTF-8"))?;
    if let Some(at) = text.find('\0') {
        return Err(wrong(at, "a NUL character, which no prompt has"));
    }
    let text = text.replace("\r\n", "\n");
    let lines = (1..).zip(text.split(['\n', '\r']).map(str::trim)).filter(|(_, line)| !line.is_empty());
    Ok(lines.map(|(number, line)| (number, line.to_string())).collect())
}

/// `--noise`: a kind, or a file whose header has been read.
pub enum NoiseSource {
    Seeded(NoiseKind),
    File(NoiseFile),
}

impl NoiseSource {
    /// The kind of that name, or else the file, as `--dump` writes it.
    pub fn open(text: &str) -> Result<NoiseSource> {
        if let Ok(kind) = text.parse() {
            return Ok(NoiseSource::Seeded(kind));
        }
        let path = Path::new(text);
        if !files::exists(path)? {
            let text = format!("--noise {}: neither f32, bf16, bf16-legacy nor a file", path.display());
            return Err(Error::Input(text));
        }
        Ok(NoiseSource::File(NoiseFile::open(path)?))
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            NoiseSource::Seeded(_) => None,
            NoiseSource::File(file) => Some(file.path()),
        }
    }

    /// The noise that `plan` takes.
    pub fn read(self, plan: &Plan) -> Result<Noise> {
        match self {
            NoiseSource::Seeded(kind) => Ok(Noise::Seeded(kind)),
            NoiseSource::File(file) => file.read(plan),
        }
    }
}
