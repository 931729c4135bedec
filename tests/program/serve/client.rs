//! A server as a process, and enough HTTP to talk to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{ARLE, command, fixture};

/// Nothing here takes so long; a test that waits has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `arle serve`, killed when it is dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Server {
    /// `arle serve --model MODEL --port 0 ARGS`, warm.
    pub(crate) fn start(model: &str, args: &[&str]) -> Self {
        let server = Self::launch(Self::command(model, args));
        wait_until("ready", || server.get("/ready").status == 200);
        server
    }

    /// The command of [`Server::start`], not started.
    pub(super) fn command(model: &str, args: &[&str]) -> Command {
        let port: &[&str] = if args.contains(&"--port") { &[] } else { &["--port", "0"] };
        let mut command = command(ARLE, &[&["serve", "--model", model, "--device", "cpu"], port, args].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// Starts such a command and reads its address.
    pub(super) fn launch(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("an address");
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        let (_, address) = url.split_once("://").expect("a URL");
        Self { child, address: address.to_owned() }
    }

    /// The tiny chat model.
    pub(crate) fn tiny(args: &[&str]) -> Self {
        Self::start(&fixture("tiny-chat"), args)
    }

    pub(super) fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], "")
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Response {
        self.send("POST", path, &[], &body.to_string())
    }

    pub(super) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        Response::read(self.open(method, path, headers, body))
    }

    /// Sends a request and leaves the answer in the socket.
    pub(super) fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let length = body.len().to_string();
        let host: &[_] = &[("host", self.address.as_str()), ("content-length", length.as_str())];
        let kind: &[_] = if body.is_empty() { &[] } else { &[("content-type", "application/json")] };
        // Headers of the caller take the place of those that every client sends.
        let usual = [host, kind].concat();
        let usual = usual.iter().filter(|(name, _)| headers.iter().all(|(given, _)| given != name));
        let headers: String = usual.chain(headers).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n{body}");
        // A server that refuses a body closes before it is sent; its answer is there all the same.
        let _sent = stream.write_all(request.as_bytes());
        stream
    }

    /// The value of a metric without labels besides the model's.
    pub(crate) fn stat(&self, name: &str) -> f64 {
        let stats = self.get("/v1/stats").json();
        stats[name][0]["value"].as_f64().unwrap_or_else(|| panic!("{name} is not in {stats}"))
    }

    /// Sends a signal by name.
    pub(super) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        self.child.wait().expect("the process ends");
    }
}

/// A port that is free again when a program takes it; nobody else here asks for a certain one.
pub(crate) fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    listener.port().to_string()
}

/// Repeats a question until the answer is yes.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "still not {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) bytes: Vec<u8>,
    /// The bytes where they are text.
    pub(super) body: String,
}

impl Response {
    /// Reads to the end of the connection.
    pub(super) fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        if line.starts_with("HTTP/1.1 100 ") {
            // An interim answer; an empty line and the answer itself follow.
            for _ in 0..2 {
                line.clear();
                reader.read_line(&mut line).expect("a status line");
            }
        }
        let status =
            line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let mut body = Vec::new();
        reader.read_to_end(&mut body).expect("a body");
        if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            body = unchunk(&body);
        }
        let text = headers.get("content-type").is_none_or(|kind| kind != "application/octet-stream");
        let text = if text { String::from_utf8(body.clone()).expect("text") } else { String::new() };
        Self { status, headers, bytes: body, body: text }
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The object of an answer to a request that was done.
    #[track_caller]
    pub(super) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// The chunks of a stream, which must end with `[DONE]`.
    #[track_caller]
    pub(super) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{self:?}");
        data.into_iter().map(|chunk| serde_json::from_str(chunk).expect("JSON")).collect()
    }

    /// Asserts a refusal in OpenAI's envelope; returns its message.
    #[track_caller]
    pub(super) fn refused(&self, status: u16, param: Option<&str>, code: &str) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("{self:?}"));
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (param, Some(code)), "{self:?}");
        error["message"].as_str().expect("a message").to_owned()
    }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).expect("digits"), 16).expect("a length");
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 4 + length..];
    }
}
