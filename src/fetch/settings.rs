//! Where the hub is, who asks, and how patient we are: the variables of the Hugging Face tools.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::http;
use crate::weights::hub;
use crate::{Error, Result, files};

/// Seconds without a byte after which a connection counts as dead. The tools' 10 s are few for a busy disk behind a CDN.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Waited after a failure; twice that after the next.
const BACK_OFF: Duration = Duration::from_millis(500);

/// What is in no message, and in no `{:?}` of what holds it.
#[derive(Clone)]
pub(super) struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Without a slash at its end.
    pub endpoint: String,
    pub token: Option<Secret>,
    pub cache: PathBuf,
    pub is_offline: bool,
    pub timeout: Duration,
    pub back_off: Duration,
}

impl Settings {
    /// By the variables of this process.
    pub(super) fn from_environment() -> Result<Settings> {
        Settings::new(|name| std::env::var_os(name))
    }

    fn new(variable: impl Fn(&str) -> Option<OsString>) -> Result<Settings> {
        let text = |name: &str| {
            variable(name).and_then(|value| value.into_string().ok()).filter(|value| !value.trim().is_empty())
        };
        let is_set = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
            })
        };
        let timeout = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.trim().parse().ok());
        let seconds = timeout.filter(|seconds: &f64| (0.01..86400.0).contains(seconds));
        let implicit = !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let token = implicit.then(|| {
            text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(|| token_file(&variable))
        });
        Ok(Settings {
            endpoint: endpoint(&text("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_string()))?,
            token: token.flatten().map(|text| token_of(&text)).transpose()?,
            cache: hub::cache(&variable),
            is_offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            timeout: seconds.map_or(TIMEOUT, Duration::from_secs_f64),
            back_off: BACK_OFF,
        })
    }
}

/// A hub's address, checked.
pub(super) fn endpoint(text: &str) -> Result<String> {
    let text = text.trim().trim_end_matches('/');
    let is_http = text.starts_with("https://") || text.starts_with("http://");
    match text.parse::<ureq::http::Uri>() {
        Ok(uri) if is_http && uri.host().is_some() && uri.query().is_none() => Ok(text.to_string()),
        _ => Err(Error::Input(format!(
            "HF_ENDPOINT: {} is no address; expected one as https://huggingface.co",
            http::place(text)
        ))),
    }
}

/// A token, checked: it becomes a line of a request. What it is stays out of the message.
pub(super) fn token_of(text: &str) -> Result<Secret> {
    let token = text.trim();
    match !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Secret(token.to_string())),
        false => Err(Error::Input(
            "the token for the hub holds what is no letter or digit; make a new one".to_string(),
        )),
    }
}

/// What `hf auth login` has written.
fn token_file(variable: &impl Fn(&str) -> Option<OsString>) -> Option<String> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = set("HF_TOKEN_PATH").unwrap_or_else(|| hub::home(variable).join("token"));
    let bytes = files::read(&path, files::Kind::Reference).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::new(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_token_comes_from_where_the_tools_keep_it() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().to_str().unwrap();
        std::fs::write(format!("{home}/token"), "hf_file\n").unwrap();
        std::fs::write(format!("{home}/other"), "hf_other").unwrap();
        let other = format!("{home}/other");
        let file = [("HF_HOME", home)];
        for (more, expected) in [
            (&[][..], Some("hf_file")),
            (&[("HF_TOKEN_PATH", other.as_str())], Some("hf_other")),
            (&[("HF_TOKEN", " hf_set ")], Some("hf_set")),
            (&[("HUGGING_FACE_HUB_TOKEN", "hf_old")], Some("hf_old")),
            (&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
        ] {
            let found = settings(&[&file, more].concat()).unwrap();
            assert_eq!(found.token.as_ref().map(|token| token.0.as_str()), expected);
            assert!(!format!("{found:?}").contains("hf_"), "{found:?}");
        }
        let wrong = settings(&[("HF_TOKEN", "a\r\nX-Evil: 1")]).unwrap_err().to_string();
        assert!(wrong.contains("the token for the hub") && !wrong.contains("Evil"), "{wrong}");
    }

    #[test]
    fn variables_mean_what_they_mean_to_the_tools() {
        let usual = settings(&[]).unwrap();
        assert_eq!((usual.endpoint.as_str(), usual.is_offline), ("https://huggingface.co", false));
        assert_eq!(usual.timeout, TIMEOUT);
        let set = settings(&[
            ("HF_ENDPOINT", "http://mirror:80/hf/"),
            ("HF_HUB_OFFLINE", "True"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5"),
        ]);
        let set = set.unwrap();
        assert_eq!((set.endpoint.as_str(), set.is_offline), ("http://mirror:80/hf", true));
        assert_eq!(set.timeout, Duration::from_millis(2500));
        for wrong in ["huggingface.co", "file:///etc", "https://", "https://a/?b"] {
            assert!(
                settings(&[("HF_ENDPOINT", wrong)]).unwrap_err().to_string().contains("HF_ENDPOINT"),
                "{wrong}"
            );
        }
    }
}
