//! `POST /v1/messages` and its counting.

use serde_json::{Value, json};

use super::client::{Response, Server};
use super::forms::{respell, tool, with_tools};
use crate::support::Model;

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// Fields of `more` besides those of `body`.
fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn ask(more: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "How far?"}]);
    with(json!({"model": "m", "messages": messages, "max_tokens": 24, "temperature": 1.5, "seed": 7}), more)
}

/// A function as Anthropic has it.
fn described(name: &str) -> Value {
    let function = &tool(name)["function"];
    json!({"name": name, "description": function["description"], "input_schema": function["parameters"]})
}

/// Asserts a refusal in Anthropic's form; returns its message.
#[track_caller]
fn refused(response: &Response, status: u16, kind: &str) -> String {
    assert_eq!(response.status, status, "{response:?}");
    let body = response.json();
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)), "{body}");
    assert_eq!(
        (body["request_id"].as_str(), body.get("param")),
        (response.headers.get("request-id").map(String::as_str), None)
    );
    body["error"]["message"].as_str().expect("a message").to_owned()
}

/// The events of a stream, each under the name of its type.
#[track_caller]
fn events(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(response.headers["x-accel-buffering"], "no");
    let mut name = "";
    let mut events = Vec::new();
    for line in response.body.lines().filter(|line| !line.is_empty()) {
        match line.split_once(": ").expect("a field") {
            ("event", event) => name = event,
            ("data", data) => {
                let event: Value = serde_json::from_str(data).expect("JSON");
                assert_eq!(event["type"], name);
                events.push(event);
            }
            other => panic!("{other:?}"),
        }
    }
    events
}

/// What the events of a stream amount to, with the input of calls as text.
#[track_caller]
fn replay(events: &[Value]) -> Value {
    assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("message_start"), &json!("ping")));
    let mut message = events[0]["message"].clone();
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    let mut open: Option<(Value, String)> = None;
    let mut content = Vec::new();
    for event in &events[2..events.len() - 2] {
        assert_eq!(event["index"], content.len());
        match event["type"].as_str().expect("a type") {
            "content_block_start" => {
                assert!(open.is_none());
                open = Some((event["content_block"].clone(), String::new()));
            }
            "content_block_delta" => {
                let (block, text) = open.as_mut().expect("an open block");
                let delta = &event["delta"];
                let more = match (delta["type"].as_str(), block["type"].as_str()) {
                    (Some("text_delta"), Some("text")) => &delta["text"],
                    (Some("thinking_delta"), Some("thinking")) => &delta["thinking"],
                    (Some("input_json_delta"), Some("tool_use")) => &delta["partial_json"],
                    (Some("signature_delta"), Some("thinking")) => &json!(""),
                    other => panic!("{other:?}"),
                };
                text.push_str(more.as_str().expect("text"));
            }
            "content_block_stop" => {
                let (mut block, text) = open.take().expect("an open block");
                let field = match block["type"].as_str() {
                    Some("tool_use") => "input",
                    kind => kind.expect("a type"),
                }
                .to_owned();
                block[field] = json!(text);
                content.push(block);
            }
            other => panic!("{other}"),
        }
    }
    let [delta, stop] = &events[events.len() - 2..] else { unreachable!("two of them") };
    assert_eq!((&delta["type"], stop), (&json!("message_delta"), &json!({"type": "message_stop"})));
    message["content"] = json!(content);
    message["usage"] = delta["usage"].clone();
    with(message, &delta["delta"])
}

/// The whole message; the stream of the same request amounts to it.
#[track_caller]
fn both(server: &Server, body: &Value) -> Value {
    let whole = server.post(MESSAGES, body).ok();
    let streamed = replay(&events(&server.post(MESSAGES, &with(body.clone(), &json!({"stream": true})))));
    for field in ["type", "role", "model", "stop_reason", "stop_sequence", "usage"] {
        assert_eq!(streamed[field], whole[field], "{field}");
    }
    let (blocks, others) =
        (whole["content"].as_array().expect("a list"), streamed["content"].as_array().expect("a list"));
    assert_eq!(blocks.len(), others.len());
    for (block, other) in blocks.iter().zip(others) {
        assert_eq!(block["type"], other["type"]);
        for field in ["text", "thinking", "name"] {
            assert_eq!(block[field], other[field]);
        }
        if block["type"] == "tool_use" && whole["stop_reason"] == "tool_use" {
            let input: Value = serde_json::from_str(other["input"].as_str().expect("text")).expect("JSON");
            assert_eq!(block["input"], input);
        }
    }
    whole
}

#[test]
fn a_text_is_chats_text() {
    let server = Server::tiny(&["--served-model-name", "m"]);
    let system = json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]);
    let message = both(&server, &ask(&json!({"system": system, "metadata": {"user_id": "me"}})));
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How far?"}]);
    let chat = json!({"messages": messages, "max_tokens": 24, "temperature": 1.5, "seed": 7});
    let chat = server.post("/v1/chat/completions", &chat).ok();
    assert_eq!(message["content"][0]["text"], chat["choices"][0]["message"]["content"]);
    assert_eq!(message["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(message["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
    let counted = json!({"model": "m", "system": "Be brief.", "messages": [{"role": "user", "content": "How far?"}]});
    assert_eq!(server.post(COUNT, &counted).ok(), json!({"input_tokens": message["usage"]["input_tokens"]}));
    // A text that ends it is told, and is no part of it.
    let text = message["content"][0]["text"].as_str().expect("text");
    let stop: String = text.chars().skip(4).take(2).collect();
    let stopped = both(&server, &ask(&json!({"system": "Be brief.", "stop_sequences": ["not this", stop]})));
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert!(!stopped["content"][0]["text"].as_str().unwrap_or_default().contains(&stop));
    let cut = both(&server, &ask(&json!({"max_tokens": 2, "ignore_eos": true})));
    assert_eq!((&cut["stop_reason"], &cut["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(2)));
    // The length is a limit: where the context ends first, the answer says so.
    let long = both(&server, &ask(&json!({"max_tokens": 32000, "ignore_eos": true})));
    assert_eq!(long["stop_reason"], "model_context_window_exceeded");
    let none = both(&server, &ask(&json!({"max_tokens": 0})));
    assert_eq!((&none["content"], &none["stop_reason"]), (&json!([]), &json!("max_tokens")));
}

#[test]
fn calls_are_blocks_and_come_back_as_such() {
    let (_model, server) = with_tools();
    let tools = json!([described("walk"), described("drive")]);
    let more = json!({"tools": tools, "tool_choice": {"type": "tool", "name": "drive"}, "max_tokens": 300});
    let message = both(&server, &ask(&more));
    let call = &message["content"][0];
    assert_eq!(
        (&message["stop_reason"], &call["type"], &call["name"]),
        (&json!("tool_use"), &json!("tool_use"), &json!("drive"))
    );
    assert!(call["input"]["count"].as_i64().is_some_and(|count| (1..=9).contains(&count)), "{call}");
    let single = json!({"tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
    let one = both(&server, &ask(&with(more.clone(), &single)));
    assert_eq!(one["content"].as_array().map(Vec::len), Some(1));
    // What the length cuts is a call with the values so far.
    for max_tokens in [5, 30, 50] {
        let cut = both(&server, &ask(&with(more.clone(), &json!({"max_tokens": max_tokens}))));
        assert_eq!((&cut["stop_reason"], &cut["content"][0]["name"]), (&json!("max_tokens"), &json!("drive")));
        assert!(cut["content"][0]["input"].is_object(), "{cut}");
    }
    // It is a conversation as chat has it.
    let id = &call["id"];
    let result = json!({"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": "2 km"}], "is_error": false});
    let next = json!([
        {"role": "user", "content": "How far?"},
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "And back?"}]},
    ]);
    let body = ask(&json!({"messages": next, "tools": tools}));
    let arguments = call["input"].to_string();
    let chat = json!([
        {"role": "user", "content": "How far?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": id, "type": "function", "function": {"name": "drive", "arguments": arguments}}]},
        {"role": "tool", "tool_call_id": id, "content": "2 km"},
        {"role": "user", "content": "And back?"},
    ]);
    let chat_tools = json!([tool("walk"), tool("drive")]);
    let chat =
        server.post("/v1/chat/completions", &json!({"messages": chat, "tools": chat_tools, "max_tokens": 1})).ok();
    assert_eq!(server.post(MESSAGES, &body).ok()["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    // What the assistant has begun to say goes on.
    let begun = json!([{"role": "user", "content": "How far?"}, {"role": "assistant", "content": "It is"}]);
    let on = both(&server, &ask(&json!({"messages": begun})));
    let text = "user: How far?\nassistant: It is";
    let text = json!({"prompt": text, "max_tokens": 24, "temperature": 1.5, "seed": 7});
    assert_eq!(on["content"][0]["text"], server.post("/v1/completions", &text).ok()["choices"][0]["text"]);
    let wrong = |more: Value, place: &str| {
        let message = refused(&server.post(MESSAGES, &ask(&more)), 400, "invalid_request_error");
        assert!(message.contains(place), "{message}");
    };
    wrong(json!({"messages": next.as_array().expect("a list")[2..]}), "messages[0].content[0].tool_use_id");
    wrong(json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), "tools[0].type");
    wrong(json!({"tools": [{"name": "f"}]}), "tools[0].input_schema");
    wrong(json!({"tools": [with(described("f"), &json!({"defer_loading": true}))]}), "tools[0].defer_loading");
    wrong(json!({"tools": tools, "tool_choice": {"type": "tool", "name": "fly"}}), "tool_choice");
    wrong(json!({"tools": tools, "tool_choice": "any"}), "tool_choice");
    let format = json!({"output_config": {"format": {"type": "json_schema", "schema": {"const": 5}}}});
    assert_eq!(both(&server, &ask(&format))["content"][0]["text"], "5");
    assert_eq!(both(&server, &ask(&with(more, &format)))["content"][0]["name"], "drive");
}

/// A call that the model chooses to make has an object as input, whatever the model is.
#[test]
fn the_input_of_every_call_is_an_object() {
    let (model, _) = with_tools();
    respell(&model, "<tool_call>");
    let server = Server::start(&model.path(), &["--served-model-name", "m"]);
    let mut calls = 0;
    for seed in 0..6 {
        let loose = json!({"name": "look", "input_schema": {"type": "object"}});
        let more = json!({"tools": [loose], "seed": seed, "logit_bias": {"1": 6}, "max_tokens": 120});
        let message = both(&server, &ask(&more));
        for block in message["content"].as_array().expect("a list").iter().filter(|block| block["type"] == "tool_use") {
            assert!(block["input"].is_object() && block["name"] == "look", "{block}");
            calls += 1;
        }
        assert!(!message.to_string().contains("tool_call>"), "{message}");
    }
    assert!(calls > 2, "{calls}");
}

#[test]
fn reasoning_is_a_block() {
    let model = Model::copy("tiny-chat");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }}{{ m.content }}\n{% endfor %}\
                    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}";
    model.edit("chat_template.jinja", |bytes| *bytes = template.as_bytes().to_vec());
    model.set("config.json", "max_position_embeddings", json!(1024));
    let server = Server::start(&model.path(), &["--served-model-name", "m"]);
    let kinds = |message: &Value| -> Vec<String> {
        let blocks = message["content"].as_array().expect("a list").iter();
        blocks.map(|block| block["type"].as_str().expect("a type").to_owned()).collect()
    };
    let budget = json!({"thinking": {"type": "enabled", "budget_tokens": 6}, "ignore_eos": true, "max_tokens": 40});
    let message = both(&server, &ask(&budget));
    assert_eq!(kinds(&message), ["thinking", "text"]);
    assert!(message["content"][0]["signature"].as_str().is_some_and(|signature| !signature.is_empty()));
    assert!(message["usage"]["output_tokens_details"]["thinking_tokens"].as_u64() > Some(6));
    for off in [json!({}), json!({"thinking": {"type": "disabled"}})] {
        assert_eq!(kinds(&both(&server, &ask(&with(off, &json!({"ignore_eos": true}))))), ["text"]);
    }
    let adaptive = json!({"thinking": {"type": "adaptive"}, "ignore_eos": true, "max_tokens": 8});
    assert_eq!(kinds(&both(&server, &ask(&adaptive))), ["thinking"]);
    // It goes on as the conversation.
    let next = json!([
        {"role": "user", "content": "How far?"},
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": "Really?"},
    ]);
    let counted = |messages: &Value| {
        let body = json!({"model": "m", "messages": messages});
        server.post(COUNT, &body).ok()["input_tokens"].as_u64().expect("a number")
    };
    let mut forgotten = next.clone();
    forgotten[1]["content"].as_array_mut().expect("a list").remove(0);
    assert!(counted(&next) > counted(&forgotten));
    let wrong = |thinking: Value| {
        refused(&server.post(MESSAGES, &ask(&json!({"thinking": thinking}))), 400, "invalid_request_error")
    };
    assert!(wrong(json!({"type": "enabled", "budget_tokens": 24})).contains("max_tokens"));
    assert!(wrong(json!({"type": "enabled"})).contains("budget_tokens"));
    assert!(wrong(json!({"type": "adaptive", "display": "omitted"})).contains("display"));
    let plain = Server::tiny(&["--served-model-name", "m"]);
    let asked = plain.post(MESSAGES, &ask(&json!({"thinking": {"type": "enabled", "budget_tokens": 4}})));
    assert!(refused(&asked, 400, "invalid_request_error").contains("thinking"));
    plain.post(MESSAGES, &ask(&json!({"thinking": {"type": "adaptive"}}))).ok();
}

#[test]
fn errors_have_anthropics_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "alpha\n").expect("written");
    let server = Server::tiny(&["--served-model-name", "m", "--api-key-file", &keys.display().to_string()]);
    let send =
        |path: &str, headers: &[(&str, &str)], body: &Value| server.send("POST", path, headers, &body.to_string());
    let keyed = [("x-api-key", "alpha"), ("anthropic-version", "2023-06-01"), ("anthropic-beta", "a,b")];
    let post = |body: &Value| send(MESSAGES, &keyed, body);
    let answer = send("/v1/messages?beta=true", &keyed, &ask(&json!({})));
    assert_eq!(answer.ok()["type"], "message");
    assert_eq!(answer.headers["request-id"], answer.headers["x-request-id"]);
    send(MESSAGES, &[("authorization", "Bearer alpha")], &ask(&json!({}))).ok();
    for path in [MESSAGES, COUNT] {
        refused(&send(path, &[("x-api-key", "alph")], &ask(&json!({}))), 401, "authentication_error");
        refused(&server.send("GET", path, &keyed, ""), 405, "invalid_request_error");
    }
    refused(&post(&ask(&json!({"model": "claude"}))), 404, "not_found_error");
    refused(&send("/v1/messages/batches", &keyed, &json!({})), 404, "not_found_error");
    let old = send(MESSAGES, &[("x-api-key", "alpha"), ("anthropic-version", "2023-01-01")], &ask(&json!({})));
    assert!(refused(&old, 400, "invalid_request_error").contains("2023-06-01"));
    send(MESSAGES, &[("x-api-key", "alpha"), ("anthropic-version", "2026-10-21")], &ask(&json!({}))).ok();
    let image = json!({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}});
    for (more, place) in [
        (json!({"temprature": 1}), "temprature"),
        (json!({"stop": "a"}), "stop"),
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"model": null}), "model"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": [image]}]}), "messages[0].content[0].type"),
        (json!({"messages": [{"role": "user", "content": "x", "name": "me"}]}), "messages[0].name"),
        (json!({"system": [{"type": "text", "text": 5}]}), "system[0].text"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (json!({"container": "c"}), "container"),
        (json!({"mcp_servers": [{"type": "url"}]}), "mcp_servers"),
        (json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}), "context_management.edits"),
        (json!({"output_config": {"effort": "low"}}), "output_config.effort"),
        (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format"),
        (json!({"speed": "fast"}), "speed"),
        (json!({"messages": [{"role": "user", "content": "the sea ".repeat(1000)}]}), "context"),
    ] {
        let message = refused(&post(&ask(&more)), 400, "invalid_request_error");
        assert!(message.contains(place), "{place}: {message}");
    }
    // Clients send them; nothing here depends on them.
    let edits = json!([{"type": "clear_thinking_20251015", "keep": "all"}]);
    let more = json!({
        "service_tier": "auto", "cache_control": {"type": "ephemeral"}, "inference_geo": "us", "mcp_servers": [],
        "context_management": {"edits": edits}, "output_config": {"effort": "high"}, "speed": "standard",
        "diagnostics": {"previous_message_id": null}, "tools": [], "metadata": {"user_id": "me"},
    });
    let plain = post(&ask(&json!({}))).ok();
    assert_eq!(post(&ask(&more)).ok()["content"], plain["content"]);
    // Two messages of one role are one turn.
    let count = |messages: Value| send(COUNT, &keyed, &json!({"model": "m", "messages": messages})).ok();
    let said = |text: &str| json!({"type": "text", "text": text});
    assert_eq!(
        count(json!([{"role": "user", "content": "a"}, {"role": "user", "content": [said("b"), said("c")]}])),
        count(json!([{"role": "user", "content": [said("a"), said("b"), said("c")]}])),
    );
}
