//! `POST /v1/responses`.

use serde_json::{Value, json};

use super::client::{Response, Server};
use super::forms::{tool, with_tools};

const RESPONSES: &str = "/v1/responses";
const CHAT: &str = "/v1/chat/completions";

/// Fields of `more` besides those of `body`.
fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn ask(more: &Value) -> Value {
    with(json!({"input": "How far?", "max_output_tokens": 24, "temperature": 1.5, "seed": 7}), more)
}

/// A response without what differs from time to time.
fn nameless(mut response: Value) -> Value {
    for field in ["id", "created_at", "completed_at"] {
        response[field] = Value::Null;
    }
    response["usage"]["input_tokens_details"] = Value::Null;
    for item in response["output"].as_array_mut().expect("items") {
        item["id"] = Value::Null;
        if item["type"] == "function_call" {
            item["call_id"] = Value::Null;
        }
    }
    response
}

/// The events of a stream, numbered from 0, each under the name of its type.
#[track_caller]
fn events(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{response:?}");
    let mut events: Vec<Value> = Vec::new();
    let mut name = "";
    for line in response.body.lines().filter(|line| !line.is_empty()) {
        match line.split_once(": ").expect("a field") {
            ("event", event) => name = event,
            ("data", data) => {
                let event: Value = serde_json::from_str(data).expect("JSON");
                assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(events.len())));
                events.push(event);
            }
            other => panic!("{other:?}"),
        }
    }
    events
}

/// Names of events, neighbours of one name once, without `response.`.
fn names(events: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> =
        events.iter().map(|event| event["type"].as_str().expect("a type").trim_start_matches("response.")).collect();
    names.dedup();
    names
}

/// The stream of the same request ends with the same response.
#[track_caller]
fn streamed(server: &Server, body: &Value) -> (Value, Vec<Value>) {
    let whole = server.post(RESPONSES, body).ok();
    let events = events(&server.post(RESPONSES, &with(body.clone(), &json!({"stream": true}))));
    let last = events.last().expect("an event")["response"].clone();
    assert_eq!(nameless(last), nameless(whole.clone()));
    (whole, events)
}

#[test]
fn a_text_is_chats_text() {
    let server = Server::tiny(&["--served-model-name", "m"]);
    let (response, events) = streamed(&server, &ask(&json!({"instructions": "Be brief.", "metadata": {"a": "b"}})));
    let item = &response["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &response["status"])
    );
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How far?"}]);
    let chat = json!({"messages": messages, "max_tokens": 24, "temperature": 1.5, "seed": 7});
    let chat = server.post(CHAT, &chat).ok();
    assert_eq!(item["content"][0]["text"], chat["choices"][0]["message"]["content"]);
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(response["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
    let told = |name: &str| response[name].clone();
    assert_eq!((told("object"), told("model"), told("store")), (json!("response"), json!("m"), json!(false)));
    assert_eq!((told("temperature"), told("instructions")), (json!(1.5), json!("Be brief.")));
    assert_eq!((told("metadata"), told("weights_versions")), (json!({"a": "b"}), json!([0])));
    let end = if response["status"] == "completed" { "completed" } else { "incomplete" };
    assert_eq!(
        names(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            end,
        ]
    );
    let text: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(item["content"][0]["text"], text);
    let cut = server.post(RESPONSES, &ask(&json!({"max_output_tokens": 1, "ignore_eos": true}))).ok();
    assert_eq!((&cut["status"], &cut["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
    assert_eq!(cut["incomplete_details"], json!({"reason": "max_output_tokens"}));
    // No token, hence no text; and no conversation is one, too.
    let (none, _) = streamed(&server, &json!({"max_output_tokens": 0}));
    assert_eq!(none["output"][0]["content"][0]["text"], "");
}

#[test]
fn log_probabilities_are_those_of_the_text() {
    let server = Server::tiny(&[]);
    let more = json!({"include": ["message.output_text.logprobs", "file_search_call.results"], "top_logprobs": 3});
    let (response, events) = streamed(&server, &ask(&with(more, &json!({"ignore_eos": true}))));
    let part = &response["output"][0]["content"][0];
    let logprobs = part["logprobs"].as_array().expect("a list");
    let bytes: Vec<u8> = logprobs
        .iter()
        .flat_map(|token| serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).expect("bytes"))
        .filter(|byte| byte.is_ascii())
        .collect();
    let text = part["text"].as_str().expect("text");
    // What is no UTF-8 of this noise is one character in the text; special tokens are none.
    let plain = String::from_utf8(bytes).expect("ASCII").replace("<|end|>", "").replace("<|start|>", "");
    assert_eq!(text.chars().filter(char::is_ascii).collect::<String>(), plain);
    assert!(logprobs.iter().all(|token| token["top_logprobs"].as_array().is_some_and(|top| top.len() == 3)));
    let sent: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .flat_map(|event| event["logprobs"].as_array().expect("a list"))
        .collect();
    assert_eq!(sent, logprobs.iter().collect::<Vec<_>>());
    let refused =
        |more: Value, field: &str, code: &str| server.post(RESPONSES, &ask(&more)).refused(400, Some(field), code);
    refused(json!({"top_logprobs": 3}), "top_logprobs", "invalid_parameter");
    refused(json!({"include": ["reasoning.everything"]}), "include", "unsupported_parameter");
}

#[test]
fn calls_are_items_and_come_back_as_such() {
    let (_model, server) = with_tools();
    let flat = |name: &str| with(json!({"type": "function"}), &tool(name)["function"]);
    let tools = json!([flat("walk"), flat("drive")]);
    let more = json!({"tools": tools, "tool_choice": "required", "max_output_tokens": 300});
    let (response, events) = streamed(&server, &ask(&more));
    assert_eq!((&response["status"], &response["tools"][1]["strict"]), (&json!("completed"), &json!(false)));
    let items = response["output"].as_array().expect("items");
    let one =
        ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"];
    assert_eq!(names(&events[2..]), [one.repeat(items.len()), vec!["completed"]].concat());
    for (place, item) in items.iter().enumerate() {
        let deltas: Vec<&str> = events
            .iter()
            .filter(|event| event["output_index"] == place)
            .filter_map(|event| event["delta"].as_str())
            .collect();
        assert_eq!(item["arguments"], deltas.concat());
        assert!(deltas.len() > 2, "they come as the model writes them: {deltas:?}");
    }
    for item in items {
        assert_eq!((&item["type"], &item["status"]), (&json!("function_call"), &json!("completed")));
        assert!(["walk", "drive"].contains(&item["name"].as_str().expect("a name")));
        let arguments: Value = serde_json::from_str(item["arguments"].as_str().expect("text")).expect("JSON");
        assert!(arguments["count"].as_i64().is_some_and(|count| (1..=9).contains(&count)), "{arguments}");
    }
    let choice = json!({"type": "function", "name": "drive"});
    let named = server.post(RESPONSES, &ask(&with(more.clone(), &json!({"tool_choice": choice})))).ok();
    assert_eq!((named["output"].as_array().map(Vec::len), &named["output"][0]["name"]), (Some(1), &json!("drive")));
    assert_eq!(named["tool_choice"], choice);
    // Of both only one may be called.
    let some = json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "walk"}]});
    for seed in 0..4 {
        let few = with(more.clone(), &json!({"tool_choice": some, "seed": seed}));
        let few = server.post(RESPONSES, &ask(&few)).ok();
        assert!(few["output"].as_array().expect("items").iter().all(|item| item["name"] == "walk"), "{few}");
        assert_eq!(few["tool_choice"], some);
    }
    // What the length cuts is a call with the arguments so far.
    let (cut, _) =
        streamed(&server, &ask(&with(more.clone(), &json!({"max_output_tokens": 60, "tool_choice": choice}))));
    let call = &cut["output"][0];
    assert_eq!(
        (&cut["status"], &call["status"], &call["name"]),
        (&json!("incomplete"), &json!("incomplete"), &json!("drive"))
    );
    assert!(call["arguments"].as_str().is_some_and(|text| text.starts_with('{') && !text.ends_with('}')), "{call}");
    // A form holds for a turn that answers; this one calls.
    let format = json!({"type": "json_schema", "name": "n", "schema": {"const": 5}});
    let formed = with(more.clone(), &json!({"text": {"format": format}, "tool_choice": choice}));
    let formed = server.post(RESPONSES, &ask(&formed)).ok();
    assert_eq!(formed["output"][0]["arguments"], named["output"][0]["arguments"]);
    // The items go on as the conversation.
    let mut input = vec![json!({"role": "user", "content": "How far?"}), named["output"][0].clone()];
    let call = &named["output"][0]["call_id"];
    input.push(json!({"type": "function_call_output", "call_id": call, "output": "2 km"}));
    let next = server.post(RESPONSES, &ask(&json!({"input": input, "tools": tools}))).ok();
    assert!(next["usage"]["input_tokens"].as_u64() > named["usage"]["input_tokens"].as_u64());
    let refused =
        |more: Value, field: &str, code: &str| server.post(RESPONSES, &ask(&more)).refused(400, Some(field), code);
    refused(json!({"input": input[2..]}), "input[0].call_id", "invalid_parameter");
    refused(json!({"tools": [{"type": "web_search"}]}), "tools[0].type", "invalid_parameter");
    refused(json!({"tools": [{"type": "function", "name": ""}]}), "tools[0].name", "invalid_parameter");
    refused(
        json!({"tools": [{"type": "function", "name": "f", "async": true}]}),
        "tools[0].async",
        "unsupported_parameter",
    );
    refused(
        json!({"tools": tools, "tool_choice": {"type": "function", "name": "fly"}}),
        "tool_choice",
        "invalid_parameter",
    );
    // In chat's form.
    let chats = json!({"type": "function", "function": {"name": "walk"}});
    refused(json!({"tools": tools, "tool_choice": chats}), "tool_choice", "invalid_parameter");
    let fly = json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "fly"}]});
    refused(json!({"tools": tools, "tool_choice": fly}), "tool_choice", "invalid_parameter");
}

#[test]
fn a_format_is_kept_to() {
    let server = Server::tiny(&[]);
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "thing", "schema": schema, "strict": true});
    let (response, _) = streamed(&server, &ask(&json!({"text": {"format": format}})));
    let text = response["output"][0]["content"][0]["text"].as_str().expect("text");
    assert!(["{\"ok\": true}", "{\"ok\": false}"].contains(&text), "{text}");
    assert_eq!(response["text"]["format"], format);
    // Behind the complete form no token is possible: the response fails where it is, and says why.
    let failing = ask(&json!({"text": {"format": format}, "min_tokens": 24, "stream": true}));
    let events = events(&server.post(RESPONSES, &failing));
    let last = events.last().expect("an event");
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["type"], "no_token_possible");
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    let server = Server::tiny(&[]);
    let refused = |more: Value, field: &str, code: &str| {
        let message = server.post(RESPONSES, &ask(&more)).refused(400, Some(field), code);
        assert!(message.contains(field.rsplit('.').next().expect("a name")), "{message}");
    };
    for (more, field) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"context_management": []}), "context_management"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"reasoning": {"summary": "detailed"}}), "reasoning.summary"),
        (json!({"reasoning": {"mode": "pro"}}), "reasoning.mode"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning.effort"),
        (json!({"thinking_token_budget": 5}), "thinking_token_budget"),
    ] {
        refused(more, field, "unsupported_parameter");
    }
    for (more, field) in [
        (json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}), "input[0].content[0]"),
        (json!({"max_output_tokens": -1}), "max_output_tokens"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
        (json!({"text": {"format": {"type": "json_schema", "name": "x"}}}), "text.format"),
        (json!({"text": {"format": {"type": "json_schema", "schema": {}}}}), "text.format"),
        (json!({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}), "text.format"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"max_tool_calls": {}}), "max_tool_calls"),
        (json!({"stream_options": {"include_obfuscation": false}}), "stream_options"),
    ] {
        server.post(RESPONSES, &ask(&more)).refused(400, Some(field), "invalid_parameter");
    }
    refused(json!({"n": 2}), "n", "unknown_parameter");
    refused(json!({"reasoning": {"depth": 2}}), "reasoning.depth", "unknown_parameter");
    server.post(RESPONSES, &ask(&json!({"max_output_tokens": 500}))).refused(400, None, "context_length_exceeded");
    // Clients send them; what they ask for happens anyway.
    let more = json!({
        "client_metadata": {"session": "1"}, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
        "reasoning": {"summary": "auto", "generate_summary": "auto", "effort": "medium", "context": "auto"},
        "text": {"verbosity": "medium"}, "safety_identifier": "me", "service_tier": "auto", "parallel_tool_calls": true,
    });
    let plain = server.post(RESPONSES, &ask(&json!({}))).ok();
    assert_eq!(server.post(RESPONSES, &ask(&more)).ok()["output"][0]["content"], plain["output"][0]["content"]);
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "verbosity": "medium", "reasoning_effort": "medium", "client_metadata": {}});
    server.post(CHAT, &chat).ok();
    server.post(CHAT, &with(chat, &json!({"verbosity": "high"}))).refused(
        400,
        Some("verbosity"),
        "unsupported_parameter",
    );
    // Accepted, for they change nothing; that it is not stored is told.
    let more = json!({"store": true, "background": false, "truncation": "disabled", "user": "me", "max_tool_calls": 3});
    assert_eq!(
        server.post(RESPONSES, &ask(&with(more, &json!({"reasoning": {"effort": "none"}})))).ok()["store"],
        false
    );
    server.get("/v1/responses/resp_1").refused(404, None, "route_not_found");
    server.get(RESPONSES).refused(405, None, "method_not_allowed");
}

/// What is counted is what a response with the same fields reports.
#[test]
fn input_tokens_are_those_of_the_response() {
    let (_model, server) = with_tools();
    const COUNT: &str = "/v1/responses/input_tokens";
    let flat = with(json!({"type": "function"}), &tool("walk")["function"]);
    let format = json!({"type": "json_schema", "name": "n", "schema": {"const": 5}});
    for more in [
        json!({"input": "How far?"}),
        json!({"input": "How far?", "instructions": "Be brief.", "truncation": "disabled"}),
        json!({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [flat]}),
        json!({"input": "c", "tools": [flat], "tool_choice": "none", "parallel_tool_calls": false}),
        json!({"input": "d", "tools": [flat], "tool_choice": "required"}),
        json!({"input": "e", "text": {"format": format}, "reasoning": {"effort": "none"}}),
    ] {
        let counted = server.post(COUNT, &more).ok();
        let response = server.post(RESPONSES, &with(more.clone(), &json!({"max_output_tokens": 0}))).ok();
        let want = json!({"object": "response.input_tokens", "input_tokens": response["usage"]["input_tokens"]});
        assert_eq!(counted, want, "{more}");
    }
    let refused = |more: Value, field: &str, code: &str| server.post(COUNT, &more).refused(400, Some(field), code);
    refused(json!({"input": "a", "personality": "friendly"}), "personality", "unsupported_parameter");
    refused(json!({"input": "a", "conversation": "conv_1"}), "conversation", "unsupported_parameter");
    refused(json!({"input": "a", "temperature": 1}), "temperature", "unknown_parameter");
    refused(json!({"input": "a", "tool_choice": "required"}), "tool_choice", "invalid_parameter");
    refused(json!({"input": "the sea ".repeat(1000)}), "input", "context_length_exceeded");
    refused(json!({"input": "the sea ".repeat(100_000)}), "input", "context_length_exceeded");
    server.post(COUNT, &json!({"input": "a", "model": "x"})).refused(404, Some("model"), "model_not_found");
}
