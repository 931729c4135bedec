//! What is refused, and how.

use serde_json::{Value, json};

use super::client::{Response, Server};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[test]
fn every_wrong_field_is_named() {
    let server = Server::tiny(&[]);
    let text = |field: &str, value: Value| server.post(TEXT, &json!({"prompt": "a", field: value}));
    for (field, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!(1e300)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("n", json!(0)),
        ("n", json!(-1)),
        ("n", json!(100_000)),
        ("n", json!(1_u64 << 63)),
        ("best_of", json!(0)),
        ("seed", json!(1.5)),
        ("max_tokens", json!(-1)),
        ("logprobs", json!(129)),
        ("logit_bias", json!({"foo": 0})),
        ("logit_bias", json!({"5": 101})),
        ("logit_bias", json!({"300": 1})),
        ("stop", json!(["a", 1])),
        ("stop", json!("")),
        ("stop_token_ids", json!([300])),
        ("prompt", json!([])),
        ("prompt", json!("")),
        ("prompt", json!([[1], []])),
        ("prompt", json!([1, 300])),
        ("prompt", json!({"text": "a"})),
        ("min_tokens", json!(17)),
        ("stream_options", json!({"include_usage": true})),
    ] {
        let message = text(field, value.clone()).refused(400, Some(field), "invalid_parameter");
        assert!(!message.is_empty(), "{field} = {value}");
    }
    text("suffix", json!("the end")).refused(400, Some("suffix"), "unsupported_parameter");
    text("temprature", json!(1)).refused(400, Some("temprature"), "unknown_parameter");
    text("max_tokens", json!(256)).refused(400, None, "context_length_exceeded");
    text("prompt", json!(vec![1; 1000])).refused(400, Some("prompt"), "context_length_exceeded");
    text("model", json!("gpt-4")).refused(404, Some("model"), "model_not_found");
    text("user", json!("me")).ok();
    text("store", json!(null)).ok();
    let chat = |message: Value| server.post(CHAT, &json!({"messages": [message]}));
    chat(json!({"role": "robot", "content": "x"})).refused(400, Some("messages[0]"), "invalid_parameter");
    server.post(CHAT, &json!({"messages": []})).refused(400, Some("messages"), "invalid_parameter");
    server.post(CHAT, &json!({})).refused(400, Some("messages"), "invalid_parameter");
}

#[test]
fn routes_methods_and_bodies_are_checked() {
    let server = Server::tiny(&["--max-body-bytes", "4KiB"]);
    server.get("/v1/nothing").refused(404, None, "route_not_found");
    let wrong = server.get(TEXT);
    wrong.refused(405, None, "method_not_allowed");
    assert_eq!(wrong.headers["allow"], "POST");
    for body in ["", "{", "[1]", "\"text\"", "{\"prompt\": \"a\"} x"] {
        server.send("POST", TEXT, &[], body).refused(400, None, "invalid_json");
    }
    let nested = format!("{{\"prompt\": {}1{}}}", "[".repeat(1000), "]".repeat(1000));
    server.send("POST", TEXT, &[], &nested).refused(400, None, "invalid_json");
    let long = json!({"prompt": "a".repeat(5000)});
    server.post(TEXT, &long).refused(413, None, "payload_too_large");
    // Announced and never sent.
    let stream = server.open("POST", TEXT, &[("expect", "100-continue"), ("content-length", "100000000")], "");
    assert!(matches!(Response::read(stream).status, 400 | 413));
    let named = server.send("GET", "/health", &[("x-request-id", "mine-1")], "");
    assert_eq!((named.status, named.headers["x-request-id"].as_str()), (200, "mine-1"));
    assert!(server.get("/health").headers["x-request-id"].starts_with("req_"));
}

#[test]
fn keys_open_the_routes_with_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "# ours\nalpha\nbeta\n").expect("written");
    let server = Server::tiny(&["--api-key-file", &keys.display().to_string()]);
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny-chat"),
        ("POST", CHAT),
        ("POST", TEXT),
        ("POST", "/v1/score"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/tokenizer_info"),
        ("GET", "/metrics"),
        ("GET", "/v1/stats"),
    ] {
        let closed = server.send(method, path, &[("authorization", "Bearer alph")], "{}");
        closed.refused(401, None, "invalid_api_key");
        assert!(closed.headers["www-authenticate"].starts_with("Bearer"));
        assert_ne!(server.send(method, path, &[("authorization", "Bearer beta")], "{}").status, 401, "{path}");
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/ready").status, 200);
    let message = |authorization: Option<&str>| {
        let headers: Vec<(&str, &str)> = authorization.into_iter().map(|value| ("authorization", value)).collect();
        server.send("GET", "/v1/models", &headers, "").refused(401, None, "invalid_api_key")
    };
    let [none, wrong, basic] = [message(None), message(Some("Bearer alph")), message(Some("Basic alpha"))];
    assert!(none.contains("needs an API key") && wrong.contains("the key that was sent"), "{none} {wrong}");
    assert!(basic.contains("\"Authorization\" has none"), "{basic}");
}

#[test]
fn a_compressed_body_is_not_read() {
    let server = Server::tiny(&[]);
    for coding in ["gzip", "zstd", "GZip, identity"] {
        let answer = server.send("POST", TEXT, &[("content-encoding", coding)], "\u{1f}");
        answer.refused(415, None, "unsupported_content_encoding");
        assert_eq!(answer.headers["accept-encoding"], "identity");
    }
    let plain = server.send("POST", TEXT, &[("content-encoding", "identity")], &json!({"prompt": "a"}).to_string());
    assert_eq!(plain.status, 200);
}

#[test]
fn an_address_for_everybody_needs_a_key() {
    let model = crate::support::fixture("tiny-chat");
    let ended =
        crate::support::arle(&["serve", "--model", &model, "--device", "cpu", "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--api-key-file"), "{}", ended.stderr);
}
