//! A hub for tests: it serves one repository as huggingface.co does, large files by way of another server, and misbehaves on
//! demand. Whether it is like the real one is looked at through the Hugging Face tools' own client.

#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const ID: &str = "org/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What happens to one answer, in place of what should.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection closes after so many bytes.
    Truncate(usize),
    /// Nothing comes after so many bytes.
    Stall(usize),
    /// The connection is reset after so many bytes.
    Reset(usize),
    /// Closes before any answer.
    Close,
    /// Other bytes, as many.
    Garbage,
    /// So many bytes more, and no `Content-Length`.
    Longer(usize),
    /// All but so many bytes, as if that were all.
    Shorter(usize),
    /// The same, and no `Content-Length`.
    Ends(usize),
    /// From the first byte, whatever was asked for.
    IgnoreRange,
    /// Another status, with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// To somewhere else.
    Redirect(String),
    /// This, as it is.
    Body(Vec<u8>),
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub range: Option<u64>,
    pub token: Option<String>,
    /// By the server to which large files are redirected.
    pub is_cdn: bool,
}

#[derive(Default)]
pub struct State {
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// By what a path ends with; each serves once, the last for ever where `is_lasting`.
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    lasting: Mutex<HashMap<String, Fault>>,
    pub asked: Mutex<Vec<Asked>>,
    /// The only token that gets in, if there is one.
    pub token: Mutex<Option<String>>,
    /// More siblings of the list.
    pub more: Mutex<Vec<Value>>,
    /// The list without sizes and digests.
    pub is_terse: AtomicBool,
    /// Pause after every 16 KiB of large files.
    pub pause_us: AtomicU64,
    /// Bytes of files sent so far.
    pub sent: AtomicU64,
    is_over: AtomicBool,
    cdn: Mutex<String>,
}

pub struct Hub {
    pub endpoint: String,
    pub state: Arc<State>,
}

impl Hub {
    /// Serves `files` until it is dropped.
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Hub {
        let state = Arc::new(State { files: Mutex::new(files), ..State::default() });
        let [endpoint, cdn] = [false, true].map(|is_cdn| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if state.is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let state = state.clone();
                    std::thread::spawn(move || drop(serve(&state, stream.unwrap(), is_cdn)));
                }
            });
            address
        });
        *state.cdn.lock().unwrap() = cdn;
        Hub { endpoint, state }
    }

    /// The next answers for what ends with `path`; of files, those with bytes.
    pub fn faults(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().unwrap().insert(path.to_string(), faults.into_iter().collect());
    }

    /// All answers for what ends with `path`.
    pub fn always(&self, path: &str, fault: Fault) {
        self.state.lasting.lock().unwrap().insert(path.to_string(), fault);
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Requests for the bytes of what ends with `path`: where each began.
    pub fn ranges(&self, path: &str) -> Vec<u64> {
        let asked = self.asked().into_iter();
        let of_file = asked.filter(|asked| asked.method == "GET" && asked.path.ends_with(path));
        // Where large files are, rather than the redirect.
        let all: Vec<Asked> = of_file.collect();
        let by_cdn = all.iter().any(|asked| asked.is_cdn);
        all.iter().filter(|asked| asked.is_cdn == by_cdn).map(|asked| asked.range.unwrap_or(0)).collect()
    }

    pub fn forget(&self) {
        self.state.asked.lock().unwrap().clear();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        for address in [&self.endpoint, &*self.state.cdn.lock().unwrap()] {
            let _ = TcpStream::connect(address.trim_start_matches("http://"));
        }
    }
}

/// Large files are those that Git LFS would have.
fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As the hub names a file's content.
pub fn digest(path: &str, bytes: &[u8]) -> String {
    match is_large(path) {
        true => hex(&Sha256::digest(bytes)),
        false => {
            hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
        }
    }
}

fn listing(state: &State) -> Value {
    let is_terse = state.is_terse.load(Ordering::Relaxed);
    let files = state.files.lock().unwrap();
    let sibling = |(path, bytes): (&String, &Vec<u8>)| {
        let digest = digest(path, bytes);
        match (is_terse, is_large(path)) {
            (true, _) => json!({"rfilename": path}),
            (false, false) => json!({"rfilename": path, "size": bytes.len(), "blobId": digest}),
            (false, true) => json!({
                "rfilename": path, "size": bytes.len(), "blobId": "1".repeat(40),
                "lfs": {"sha256": digest, "size": bytes.len(), "pointerSize": 135},
            }),
        }
    };
    let mut siblings: Vec<Value> = files.iter().map(sibling).collect();
    siblings.extend(state.more.lock().unwrap().clone());
    json!({"id": ID, "sha": COMMIT, "gated": false, "siblings": siblings, "tags": ["text-to-image"]})
}

fn serve(state: &State, stream: TcpStream, is_cdn: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_string());
    }
    let Some(first) = lines.first() else { return Ok(()) };
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let header = |name: &str| {
        let found =
            lines.iter().filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_string())
    };
    let span = header("range").and_then(|value| value.strip_prefix("bytes=").map(str::to_string));
    let (from, to) = span.as_deref().and_then(|span| span.split_once('-')).unwrap_or_default();
    let token = header("authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_string));
    let path = path.split('?').next().unwrap_or_default().to_string();
    let (range, end) = (from.parse().ok(), to.parse().ok());
    let asked = Asked { method: method.to_string(), path, range, token, is_cdn };
    state.asked.lock().unwrap().push(asked.clone());
    answer(state, &asked, end, &stream)
}

/// The fault that is due. Of large files it concerns the bytes, unless it is a status or a redirect of the hub itself.
fn due(state: &State, asked: &Asked) -> Option<Fault> {
    let fits = |end: &String| asked.path.ends_with(end.as_str());
    let of_bytes = asked.method == "GET" && (asked.is_cdn || !is_large(&asked.path));
    if !of_bytes {
        return None;
    }
    if let Some((_, queue)) = state.faults.lock().unwrap().iter_mut().find(|(end, _)| fits(end))
        && let Some(fault) = queue.pop_front()
    {
        return Some(fault);
    }
    state.lasting.lock().unwrap().iter().find(|(end, _)| fits(end)).map(|(_, fault)| fault.clone())
}

fn respond(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)
}

fn answer(state: &State, asked: &Asked, end: Option<u64>, stream: &TcpStream) -> std::io::Result<()> {
    let refuse = |status, code: &str| respond(stream, status, &[("X-Error-Code", code.to_string())], b"");
    match due(state, asked) {
        Some(Fault::Status(status, headers)) => return respond(stream, status, &headers, b"a page"),
        Some(Fault::Redirect(to)) => return respond(stream, 302, &[("Location", to)], b""),
        Some(Fault::Body(body)) => return respond(stream, 200, &[], &body),
        Some(Fault::Close) => return Ok(()),
        Some(fault) => return file(state, asked, end, stream, Some(fault)),
        None => {}
    }
    if asked.is_cdn {
        return file(state, asked, end, stream, None);
    }
    if let Some(needed) = &*state.token.lock().unwrap() {
        match &asked.token {
            None => return refuse(401, "GatedRepo"),
            Some(token) if token != needed => return refuse(403, "GatedRepo"),
            Some(_) => {}
        }
    }
    let list = format!("/api/models/{ID}/revision/");
    if let Some(revision) = asked.path.strip_prefix(&list) {
        return match revision {
            "main" | "v2" | "refs%2Fpr%2F1" | COMMIT => {
                respond(stream, 200, &[], listing(state).to_string().as_bytes())
            }
            _ => refuse(404, "RevisionNotFound"),
        };
    }
    file(state, asked, end, stream, None)
}

/// A file's bytes, or where they are.
fn file(
    state: &State,
    asked: &Asked,
    end: Option<u64>,
    stream: &TcpStream,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let resolve = [COMMIT, "main"].map(|revision| format!("/{ID}/resolve/{revision}/"));
    let known = resolve.iter().find_map(|start| asked.path.strip_prefix(start.as_str()));
    let files = state.files.lock().unwrap();
    let Some((path, bytes)) = known.and_then(|path| files.get_key_value(path)) else {
        return respond(stream, 404, &[("X-Error-Code", "EntryNotFound".to_string())], b"");
    };
    let (path, mut bytes) = (path.clone(), bytes.clone());
    drop(files);
    let (len, etag) = (bytes.len(), digest(&path, &bytes));
    let mut headers = vec![("X-Repo-Commit", COMMIT.to_string())];
    if is_large(&path) && !asked.is_cdn {
        headers.push(("X-Linked-Etag", format!("\"{etag}\"")));
        headers.push(("X-Linked-Size", len.to_string()));
        let cdn = state.cdn.lock().unwrap().clone();
        headers.push(("Location", format!("{cdn}{}?Signature=secret", asked.path)));
        return respond(stream, 302, &headers, b"");
    }
    headers.push(("ETag", format!("\"{etag}\"")));
    if asked.method == "HEAD" {
        headers.push(("Content-Length", len.to_string()));
        return respond(stream, 200, &headers, b"");
    }
    match fault {
        Some(Fault::Garbage) => bytes.iter_mut().for_each(|byte| *byte ^= 0x55),
        Some(Fault::Longer(more)) => bytes.extend(vec![7; more]),
        Some(Fault::Shorter(less) | Fault::Ends(less)) => bytes.truncate(len - less),
        _ => {}
    }
    let from = match (asked.range, &fault) {
        (_, Some(Fault::IgnoreRange)) | (None, _) => None,
        (Some(from), _) if from as usize >= bytes.len() && !bytes.is_empty() => {
            return respond(stream, 416, &[], b"");
        }
        (Some(from), _) => Some(from as usize),
    };
    let until = end.map_or(bytes.len(), |end| (end as usize + 1).min(bytes.len()));
    let status = match from {
        Some(from) => {
            headers.push(("Content-Range", format!("bytes {from}-{}/{}", until.max(1) - 1, bytes.len())));
            206
        }
        None => 200,
    };
    let body = &bytes[from.unwrap_or(0)..until];
    send(state, stream, (status, headers), body, fault)
}

fn send(
    state: &State,
    mut stream: &TcpStream,
    (status, mut headers): (u16, Vec<(&str, String)>),
    body: &[u8],
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let until = match fault {
        Some(Fault::Truncate(n) | Fault::Stall(n) | Fault::Reset(n)) => n.min(body.len()),
        _ => body.len(),
    };
    match fault {
        // Then the end of the connection is the end of the body.
        Some(Fault::Longer(_) | Fault::Ends(_)) => headers.push(("X-No-Length", String::new())),
        _ => headers.push(("Content-Length", body.len().to_string())),
    }
    let mut head = format!("HTTP/1.1 {status} OK\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let pause = Duration::from_micros(state.pause_us.load(Ordering::Relaxed));
    for chunk in body[..until].chunks(16 << 10) {
        stream.write_all(chunk)?;
        state.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    match fault {
        Some(Fault::Stall(_)) => {
            // Until the client has had enough, which it says by going away.
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let _ = std::io::Read::read(&mut stream, &mut [0]);
        }
        Some(Fault::Reset(_)) => {
            // Closing without what is still to be sent, so that the other side hears of a reset.
            std::thread::sleep(Duration::from_millis(20));
            rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
        }
        _ => {}
    }
    Ok(())
}
