//! Files that the user gives beside the model: prompts and noise.

use std::path::{Path, PathBuf};

use schnell::files::{self, Kind};
use schnell::pipeline::{Noise, Plan};
use schnell::sampling::NoiseKind;
use schnell::weights::{Dtype, SafeTensors, TensorInfo};
use schnell::{Error, Result};

/// The prompts of a file, one per line, whatever system wrote it: a byte order mark and the ends of lines are no part of
/// them, and blank lines do not count.
pub fn prompts(path: &Path) -> Result<Vec<String>> {
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
    let lines = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_string).collect())
}

/// `--noise`: a kind, or a file whose header has been read.
pub enum NoiseSource {
    Seeded(NoiseKind),
    File(PathBuf, TensorInfo),
}

impl NoiseSource {
    /// The kind of that name, or else the file with one f32 tensor, packed `[1, tokens, channels]`, as `--dump` writes it.
    pub fn open(text: &str) -> Result<NoiseSource> {
        if let Ok(kind) = text.parse() {
            return Ok(NoiseSource::Seeded(kind));
        }
        let path = Path::new(text);
        let wrong = |what: &str| {
            Error::weights(path, format!("{what}; expected one f32 tensor [1, tokens, channels]"))
        };
        if !files::exists(path)? {
            let text = format!("--noise {}: neither f32, bf16, bf16-legacy nor a file", path.display());
            return Err(Error::Input(text));
        }
        let file = SafeTensors::open(path)?;
        let mut tensors = file.iter();
        match (tensors.next(), tensors.next()) {
            (Some(tensor), None) if tensor.dtype == Dtype::F32 && tensor.shape.len() == 3 => {
                Ok(NoiseSource::File(path.to_path_buf(), tensor.clone()))
            }
            (Some(tensor), None) => {
                Err(wrong(&format!("{} is {:?} {:?}", tensor.name, tensor.dtype, tensor.shape)))
            }
            _ => Err(wrong("not exactly one tensor")),
        }
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            NoiseSource::Seeded(_) => None,
            NoiseSource::File(path, _) => Some(path),
        }
    }

    /// Reads the values, once the header says that they are those that `plan` takes.
    pub fn read(self, plan: &Plan) -> Result<Noise> {
        let tensor = match self {
            NoiseSource::Seeded(kind) => return Ok(Noise::Seeded(kind)),
            NoiseSource::File(_, tensor) => tensor,
        };
        let (tokens, channels) = (plan.shape().image_tokens(plan.config()), plan.config().flux.in_channels);
        let expected = [1, tokens, channels];
        if tensor.shape != expected {
            return Err(Error::Input(format!(
                "noise {:?} of {} values; this size takes {expected:?}: {tokens} tokens x {channels} channels",
                tensor.shape,
                tensor.elements()
            )));
        }
        Ok(Noise::Given(tensor.read_f32()?))
    }
}
