//! Requests at the edges of what is allowed, and connections that nobody should make.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Response, Server, wait_until};
use super::load::{long, slow_model};
use super::openapi::{document, request, routes};

const TEXT: &str = "/v1/completions";

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(&server.address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream
}

/// The status of the answer to these bytes, behind which nothing comes; `None` where the server just closes.
pub(super) fn status(server: &Server, bytes: &[u8]) -> Option<u16> {
    let mut stream = connect(server);
    // A server that has had enough does not read to the end.
    let _sent = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    // Who closes its half may be asked whether it still listens.
    let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

#[test]
fn what_is_no_http_is_refused_and_forgotten() {
    let server = Server::tiny(&[]);
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n";
    let long = "a".repeat(1 << 20);
    for bytes in [
        "\0\0\0\0\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /health HTTP/9.9\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\r\nno colon\r\n\r\n".to_owned(),
        "GET /hea lth HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(1000)),
        format!("{head}content-length: -1\r\n\r\n"),
        format!("{head}content-length: 99999999999999999999999\r\n\r\n"),
        format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n{{}}"),
        format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{{}}"),
        format!("{head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("{head}content-length: 100\r\n\r\n{{\"prompt\":"),
        format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{\"p"),
    ] {
        let shown = &bytes[..bytes.len().min(60)];
        let status = status(&server, bytes.as_bytes());
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{shown:?}: {status:?}");
    }
    assert_eq!(server.get("/health").status, 200);
    wait_until("empty", || server.stat("arle_num_sequences") == 0.0);
}

/// 100 MB that nobody reads: whoever announces them is told before they are sent, others when the limit is reached.
#[test]
fn a_body_of_a_hundred_megabytes_is_not_read() {
    let server = Server::tiny(&["--max-body-bytes", "1MiB"]);
    let mut stream = connect(&server);
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    Response::read(stream).refused(413, None, "payload_too_large");
    let mut stream = connect(&server);
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 1 << 16], b"\r\n".to_vec()].concat();
    let mut sent = 0;
    stream.write_all(head.as_bytes()).expect("sent");
    while sent < 100_000_000 && stream.write_all(&chunk).is_ok() {
        sent += 1 << 16;
    }
    assert!(sent < 50_000_000, "the server read {sent} bytes");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_prompt_of_a_million_tokens_is_refused() {
    let server = Server::tiny(&["--max-body-bytes", "64MiB"]);
    let refused = |path: &str, body: &Value, param: &str| {
        server.post(path, body).refused(400, Some(param), "context_length_exceeded");
    };
    let text = "the sea ".repeat(1_000_000);
    refused(TEXT, &json!({"prompt": text}), "prompt");
    refused(TEXT, &json!({"prompt": vec![1; 1_000_000]}), "prompt");
    refused("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": text}]}), "messages");
    refused("/v1/embeddings", &json!({"input": text}), "input");
    refused("/v1/score", &json!({"input": vec![1; 1_000_000]}), "input");
    server.post(TEXT, &json!({"prompt": "a"})).ok();
}

/// Every number of every body: at its limits, beyond them, and what is no number of the kind.
#[test]
fn every_number_holds_at_its_edges() {
    let server = Server::tiny(&[]);
    let document = document(&server);
    let mut numbers = 0;
    // Without a training run its routes are not there.
    for (path, methods) in routes(&document).filter(|(path, _)| !path.starts_with("/v1/train")) {
        let schema =
            &methods.values().next().expect("a method")["requestBody"]["content"]["application/json"]["schema"];
        let Some(fields) = schema["properties"].as_object() else { continue };
        for (name, field) in fields {
            let kind = field["type"].as_str().or_else(|| field["type"][0].as_str()).unwrap_or_default();
            if !["integer", "number"].contains(&kind) {
                continue;
            }
            numbers += 1;
            let ask = |value: &str| {
                let mut body = request(schema);
                body[name] = json!("VALUE");
                let body = body.to_string().replace("\"VALUE\"", value);
                let answer = server.send("POST", &path, &[], &body);
                assert!(matches!(answer.status, 200 | 400 | 404), "{path} {name} = {value}: {answer:?}");
                answer
            };
            let refused = |value: &str| {
                let answer = ask(value);
                assert_eq!(answer.status, 400, "{path} {name} = {value}: {answer:?}");
                answer
            };
            // Anthropic's errors have no field for it.
            let messages = path.starts_with("/v1/messages");
            for literal in ["NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "1.", "--1"] {
                let error = refused(literal).json()["error"].clone();
                assert!(messages || error["code"] == "invalid_json", "{path} {name} = {literal}: {error}");
            }
            for wrong in ["\"1\"", "\"NaN\"", "true", "[1]", "{}", "\"\""] {
                let error = refused(wrong).json()["error"].clone();
                assert!(messages || error["param"] == json!(name), "{path} {name} = {wrong}: {error}");
                assert!(error["message"].as_str().is_some_and(|message| message.contains(name)), "{path}: {error}");
            }
            for anything in
                ["0", "-0", "-0.0", "1", "-1", "9007199254740993", "-9223372036854775808", "1e-300", "1e300"]
            {
                ask(anything);
            }
            if kind == "integer" {
                for fraction in ["0.5", "1e-5", "-1.5", "99999999999999999999999"] {
                    refused(fraction);
                }
            }
            for (limit, beyond) in [("minimum", -1.0), ("maximum", 1.0)] {
                let Some(limit) = field[limit].as_number() else { continue };
                ask(&limit.to_string());
                match limit.as_i64() {
                    Some(limit) if kind == "integer" => {
                        refused(&(i128::from(limit) + beyond as i128).to_string());
                    }
                    _ if limit.as_f64().is_some_and(|limit| limit.abs() < 1e6) => {
                        refused(&(limit.as_f64().expect("a number") + 0.001 * beyond).to_string());
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(numbers >= 30, "{numbers}");
    server.post(TEXT, &json!({"prompt": "a"})).ok();
}

/// Who has said all still listens; who has left does not.
#[test]
fn a_client_that_closes_its_half_gets_its_answer() {
    let (_folder, model) = slow_model();
    let server = Server::start(&model, &[]);
    let stream = server.open("POST", TEXT, &[], &long(200, &json!({})));
    stream.shutdown(Shutdown::Write).expect("closed");
    let answer = Response::read(stream).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 200);
    for streams in [false, true] {
        let stream = server.open("POST", TEXT, &[], &long(8000, &json!({"stream": streams})));
        wait_until("running", || server.stat("arle_num_requests_running") == 1.0);
        stream.shutdown(Shutdown::Both).expect("closed");
        drop(stream);
        wait_until("cancelled", || server.stat("arle_num_requests_running") == 0.0);
    }
}
