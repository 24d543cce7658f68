//! What the flags say, checked.

use std::path::Path;
use std::time::Duration;

use schnell::files::{self, Kind};
use schnell::{Error, Result};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::Args;
use crate::service::limits::Limits;

/// Where a key may stand instead of in a file.
const KEY_VARIABLE: &str = "SCHNELL_API_KEY";
/// What guesses cannot reach.
const LEAST_KEY: usize = 16;

/// All that does not change while the server runs.
#[derive(Debug)]
pub struct Config {
    pub limits: Limits,
    pub keys: Keys,
    pub hosts: Vec<String>,
    pub public_url: Option<String>,
    pub queue: usize,
    pub most_body: usize,
    pub connections: usize,
    pub timeout: Duration,
    pub keep: usize,
    pub keep_time: Duration,
}

impl Config {
    pub fn new(args: &Args, limits: Limits) -> Result<Config> {
        if limits.most_n > args.queue.into() {
            return Err(Error::Input(format!(
                "--max-n {} is more than --queue {} has room for; lower one or raise the other",
                limits.most_n, args.queue
            )));
        }
        if args.timeout.is_zero() || args.keep_time.is_zero() {
            return Err(Error::Input("--timeout and --keep-time take times above 0".to_string()));
        }
        const MOST_BODY: u64 = 64 << 20;
        if args.max_body > MOST_BODY {
            return Err(Error::Input(format!("--max-body takes at most {MOST_BODY} bytes")));
        }
        // Three bytes a pixel, which files of noise exceed a little, and notes: all links of one answer lead somewhere.
        let least = limits.most_n as u64 * (limits.most_pixels as u64 * 4 + (1 << 20));
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
            limits,
            keys: Keys::open(args.api_key_file.as_deref())?,
            hosts: args.host.iter().map(|name| name.to_ascii_lowercase()).collect(),
            public_url,
            queue: args.queue.into(),
            most_body: args.max_body as usize,
            connections: args.connections as usize,
            timeout: args.timeout,
            keep: args.keep as usize,
            keep_time: args.keep_time,
        })
    }
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
    fn keys_are_whole() {
        let digest = |key: &str| -> [u8; 32] { Sha256::digest(key.as_bytes()).into() };
        let keys = Keys(vec![digest("first-key-of-many"), digest("second-key-of-all")]);
        assert!(keys.has("first-key-of-many") && keys.has("second-key-of-all"));
        for other in ["", "first-key-of-man", "first-key-of-many ", "First-key-of-many"] {
            assert!(!keys.has(other), "{other}");
        }
    }
}
