//! What the flags say, checked.

use std::path::PathBuf;
use std::time::Duration;

use schnell::{Error, Result};

use super::Args;

/// Of names in subjects and keys.
const LONGEST: usize = 64;

/// All that does not change while the worker runs.
#[derive(Debug)]
pub struct Config {
    /// With passwords: not for messages.
    pub servers: Vec<async_nats::ServerAddr>,
    pub credentials: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub prefix: String,
    pub node: String,
    pub ack_wait: Option<Duration>,
    pub tries: u16,
    /// From 0 to 1.
    pub audit: f64,
    pub queue: i64,
    pub keep_time: Duration,
    pub replicas: usize,
}

impl Config {
    pub fn new(args: &Args) -> Result<Config> {
        let server = |url: &str| {
            // Its words hold the URL, and so the password.
            let parsed = url.trim().parse::<async_nats::ServerAddr>();
            parsed.map_err(|_| {
                Error::Input("--nats is no address; use nats://host:4222, or tls://host:4222".to_string())
            })
        };
        let servers = args.nats.split(',').map(server).collect::<Result<Vec<_>>>()?;
        for (flag, name) in [("--prefix", Some(&args.prefix)), ("--node", args.node.as_ref())] {
            if let Some(name) = name.filter(|name| !is_name(name)) {
                return Err(Error::Input(format!(
                    "{flag} `{name}` is no name; use 1 to {LONGEST} letters, digits, `-` and `_`"
                )));
            }
        }
        const LEAST_WAIT: Duration = Duration::from_millis(100);
        if args.ack_wait.is_some_and(|wait| wait < LEAST_WAIT) || args.keep_time < Duration::from_secs(1) {
            return Err(Error::Input("--ack-wait is at least 100ms, and --keep-time 1s".to_string()));
        }
        Ok(Config {
            servers,
            credentials: args.credentials.clone(),
            ca: args.ca.clone(),
            prefix: args.prefix.clone(),
            node: args.node.clone().unwrap_or_else(node),
            ack_wait: args.ack_wait,
            tries: args.tries,
            audit: args.audit,
            queue: args.queue.into(),
            keep_time: args.keep_time,
            replicas: args.replicas.into(),
        })
    }

    /// Where the servers are, without passwords.
    pub fn places(&self) -> String {
        let places = self.servers.iter().map(|server| format!("{}:{}", server.host(), server.port()));
        places.collect::<Vec<_>>().join(", ")
    }
}

/// Whether it can be a part of a subject, of a bucket's name, and of a key.
pub fn is_name(text: &str) -> bool {
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_one)
}

/// Of this process.
fn node() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name: String =
        host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    format!("{name}-{}", std::process::id())
}

/// `1%`, `0.5%`.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let share = percent.map(|percent| percent / 100.0);
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("`{text}` is no share; use 1%, or anything from 0% to 100%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_parse() {
        assert_eq!(
            [parse_share("1%"), parse_share("0.5 %"), parse_share("100%")],
            [Ok(0.01), Ok(0.005), Ok(1.0)]
        );
        for bad in ["1", "%", "101%", "-1%", "nan%", "inf%"] {
            assert!(parse_share(bad).unwrap_err().contains("is no share"), "{bad}");
        }
    }

    #[test]
    fn names_are_of_what_subjects_and_keys_have_in_common() {
        assert!(["a", "node-1_B", &"x".repeat(LONGEST)].into_iter().all(is_name));
        let bad = ["", "a.b", "*", ">", "a b", "ä", "a/b", &"x".repeat(LONGEST + 1)];
        assert!(!bad.into_iter().any(is_name));
        assert!(is_name(&node()), "{}", node());
    }
}
