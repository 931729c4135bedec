//! `hf:` sources against a hub of this test's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use runtime::source::ModelSource;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const INDEX: &str = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;

type Files = BTreeMap<&'static str, &'static str>;

/// Answers one request: the listing of a repository, or a file of it. A request may name the part it wants.
fn answer(stream: TcpStream, files: &Files, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let mut stream = stream;
    if path.starts_with("/api/") {
        let siblings: Vec<_> = files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        let body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", siblings.join(","));
        return write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(content) = files.get(name).filter(|_| path.contains(COMMIT)) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let probe = headers.iter().any(|h| h.eq_ignore_ascii_case("range: bytes=0-0"));
    if !probe {
        log.lock().unwrap().push(name.to_owned());
    }
    let body = if probe { &content[..1] } else { content };
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes 0-{}/{}\r\netag: \"{name}\"\r\n\
         x-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
        body.len() - 1,
        content.len()
    )
}

#[test]
fn what_is_needed_is_downloaded_once_and_works_offline() {
    let home = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: this is the only test of its program; nothing else reads the environment meanwhile.
    unsafe {
        std::env::set_var("HF_HOME", home.path());
        std::env::set_var("HF_ENDPOINT", format!("http://{}", listener.local_addr().unwrap()));
        for proxy in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"] {
            std::env::remove_var(proxy);
            std::env::remove_var(proxy.to_lowercase());
        }
    }
    let files = Files::from([
        ("config.json", "{}"),
        ("tokenizer.json", "{\"t\":1}"),
        ("model.safetensors.index.json", INDEX),
        ("model-1.safetensors", "one"),
        ("model-2.safetensors", "two"),
        ("model.onnx", "never"),
        ("README.md", "never"),
    ]);
    let log = Arc::new(Mutex::new(Vec::new()));
    let (shared, stop) = (log.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = stop.clone();
    let server = std::thread::spawn(move || {
        for stream in listener.incoming() {
            if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                return;
            }
            // A client that hangs up early is no failure of the hub.
            let _ = answer(stream.unwrap(), &files, &shared);
        }
    });

    let source = ModelSource::parse("hf:org/name").unwrap();
    let said = RefCell::new(Vec::new());
    let resolve = || source.resolve(&|line| said.borrow_mut().push(line.to_owned())).unwrap();
    let dir = resolve();
    assert_eq!(std::fs::read_to_string(dir.join("model-2.safetensors")).unwrap(), "two");
    assert_eq!(std::fs::read_to_string(dir.join("tokenizer.json")).unwrap(), "{\"t\":1}");
    let mut fetched = std::mem::take(&mut *log.lock().unwrap());
    assert_eq!(fetched.last().map(String::as_str), Some("config.json"), "a snapshot with config.json is complete");
    fetched.sort();
    let needed =
        ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "tokenizer.json"];
    assert_eq!(fetched, needed);

    assert_eq!(resolve(), dir);
    assert!(log.lock().unwrap().is_empty(), "the second time downloads nothing");

    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    drop(TcpStream::connect(std::env::var("HF_ENDPOINT").unwrap().trim_start_matches("http://")));
    server.join().unwrap();
    assert_eq!(resolve(), dir, "the cache serves when the hub does not");
    assert!(said.borrow().last().unwrap().contains("cache"));
    let absent = ModelSource::parse("hf:org/other").unwrap().resolve(&|_| ()).unwrap_err().to_string();
    assert!(absent.contains("hf:org/other") && absent.contains("not in the cache"), "{absent}");
}
