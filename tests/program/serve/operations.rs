//! The page to look at, the log, TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::client::{Server, wait_until};
use crate::support::{arle, fixture, fixtures, json_lines};

#[test]
fn the_page_runs_nothing_but_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "secret\n").expect("written");
    let server = Server::tiny(&["--api-key-file", keys.to_str().expect("text")]);
    // It has no data, so it needs no key; what it asks for does.
    let page = server.get("/");
    assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
    server.get("/v1/stats").refused(401, None, "invalid_api_key");
    let policy = &page.headers["content-security-policy"];
    for rule in ["default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "connect-src 'self'"] {
        assert!(policy.contains(rule), "{rule} is not in {policy}");
    }
    assert!(!policy.contains("unsafe") && !page.body.contains("http://127") && !page.body.contains("https://"));
    assert!(page.body.contains("<body data-training=\"none\">"));
}

/// Lines of a server's log that are about requests.
fn about_requests(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a log");
    // What comes before the server runs are lines of progress.
    let lines = json_lines(&text.lines().filter(|line| line.starts_with('{')).collect::<Vec<_>>().join("\n"));
    let ends =
        |line: &Value| line["message"].as_str().is_some_and(|text| text == "ready" || text.starts_with("stopping"));
    lines.into_iter().filter(|line| !ends(line)).collect()
}

#[test]
fn every_line_about_a_request_has_its_id() {
    let log = NamedTempFile::new().expect("a file");
    let mut command = Server::command(&fixture("tiny-chat"), &["--log-format", "json"]);
    command.stderr(log.reopen().expect("the file"));
    let server = Server::launch(command);
    wait_until("ready", || server.get("/ready").status == 200);
    let before = about_requests(log.path()).len();
    let body = |more: Value| {
        let mut body = json!({"prompt": "the sea", "max_tokens": 3});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body.to_string()
    };
    let mut ids = Vec::new();
    for (number, (path, body)) in [
        ("/v1/completions", body(json!({}))),
        ("/v1/completions", body(json!({"stream": true}))),
        ("/v1/completions", body(json!({"temperature": "hot"}))),
        ("/v1/score", json!({"input": "the sea"}).to_string()),
        ("/nowhere", String::new()),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("mine-{number}");
        let answer = server.send("POST", path, &[("x-request-id", &id)], &body);
        assert_eq!(answer.headers["x-request-id"], id);
        ids.push(id);
    }
    wait_until("logged", || {
        about_requests(log.path()).iter().filter(|line| line["message"] == "answered").count() >= before + ids.len()
    });
    let lines = about_requests(log.path()).split_off(before);
    for line in &lines {
        let id = line["span"]["id"].as_str().unwrap_or_else(|| panic!("no id in {line}"));
        assert!(ids.iter().any(|known| known == id), "{line}");
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    let ended = lines.iter().filter(|line| line["message"] == "generation ended").count();
    assert_eq!(ended, 2, "{lines:?}");
}

#[test]
fn a_server_whose_log_nobody_reads_goes_on() {
    let mut command = Server::command(&fixture("tiny-chat"), &[]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    command.stderr(writer);
    let server = Server::launch(command);
    drop(reader);
    for _ in 0..2 {
        assert_eq!(server.get("/nowhere").status, 404, "each answer is a line of the log");
    }
}

#[test]
fn a_log_that_nobody_can_choose_is_refused() {
    let mut command = Command::new(crate::support::ARLE);
    command.args(["serve", "--model", &fixture("tiny-chat"), "--device", "cpu"]).env("RUST_LOG", "=loud=");
    crate::support::finish(command).refused(2, &["RUST_LOG", "=loud="]);
}

fn tls(name: &str) -> String {
    fixture(&format!("tls/{name}"))
}

/// A client that trusts the fixture's root and nobody else.
fn client() -> ureq::Agent {
    let root = std::fs::read(fixtures().join("tls/root.pem")).expect("a certificate");
    let root = Certificate::from_pem(&root).expect("PEM");
    let trust = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[root])).build();
    ureq::Agent::config_builder().tls_config(trust).http_status_as_error(false).build().into()
}

/// A server over TLS, its log, a client, and the address as the certificate has it.
fn encrypted(drain_timeout: &str) -> (Server, NamedTempFile, ureq::Agent, String) {
    let (cert, key, log) = (tls("chain.pem"), tls("key.pem"), NamedTempFile::new().expect("a file"));
    let args = ["--tls-cert", cert.as_str(), "--tls-key", key.as_str(), "--drain-timeout", drain_timeout];
    let mut command = Server::command(&fixture("tiny-chat"), &args);
    command.stderr(log.reopen().expect("the file"));
    let server = Server::launch(command);
    let (client, url) = (client(), format!("https://localhost:{}", server.address.rsplit(':').next().expect("a port")));
    wait_until("ready", || client.get(format!("{url}/ready")).call().is_ok_and(|answer| answer.status() == 200));
    (server, log, client, url)
}

#[test]
fn answers_and_streams_travel_encrypted() {
    let (mut server, log, client, url) = encrypted("3");
    let body = json!({"prompt": "the sea", "max_tokens": 5, "stream": true, "ignore_eos": true}).to_string();
    let ask = || client.post(format!("{url}/v1/completions")).header("content-type", "application/json").send(&body);
    let text = ask().expect("an answer").body_mut().read_to_string().expect("text");
    assert!(text.matches("data: ").count() > 2 && text.trim_end().ends_with("data: [DONE]"), "{text}");
    // Who does not speak TLS gets nothing, and who does not know the root does not ask.
    let mut plain = TcpStream::connect(&server.address).expect("a connection");
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _closed = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert!(ureq::get(format!("{url}/health")).call().is_err(), "the root is not a public one");
    // A connection that never shakes hands does not hold a server that stops.
    let _silent = TcpStream::connect(&server.address).expect("a connection");
    client.get(format!("{url}/health")).call().expect("it was accepted, so the one before was, too");
    server.signal("TERM");
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
    let log = std::fs::read_to_string(log.path()).expect("a log");
    assert!(log.contains("stopping") && !log.contains("the time to stop is over"), "{log}");
}

#[test]
fn a_stopping_server_ends_encrypted_requests() {
    let (mut server, _log, client, url) = encrypted("600");
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 250, "ignore_eos": true, "stream": true, "n": 32}).to_string();
    let answer = client.post(format!("{url}/v1/completions")).header("content-type", "application/json").send(&body);
    let mut answer = answer.expect("an answer");
    server.signal("TERM");
    let text = answer.body_mut().read_to_string().expect("text");
    assert!(text.trim_end().ends_with("data: [DONE]"), "{}", &text[text.len() - 200..]);
    assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 32);
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn certificates_that_cannot_be_used_are_refused_by_file() {
    let (chain, key, other) = (tls("chain.pem"), tls("key.pem"), tls("other-key.pem"));
    let no_pem = fixture("tiny-chat/config.json");
    for (cert, key, words) in [
        (chain.as_str(), other.as_str(), ["other-key.pem", "chain.pem"]),
        (no_pem.as_str(), key.as_str(), ["config.json", "CERTIFICATE"]),
        (key.as_str(), key.as_str(), ["key.pem", "CERTIFICATE"]),
        (chain.as_str(), chain.as_str(), ["chain.pem", "PRIVATE KEY"]),
        (chain.as_str(), "/nowhere/key.pem", ["/nowhere/key.pem", "--tls-key"]),
        ("/nowhere/chain.pem", key.as_str(), ["/nowhere/chain.pem", "--tls-cert"]),
    ] {
        let model = fixture("tiny-chat");
        let ended =
            arle(&["serve", "--model", &model, "--device", "cpu", "--port", "0", "--tls-cert", cert, "--tls-key", key]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "{word} is not in {}", ended.stderr);
        }
    }
    let alone = arle(&["serve", "--model", "x", "--tls-cert", &chain]);
    assert!(alone.code == Some(2) && alone.stderr.contains("--tls-key"), "{alone:?}");
}
