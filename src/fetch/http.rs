//! Requests to the hub, and what can be said of each way in which one fails.
//!
//! Redirects are followed here rather than by the HTTP client: the token goes to the hub itself and to nobody else, nothing
//! leads from https to http, and the number of them is bounded.

use std::io::Read;
use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::settings::Settings;
use crate::{Error, Result};

/// As many as browsers follow.
const MOST_REDIRECTS: usize = 20;
/// Until a connection stands; more than any network that works takes.
const CONNECT: Duration = Duration::from_secs(15);
/// A server that asks for more patience is not waited for: the user decides.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Why a request gave nothing.
pub(super) enum Failure {
    /// It will not get better.
    Final(Error),
    /// It may, after a while: who is asked again says so, or nothing is known.
    Passing { what: String, wait: Option<Duration>, is_unreachable: bool },
    /// The file is shorter than what was asked for.
    PastTheEnd { what: String },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

impl Failure {
    pub(super) fn passing(what: impl Into<String>) -> Failure {
        Failure::Passing { what: what.into(), wait: None, is_unreachable: false }
    }

    /// The error that it is for who has waited enough for `file` of `id`.
    pub(super) fn into_error(self, file: &str, id: &str) -> Error {
        match self {
            Failure::Final(error) => error,
            Failure::Passing { what, is_unreachable: true, .. } => Error::network(format!(
                "{file}: {what}; is there a network, or does it need a proxy (HTTPS_PROXY)? what is in the cache works offline"
            )),
            Failure::Passing { what, .. } | Failure::PastTheEnd { what } => Error::network(format!(
                "{file}: {what}; what has arrived is kept: `schnell fetch {id}` goes on from there"
            )),
        }
    }
}

/// What is asked for, for the words of a refusal.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub id: &'a str,
    pub revision: &'a str,
}

/// What is known of a file before it is fetched.
pub(super) struct Head {
    pub etag: String,
    pub bytes: Option<u64>,
}

/// The hub.
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a Settings) -> Client<'a> {
        let config = Agent::config_builder()
            .user_agent(concat!("schnell/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_resolve(Some(CONNECT))
            .timeout_recv_response(Some(settings.timeout))
            // A server that stalls: the whole of a file may take hours.
            .timeout_per_read(Some(settings.timeout))
            .build();
        Client { agent: config.new_agent(), settings }
    }

    /// The body of `path` below the endpoint, from byte `from` on if the server can, and where it really begins.
    pub(super) fn get(&self, asked: Asked, path: &str, from: u64) -> Result<(Body, u64), Failure> {
        let mut url = format!("{}{path}", self.settings.endpoint);
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token_for(&url) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.failure(&url, error))?;
            if let Some(next) = redirect(&url, &response)? {
                url = next;
                continue;
            }
            return match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let start = range_start(&response).ok_or_else(|| {
                        Failure::passing(format!("{} sent a part without saying which", place(&url)))
                    })?;
                    Ok((response.into_body(), start))
                }
                StatusCode::OK => Ok((response.into_body(), 0)),
                _ => Err(self.refusal(asked, &url, &response)),
            };
        }
        Err(Error::network(format!(
            "{path}: more than {MOST_REDIRECTS} redirects, the last to {}",
            place(&url)
        ))
        .into())
    }

    /// All of a small body.
    pub(super) fn read(&self, asked: Asked, path: &str, most_bytes: u64) -> Result<Vec<u8>, Failure> {
        let (mut body, _) = self.get(asked, path, 0)?;
        let mut bytes = Vec::new();
        let read = body.as_reader().take(most_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.cut_off(path, error))?;
        match bytes.len() as u64 > most_bytes {
            true => Err(Error::network(format!("{path} has more than {most_bytes} bytes")).into()),
            false => Ok(bytes),
        }
    }

    /// Digest and size of a file, as the hub answers before it redirects to where the bytes are.
    pub(super) fn head(&self, asked: Asked, path: &str) -> Result<Head, Failure> {
        let mut url = format!("{}{path}", self.settings.endpoint);
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.agent.head(&url).header("Accept-Encoding", "identity");
            if let Some(token) = self.token_for(&url) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.failure(&url, error))?;
            let value = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_string);
            let number = |name: &str| value(name).and_then(|text| text.parse().ok());
            let (linked, next) = (value("x-linked-etag"), redirect(&url, &response)?);
            if let (None, Some(next)) = (&linked, next) {
                url = next;
                continue;
            }
            if !response.status().is_success() && !response.status().is_redirection() {
                return Err(self.refusal(asked, &url, &response));
            }
            let bytes = match linked {
                Some(_) => number("x-linked-size"),
                None => number("content-length"),
            };
            let etag = linked.or_else(|| value("etag")).unwrap_or_default();
            return Ok(Head { etag: etag.trim_start_matches("W/").trim_matches('"').to_string(), bytes });
        }
        Err(Error::network(format!("{path}: more than {MOST_REDIRECTS} redirects")).into())
    }

    /// The token, for the hub itself: where it redirects to needs none.
    fn token_for(&self, url: &str) -> Option<&str> {
        let is_hub = origin(url) == origin(&self.settings.endpoint);
        self.settings.token.as_ref().map(|token| token.0.as_str()).filter(|_| is_hub)
    }

    /// Why the body of `path` does not go on.
    pub(super) fn cut_off(&self, path: &str, error: std::io::Error) -> Failure {
        self.failure(&format!("{}{path}", self.settings.endpoint), error.into())
    }

    fn failure(&self, url: &str, error: ureq::Error) -> Failure {
        let (at, seconds) = (place(url), self.settings.timeout.as_secs_f64());
        let passing = |what: String, is_unreachable| Failure::Passing { what, wait: None, is_unreachable };
        match error {
            ureq::Error::HostNotFound => passing(format!("the host of {at} cannot be found"), true),
            ureq::Error::ConnectionFailed => passing(format!("no connection to {at}"), true),
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                passing(format!("no connection to {at} within {} s", CONNECT.as_secs()), true)
            }
            ureq::Error::Timeout(_) => passing(format!("nothing came from {at} for {seconds} s"), false),
            ureq::Error::Io(e) if url.starts_with("https://") && is_tls(&e) => tls(&at, &e).into(),
            ureq::Error::Rustls(e) => tls(&at, &e).into(),
            ureq::Error::Tls(what) => tls(&at, &what).into(),
            // The standard library has no kind for it.
            ureq::Error::Io(e) if e.to_string().contains("lookup address") => {
                passing(format!("the host of {at} cannot be found ({e})"), true)
            }
            ureq::Error::Io(e) => {
                use std::io::ErrorKind::{
                    ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
                };
                let kinds = [ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable];
                passing(format!("the connection to {at} failed: {e}"), kinds.contains(&e.kind()))
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => Error::Input(
                format!("{at} cannot be asked: {error}; look at HF_ENDPOINT and the proxy variables"),
            )
            .into(),
            other => passing(format!("{at} does not speak HTTP as expected: {other}"), false),
        }
    }

    /// What a status other than success means.
    fn refusal(&self, asked: Asked, url: &str, response: &Response<Body>) -> Failure {
        let Asked { id, revision } = asked;
        let (status, at) = (response.status(), place(url));
        let hub = place(&self.settings.endpoint);
        let hub = hub.trim_end_matches('/');
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let code = header("x-error-code").unwrap_or_default();
        if matches!(status.as_u16(), 408 | 429 | 500..=599) {
            let wait =
                header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            let what = match status.as_u16() {
                429 => format!("{at} has had too many requests (429)"),
                other => format!("{at} is in trouble ({other})"),
            };
            return match wait {
                Some(wait) if wait > LONGEST_WAIT => {
                    let text = format!("{what} and asks to wait {} s; try again then", wait.as_secs());
                    Error::network(text).into()
                }
                wait => Failure::Passing { what, wait, is_unreachable: false },
            };
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Failure::PastTheEnd { what: format!("{at} ends before what was asked for") };
        }
        if origin(url) != origin(&self.settings.endpoint) {
            // A link that has expired, most likely: the hub makes a new one.
            return Failure::passing(format!("{at}, where the hub redirects to, answers {status}"));
        }
        let how = "make a token at https://huggingface.co/settings/tokens and set HF_TOKEN to it, or run `hf auth login`";
        let text = match (status.as_u16(), &self.settings.token) {
            (401, _) if code == "RepoNotFound" => {
                format!("{hub} has no model {id}, or it is private; look at the spelling, or {how}")
            }
            (401, None) => format!(
                "{id} is gated or private (401): log in and accept its license at {hub}/{id}, then {how}"
            ),
            (401, Some(_)) => format!(
                "the token is not accepted for {id} (401): it may have expired; accept the license at {hub}/{id}, then {how}"
            ),
            (403, _) => format!(
                "the token may not read {id} (403): accept its license at {hub}/{id} with the token's account; a fine-grained \
                 token must be allowed to read gated repositories"
            ),
            (404, _) if code == "RevisionNotFound" => {
                format!("{id} has no revision {revision}; name a branch, tag or commit of it, as main")
            }
            (404, _) if code == "EntryNotFound" => format!("{at} is not there (404), although {id} lists it"),
            (404, _) => format!(
                "{hub} has no model {id} with a revision {revision} (404); look at the spelling: it is organization/name"
            ),
            _ => return Error::network(format!("{at} answers {status}, which is not expected")).into(),
        };
        Error::Input(text).into()
    }
}

/// Where the answer sends us, if it does.
fn redirect(url: &str, response: &Response<Body>) -> Result<Option<String>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let next = location.and_then(|location| resolve(url, location));
    match next {
        Some(next) if url.starts_with("https://") && !next.starts_with("https://") => {
            Err(Error::network(format!("{} redirects from https to {}", place(url), place(&next))).into())
        }
        Some(next) => Ok(Some(next)),
        None => Err(Error::network(format!("{} redirects to nowhere", place(url))).into()),
    }
}

/// `location` as seen from `base`; nothing for other schemes than HTTP's.
fn resolve(base: &str, location: &str) -> Option<String> {
    let uri: Uri = base.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let next = if location.is_empty() {
        return None;
    } else if location.starts_with("http://") || location.starts_with("https://") {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        return None;
    } else {
        let (folder, _) = uri.path().rsplit_once('/')?;
        format!("{scheme}://{authority}{folder}/{location}")
    };
    next.parse::<Uri>().ok().map(|_| next)
}

/// Scheme, host and port: whom a token is for.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_string(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// A URL for messages: without what comes after the path, which may be a signature, and without a password.
pub(super) fn place(url: &str) -> String {
    let Ok(uri) = url.parse::<Uri>() else { return "an address that is none".to_string() };
    let scheme = uri.scheme_str().unwrap_or("http");
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{}{port}{}", uri.host().unwrap_or_default(), uri.path())
}

/// The first byte's number of a part: `bytes 5-9/10`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let value = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// rustls reports its errors through the stream.
fn is_tls(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::InvalidData
}

fn tls(at: &str, why: &dyn std::fmt::Display) -> Error {
    Error::network(format!(
        "no secure connection to {at}: {why}; look at the clock, and whether a proxy puts its own certificate in between"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_resolve_as_in_a_browser() {
        let base = "https://hub.example:8443/org/name/resolve/main/a.json?x=1";
        for (location, expected) in [
            ("https://cdn.example/b?sig=1", Some("https://cdn.example/b?sig=1")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("/b/c", Some("https://hub.example:8443/b/c")),
            ("b.json", Some("https://hub.example:8443/org/name/resolve/main/b.json")),
            ("file:///etc/passwd", None),
            ("ftp://cdn.example/b", None),
            ("https://", None),
            ("", None),
        ] {
            assert_eq!(resolve(base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn no_redirect_leads_from_https_to_http() {
        let answer = |to: &str| {
            let response = Response::builder().status(302).header("Location", to);
            response.body(Body::builder().data(Vec::new())).unwrap()
        };
        let https = "https://hub.example/a";
        let Err(Failure::Final(refusal)) = redirect(https, &answer("http://hub.example/b")) else { panic!() };
        assert!(refusal.to_string().contains("from https to http"), "{refusal}");
        for (from, to) in [(https, "https://cdn.example/b"), ("http://hub.example/a", "http://cdn.example/b")]
        {
            assert!(matches!(redirect(from, &answer(to)), Ok(Some(next)) if next == to));
        }
    }

    #[test]
    fn a_token_belongs_to_one_origin() {
        let hub = origin("https://huggingface.co/api");
        assert_eq!(hub, origin("https://HuggingFace.co/org/name"));
        for other in ["http://huggingface.co/", "https://huggingface.co:444/", "https://cdn.huggingface.co/"]
        {
            assert_ne!(hub, origin(other), "{other}");
        }
    }

    #[test]
    fn messages_hold_neither_signatures_nor_passwords() {
        assert_eq!(
            place("https://me:secret@cdn.example:8/a/b?Signature=secret"),
            "https://cdn.example:8/a/b"
        );
    }
}
