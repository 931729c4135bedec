//! `hf:` sources against a hub of this test's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use runtime::source::{DataSet, ModelSource};

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
    let found = files.iter().find(|(name, _)| path.ends_with(&format!("/{name}")));
    let Some((name, content)) = found.filter(|_| path.contains(COMMIT)) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let probe = headers.iter().any(|h| h.eq_ignore_ascii_case("range: bytes=0-0"));
    if !probe {
        log.lock().unwrap().push((*name).to_owned());
    }
    let body = if probe { &content[..1] } else { content };
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes 0-{}/{}\r\netag: \"{tag}\"\r\n\
         x-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
        body.len() - 1,
        content.len(),
        tag = name.replace('/', "-"),
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
        ("gsm8k/test.jsonl", "{\"question\": \"?\"}"),
        ("mmlu/dev/a.csv", "a"),
        ("mmlu/dev/b.csv", "b"),
        ("only.jsonl", "{}"),
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

    let tell = |line: &str| said.borrow_mut().push(line.to_owned());
    let data = DataSet::open("hf:org/data@main", &tell).unwrap();
    let read = |data: &DataSet, file: &str| std::fs::read_to_string(data.get(file, &tell).unwrap()).unwrap();
    assert_eq!(read(&data, "gsm8k/test.jsonl"), "{\"question\": \"?\"}");
    assert_eq!(said.borrow().last().unwrap(), "hf:org/data@main: gsm8k/test.jsonl", "a download is said");
    assert_eq!(read(&data, "task/only.jsonl"), "{}", "a data set of one task");
    let folder = data.get_folder("mmlu/dev", &tell).unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    let told = said.borrow().len();
    assert_eq!(read(&data, "gsm8k/test.jsonl").len() + said.borrow().len(), 17 + told, "the second time is not");
    let absent = data.get("piqa/piqa.jsonl", &tell).unwrap_err().to_string();
    assert!(absent.contains("hf:org/data@main") && absent.contains("piqa/piqa.jsonl"), "{absent}");
    let fetched = std::mem::take(&mut *log.lock().unwrap());
    assert_eq!(fetched, ["gsm8k/test.jsonl", "only.jsonl", "mmlu/dev/a.csv", "mmlu/dev/b.csv"]);

    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    drop(TcpStream::connect(std::env::var("HF_ENDPOINT").unwrap().trim_start_matches("http://")));
    server.join().unwrap();
    assert_eq!(resolve(), dir, "the cache serves when the hub does not");
    assert!(said.borrow().last().unwrap().contains("cache"));
    let data = DataSet::open("hf:org/data@main", &tell).unwrap();
    assert!(said.borrow().last().unwrap().contains("cache"));
    assert_eq!(read(&data, "task/only.jsonl"), "{}");
    assert_eq!(data.get_folder("mmlu/dev", &tell).unwrap(), folder);
    let absent = data.get("piqa/piqa.jsonl", &tell).unwrap_err().to_string();
    assert!(absent.contains("not in the cache"), "{absent}");
    assert!(DataSet::open("hf:org/nothing", &tell).unwrap_err().to_string().contains("not in the cache"));
    assert!(DataSet::open("org/data", &tell).unwrap_err().to_string().contains("hf:org/name"));
    let absent = ModelSource::parse("hf:org/other").unwrap().resolve(&|_| ()).unwrap_err().to_string();
    assert!(absent.contains("hf:org/other") && absent.contains("not in the cache"), "{absent}");
}
