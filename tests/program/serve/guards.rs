//! What strangers send: pages of other origins, forms that are deep or large, and more than memory allows.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Response, Server, wait_until};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// A schema of so many definitions that refer to one another.
fn chain(links: usize, link: impl Fn(Value) -> Value) -> Value {
    let next = |number: usize| json!({"$ref": format!("#/$defs/d{number}")});
    let mut definitions: serde_json::Map<_, _> = (0..links).map(|n| (format!("d{n}"), link(next(n + 1)))).collect();
    definitions.insert(format!("d{links}"), json!({"type": "null"}));
    json!({"$defs": definitions, "$ref": "#/$defs/d0"})
}

#[test]
fn a_deep_schema_is_compiled_or_refused_by_every_way_in() {
    // A template that knows tools and does not write their schemas out, which would be longer than the context.
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("template.jinja");
    std::fs::write(&template, "{% if tools %}tools {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}")
        .expect("written");
    let server = Server::tiny(&["--chat-template", &template.display().to_string()]);
    let links: [fn(Value) -> Value; 5] = [
        |next| json!({"anyOf": [next, {"type": "null"}]}),
        |next| json!({"type": "object", "properties": {"a": next}, "required": ["a"], "additionalProperties": false}),
        |next| json!({"type": "array", "items": next}),
        |next| json!({"allOf": [next]}),
        |next| next,
    ];
    for (place, link) in links.into_iter().enumerate() {
        for length in [1500, 12_000] {
            let schema = chain(length, link);
            let named = json!({"name": "a", "schema": schema});
            let function = json!({"name": "f", "parameters": schema});
            let chat = |more: Value| {
                let mut body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
                body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
                body
            };
            let tool = json!([{"type": "function", "function": function}]);
            for (path, body) in [
                (CHAT, chat(json!({"response_format": {"type": "json_schema", "json_schema": named}}))),
                (CHAT, chat(json!({"tools": tool, "tool_choice": "required"}))),
                (TEXT, json!({"prompt": "a", "max_tokens": 1, "structured_outputs": {"json": schema}})),
                (
                    TEXT,
                    json!({"prompt": "a", "max_tokens": 1, "structured_outputs": {"grammar": format!("start: %json {schema}")}}),
                ),
                (
                    "/v1/responses",
                    json!({"input": "a", "max_output_tokens": 1, "text": {"format": {"type": "json_schema", "name": "a", "schema": schema}}}),
                ),
            ] {
                let answer = server.post(path, &body);
                match length {
                    1500 => assert!(matches!(answer.status, 200 | 400), "{place} {path}: {answer:?}"),
                    _ => {
                        assert_eq!(answer.status, 400, "{place} {path}: {answer:?}");
                        let limits = ["10000 subschemas", "524288 bytes of text"];
                        assert!(limits.iter().any(|limit| answer.body.contains(limit)), "{place} {path}: {answer:?}");
                    }
                }
            }
        }
    }
    server.post(TEXT, &json!({"prompt": "a"})).ok();
}

#[test]
fn deep_and_large_grammars_are_compiled_or_refused() {
    let server = Server::tiny(&[]);
    let ask = |kind: &str, form: Value| {
        server.post(TEXT, &json!({"prompt": "a", "max_tokens": 1, "structured_outputs": {kind: form}}))
    };
    let rules = |count: usize| {
        let rules: String = (0..count).map(|n| format!("r{n}: \"a\" r{} | \"b\"\n", n + 1)).collect();
        format!("start: r0\n{rules}r{count}: \"x\"\n")
    };
    let nested = |depth: usize| format!("start: {}\"a\"{}", "(".repeat(depth), ")".repeat(depth));
    ask("grammar", json!(rules(1000))).ok();
    let limited = |answer: Response, limit: &str| {
        answer.refused(400, Some("structured_outputs"), "invalid_parameter");
        assert!(answer.body.contains(limit), "{answer:?}");
    };
    limited(ask("grammar", json!(rules(10_001))), "10000 rules");
    ask("grammar", json!(nested(10))).ok();
    limited(ask("grammar", json!(nested(10_000))), "128");
    limited(ask("regex", json!("\\w".repeat(20_000))), "16384 bytes of regular expressions");
    limited(ask("json", json!({"type": "string", "pattern": "a?".repeat(20_000)})), "16384");
    limited(ask("choice", json!(["a".repeat(1 << 20)])), "524288 bytes of text");
    // What is small and expensive ends, too.
    for regex in ["(\\w{1,1000}x){1,1000}", "(((a{1,1000}){1,1000}){1,1000}){1,1000}", "(a|b)*a(a|b){200}"] {
        let answer = ask("regex", json!(regex));
        assert!(matches!(answer.status, 200 | 400), "{regex}: {answer:?}");
    }
    server.post(TEXT, &json!({"prompt": "a"})).ok();
}

#[test]
fn a_body_is_nested_as_deep_as_is_read() {
    let server = Server::tiny(&[]);
    for depth in [200, 100_000] {
        let body = format!("{{\"prompt\": {}1{}}}", "[".repeat(depth), "]".repeat(depth));
        let answer = server.send("POST", TEXT, &[], &body);
        answer.refused(400, None, "invalid_json");
        assert!(answer.body.contains("127"), "{answer:?}");
    }
}

#[test]
fn requests_take_no_more_memory_than_they_may() {
    let server =
        Server::tiny(&["--request-memory", "16MiB", "--max-body-bytes", "64MiB", "--max-score-bytes", "64MiB"]);
    let limited = |answer: Response| {
        answer.refused(413, None, "payload_too_large");
        assert!(answer.body.contains("--request-memory"), "{answer:?}");
    };
    let numbers = format!("{{\"prompt\": [{}1]}}", "1,".repeat(1_000_000));
    limited(server.send("POST", TEXT, &[], &numbers));
    limited(server.post("/tokenize", &json!({"prompt": "the sea ".repeat(100_000)})));
    limited(server.post("/v1/score", &json!({"input": vec![vec![1; 100]; 60], "top_k": 100})));
    let arguments = format!("[{}1]", "1,".repeat(1_000_000));
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}});
    limited(server.post(CHAT, &json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]})));
    wait_until("free", || server.stat("arle_request_memory_bytes") == 0.0);
    // Bodies that never end hold what has arrived of them, and no more than there is.
    let body = "a".repeat(4 << 20);
    let length = (body.len() + 1).to_string();
    let mut connections = Vec::new();
    let full = loop {
        let mut stream = server.open("POST", TEXT, &[("content-length", &length)], &body);
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut head = [0; 12];
        if stream.read_exact(&mut head).is_ok() {
            break head;
        }
        connections.push(stream);
        assert!(connections.len() < 10, "more than 40 MiB are held");
    };
    assert_eq!(&full[9..], b"429");
    server.post(TEXT, &json!({"prompt": "a"})).ok();
    drop(connections);
    wait_until("free", || server.stat("arle_request_memory_bytes") == 0.0);
}

#[test]
fn an_answer_that_nobody_reads_is_counted_until_its_client_leaves() {
    let server = Server::tiny(&["--request-memory", "16MiB", "--max-score-bytes", "12MiB"]);
    let info = server.get("/tokenizer_info").ok();
    let vocab = info["model_vocab_size"].as_u64().expect("a size");
    let rows = (10 << 20) / (4 * vocab);
    let input: Vec<Vec<u32>> = (0..rows / 100).map(|_| vec![1; 100]).collect();
    let body = json!({"input": input, "rows": "logits", "dtype": "f32"}).to_string();
    let stream = server.open("POST", "/v1/score", &[], &body);
    wait_until("answered", || server.stat("arle_request_memory_bytes") > 8e6);
    server.post(TEXT, &json!({"prompt": "a"})).ok();
    drop(stream);
    wait_until("free", || server.stat("arle_request_memory_bytes") == 0.0);
}

#[test]
fn a_short_prompt_passes_long_tokenizations() {
    let server = Server::tiny(&["--max-body-bytes", "16MiB"]);
    let text = json!({"prompt": "the sea and the wind ".repeat(120_000)}).to_string();
    let long: Vec<_> = (0..24).map(|_| server.open("POST", "/tokenize", &[], &text)).collect();
    let short = server.post("/tokenize", &json!({"prompt": "sea"})).ok();
    assert!(short["count"].as_u64().is_some_and(|count| count > 0));
    // Those that ended meanwhile are few; the others end when their clients leave.
    let open = long.iter().filter(|stream| {
        stream.set_nonblocking(true).expect("a socket");
        stream.peek(&mut [0]).is_err()
    });
    assert!(open.count() > 12, "the short one came behind long ones");
    drop(long);
    wait_until("free", || server.stat("arle_request_memory_bytes") == 0.0);
}

#[test]
fn a_server_without_keys_answers_this_machine_and_its_own_page() {
    let server = Server::tiny(&[]);
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    let ask = |headers: &[(&str, &str)]| server.send("POST", TEXT, headers, &body);
    let own = format!("http://{}", server.address);
    assert_eq!(ask(&[]).status, 200);
    assert_eq!(ask(&[("origin", &own)]).status, 200);
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        let answer = ask(&[("origin", origin), ("content-type", "text/plain")]);
        answer.refused(403, None, "forbidden");
        assert!(answer.body.contains("--cors-origin"), "{answer:?}");
    }
    for path in ["/v1/models", "/metrics", "/", "/openapi.json", "/nothing"] {
        let answer = server.send("GET", path, &[("host", "evil.example")], "");
        answer.refused(403, None, "forbidden");
        assert!(answer.body.contains("--allowed-host evil.example"), "{answer:?}");
    }
    assert_eq!(ask(&[("host", "localhost")]).status, 200);
    ask(&[("host", "localhost\r\nhost: localhost")]).refused(400, None, "invalid_host");
    let bare = super::edges::status(&server, b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n");
    assert_eq!(bare, Some(400));
}

#[test]
fn a_body_says_that_it_is_json() {
    let server = Server::tiny(&[]);
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    let ask = |kind: &str| server.send("POST", TEXT, &[("content-type", kind)], &body);
    for kind in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"] {
        assert_eq!(ask(kind).status, 200, "{kind}");
    }
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "application/jsonp", ""]
    {
        let answer = ask(kind);
        answer.refused(415, None, "unsupported_media_type");
        assert!(answer.body.contains("content-type: application/json"), "{answer:?}");
    }
}

#[test]
fn given_names_and_origins_are_answered_too() {
    let args = ["--allowed-host", "llm.example", "--cors-origin", "https://app.example"];
    let server = Server::tiny(&args);
    let page = [("host", "llm.example:8000"), ("origin", "https://app.example")];
    let answer = server.send("GET", "/v1/models", &page, "");
    assert_eq!((answer.status, answer.headers["access-control-allow-origin"].as_str()), (200, "https://app.example"));
    let asked = [("origin", "https://app.example"), ("access-control-request-method", "POST")];
    assert_eq!(server.send("OPTIONS", TEXT, &asked, "").status, 200);
    server.send("GET", "/v1/models", &[("host", "evil.example")], "").refused(403, None, "forbidden");
    server.send("GET", "/v1/models", &[("origin", "https://evil.example")], "").refused(403, None, "forbidden");
}
