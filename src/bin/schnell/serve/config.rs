//! What the flags say, checked: limits, names and keys.

use std::path::Path;
use std::time::Duration;

use schnell::files::{self, Kind};
use schnell::{Error, PipelineConfig, Result, Shape};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::Args;

/// Where a key may stand instead of in a file.
const KEY_VARIABLE: &str = "SCHNELL_API_KEY";
/// What guesses cannot reach.
const LEAST_KEY: usize = 16;

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub width: usize,
    pub height: usize,
}

/// `1024x768`.
pub fn parse_size(text: &str) -> Result<Size, String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((side(w)?, side(h)?)));
    sides
        .map(|(width, height)| Size { width, height })
        .ok_or_else(|| format!("`{text}` is no size; use WIDTHxHEIGHT in pixels, such as 1024x768"))
}

/// Digits alone: no sign, no spaces.
fn side(text: &str) -> Option<usize> {
    let is_number = (1..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// All that does not change while the server runs.
#[derive(Debug)]
pub struct Config {
    pub model: PipelineConfig,
    /// What a request gets that says nothing.
    pub first: Shape,
    /// Pixels of the largest picture that was planned.
    pub most_pixels: usize,
    /// Whether negative prompts were planned for.
    pub negative_prompts: bool,
    pub names: Vec<String>,
    pub keys: Keys,
    pub hosts: Vec<String>,
    pub public_url: Option<String>,
    pub queue: usize,
    pub most_n: usize,
    pub most_steps: usize,
    pub most_prompt: usize,
    pub most_body: usize,
    pub connections: usize,
    pub timeout: Duration,
    pub keep: usize,
    pub keep_time: Duration,
}

impl Config {
    pub fn new(args: &Args, model: &PipelineConfig, shapes: &[Shape]) -> Result<Config> {
        let first = shapes[0];
        if args.max_n > args.queue {
            return Err(Error::Input(format!(
                "--max-n {} is more than --queue {} has room for; lower one or raise the other",
                args.max_n, args.queue
            )));
        }
        if args.timeout.is_zero() || args.keep_time.is_zero() {
            return Err(Error::Input("--timeout and --keep-time take times above 0".to_string()));
        }
        const MOST_BODY: u64 = 64 << 20;
        if args.max_body > MOST_BODY {
            return Err(Error::Input(format!("--max-body takes at most {MOST_BODY} bytes")));
        }
        let most_pixels = shapes.iter().map(|shape| shape.width * shape.height).max().unwrap_or_default();
        // Three bytes a pixel, which files of noise exceed a little, and notes: all links of one answer lead somewhere.
        let least = u64::from(args.max_n) * (most_pixels as u64 * 4 + (1 << 20));
        if args.keep < least {
            return Err(Error::Input(format!(
                "--keep {} is less than the pictures of one request may take, {least} bytes; raise it, or lower --max-n",
                args.keep
            )));
        }
        let public_url = match &args.public_url {
            Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
                return Err(Error::Input("--public-url begins with http:// or https://".to_string()));
            }
            url => url.as_ref().map(|url| url.trim_end_matches('/').to_string()),
        };
        Ok(Config {
            model: model.clone(),
            first,
            most_pixels,
            negative_prompts: args.negative_prompts,
            names: names(args),
            keys: Keys::open(args.api_key_file.as_deref())?,
            hosts: args.host.iter().map(|name| name.to_ascii_lowercase()).collect(),
            public_url,
            queue: args.queue.into(),
            most_n: args.max_n.into(),
            most_steps: Config::most_steps(args, first.steps)?,
            most_prompt: args.max_prompt as usize,
            most_body: args.max_body as usize,
            connections: args.connections as usize,
            timeout: args.timeout,
            keep: args.keep as usize,
            keep_time: args.keep_time,
        })
    }

    /// Of one picture.
    pub fn most_steps(args: &Args, usual: usize) -> Result<usize> {
        match args.max_steps {
            None => Ok(usual.max(50)),
            Some(most) if most >= usual => Ok(most),
            Some(most) => Err(Error::Input(format!(
                "--max-steps {most} is less than the {usual} steps of a request that says nothing; raise it, or lower --steps"
            ))),
        }
    }

    /// Whether that is the model.
    pub fn is_model(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

/// By the flags, or by where the model is.
fn names(args: &Args) -> Vec<String> {
    if !args.model_name.is_empty() {
        return args.model_name.clone();
    }
    let model = &args.plan.model;
    if model.is_demo() {
        return vec!["demo".to_string()];
    }
    let named = model.model.as_ref().map(Path::new).or(model.transformer.as_deref());
    let stem = named.map(|path| if path.is_file() { path.with_extension("") } else { path.to_path_buf() });
    let name = stem.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    vec![name.unwrap_or_else(|| "schnell".to_string())]
}

/// Digests of the keys, of one of which requests have to bring the text. Comparing digests takes as long whatever is brought.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    fn open(file: Option<&Path>) -> Result<Keys> {
        let of_variable = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty());
        let mut keys: Vec<(String, String)> = Vec::new();
        if let Some(path) = file {
            let bytes = files::read(path, Kind::Prompts)?;
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Error::Input(format!("{}: a key is no UTF-8", path.display())))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            keys.extend(lines.map(|line| (path.display().to_string(), line.to_string())));
            if keys.is_empty() {
                return Err(Error::Input(format!("{}: no key in it; write one a line", path.display())));
            }
        }
        keys.extend(of_variable.map(|key| (KEY_VARIABLE.to_string(), key)));
        // What is wrong is said without the key.
        if let Some((place, key)) = keys.iter().find(|(_, key)| key.len() < LEAST_KEY) {
            return Err(Error::Input(format!(
                "{place}: a key of {} bytes can be guessed; use {LEAST_KEY} or more",
                key.len()
            )));
        }
        if let Some((place, _)) =
            keys.iter().find(|(_, key)| !key.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(Error::Input(format!("{place}: a key has letters, digits and signs of ASCII alone")));
        }
        Ok(Keys(keys.iter().map(|(_, key)| Sha256::digest(key.as_bytes()).into()).collect()))
    }

    /// Anybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is one of them. All are looked at.
    pub fn has(&self, key: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let found = self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&digest));
        found.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_digits_alone() {
        assert_eq!(parse_size("64x128"), Ok(Size { width: 64, height: 128 }));
        for bad in ["", "64", "64x", "x64", "+64x64", "64 x64", "64x64x64", "-1x64", "1234567x64", "64X64"] {
            assert!(parse_size(bad).unwrap_err().contains("is no size"), "{bad}");
        }
    }

    #[test]
    fn keys_are_whole() {
        let digest = |key: &str| -> [u8; 32] { Sha256::digest(key.as_bytes()).into() };
        let keys = Keys(vec![digest("first-key-of-many"), digest("second-key-of-all")]);
        assert!(keys.has("first-key-of-many") && keys.has("second-key-of-all"));
        for other in ["", "first-key-of-man", "first-key-of-many ", "First-key-of-many"] {
            assert!(!keys.has(other), "{other}");
        }
    }
}
