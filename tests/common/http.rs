//! `schnell serve` as its tests run it, and a client that can be rude.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::Sandbox;

/// Nothing here takes as long.
pub const LONG: Duration = Duration::from_secs(120);

/// A server with the bundled model, on a port of its own.
pub struct Served {
    pub child: Child,
    pub address: SocketAddr,
    said: Arc<Mutex<Vec<String>>>,
    watchdog: Child,
    _sandbox: Sandbox,
}

impl Served {
    /// Once it is ready. Pictures are of 64 x 64 in one step unless flags or requests say otherwise.
    pub fn start(flags: &[&str]) -> Served {
        Served::start_in(Sandbox::new(), flags, &[])
    }

    pub fn start_in(sandbox: Sandbox, flags: &[&str], variables: &[(&str, &str)]) -> Served {
        let served = Served::launch(sandbox, flags, variables);
        served.wait_for("ready");
        served
    }

    /// Once it listens.
    pub fn launch(sandbox: Sandbox, flags: &[&str], variables: &[(&str, &str)]) -> Served {
        let mut args = vec!["serve", "--device", "emulator", "--listen", "127.0.0.1:0", "--t5-length", "16"];
        args.extend(["--width", "64", "--height", "64", "--steps", "1"]);
        args.extend(flags);
        let mut command = sandbox.command(args);
        command.env_remove("SCHNELL_API_KEY").envs(variables.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // Ends the server when these tests have ended, however they did: what is shared by tests is never dropped.
        let kill = format!("read -r _; kill -9 {}", child.id());
        let watchdog = Command::new("sh").args(["-c", &kill]).stdin(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let heard = said.clone();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| heard.lock().unwrap().push(line));
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut served = Served { child, address: unknown, said, watchdog, _sandbox: sandbox };
        let line = served.wait_for("listening on http://");
        served.address = line.trim_start_matches("listening on http://").parse().unwrap();
        served
    }

    /// The line of standard error that begins so.
    pub fn wait_for(&self, start: &str) -> String {
        let begun = Instant::now();
        loop {
            let said = self.said.lock().unwrap().clone();
            if let Some(line) = said.iter().find(|line| line.starts_with(start)) {
                return line.clone();
            }
            assert!(begun.elapsed() < LONG, "`{start}` was not said: {said:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub fn get(&self, path: &str) -> Answer {
        Connection::open(self.address).ask("GET", path, &[], "").read()
    }

    /// Sends a body of JSON, and does not wait.
    pub fn send(&self, headers: &[(&str, &str)], body: &str) -> Connection {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend(headers);
        Connection::open(self.address).ask("POST", "/v1/images/generations", &all, body)
    }

    pub fn draw(&self, body: &Value) -> Answer {
        self.send(&[], &body.to_string()).read()
    }

    /// Of the metrics, the number behind that name with its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.get("/metrics").body).unwrap();
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Until that is so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Served) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < LONG, "never: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // First, as the server's number may soon be another process's.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection, one request.
pub struct Connection(pub TcpStream);

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Connection(stream)
    }

    pub fn ask(self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Connection {
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            text += &format!("Host: {}\r\n", self.0.peer_addr().unwrap());
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        self.write(&format!("{text}\r\n{body}"))
    }

    /// As it is. Who is refused early may not be read to the end.
    pub fn write(mut self, text: &str) -> Connection {
        let _ = self.0.write_all(text.as_bytes());
        self
    }

    /// What has come by the time that `word` has.
    pub fn read_until(&mut self, word: &str) -> String {
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains(word) {
            let mut some = [0; 4096];
            let count = self.0.read(&mut some).unwrap();
            assert!(count > 0, "`{word}` did not come: {}", String::from_utf8_lossy(&read));
            read.extend(&some[..count]);
        }
        String::from_utf8(read).unwrap()
    }

    pub fn read(mut self) -> Answer {
        let mut read = Vec::new();
        // A server that closes before all was sent to it resets the connection, behind its answer.
        if let Err(error) = self.0.read_to_end(&mut read) {
            assert!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
        }
        Answer::of(&read)
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn of(read: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(read);
        let split = read.windows(4).position(|four| four == b"\r\n\r\n");
        let split = split.unwrap_or_else(|| panic!("no answer: {text}"));
        let headers = String::from_utf8(read[..split].to_vec()).unwrap().to_ascii_lowercase();
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        let body = &read[split + 4..];
        let body =
            if headers.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_vec() };
        Answer { status, headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self.headers.lines().find(|line| line.split(':').next() == Some(name))?;
        Some(line.split_once(':').unwrap().1.trim())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {} {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// A refusal of that status and code, in the shape that it has to have.
    #[track_caller]
    pub fn is_refusal(&self, status: u16, code: &str, param: Option<&str>) {
        let error = self.error();
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{error}");
        assert_eq!(error["param"].as_str(), param, "{error}");
    }

    /// OpenAI's error object, checked.
    #[track_caller]
    pub fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        let kind = match self.status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        assert_eq!(error["type"], kind, "{} {error}", self.status);
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && message.len() < 2000, "{error}");
        assert!(error["code"].is_string() && error.as_object().unwrap().len() == 4, "{error}");
        error
    }

    /// Of a stream.
    pub fn events(&self) -> Vec<Value> {
        let text = String::from_utf8(self.body.clone()).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        body.extend(&rest[end + 2..end + 2 + size]);
        rest = &rest[(end + 4 + size).min(rest.len())..];
    }
    body
}
