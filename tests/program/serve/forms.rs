//! Answers that must have a form, and calls of tools.

use serde_json::{Value, json};

use super::client::Server;
use crate::support::Model;

const CHAT: &str = "/v1/chat/completions";

/// The tiny model with a template that knows tools.
pub(super) fn with_tools() -> (Model, Server) {
    let model = Model::copy("tiny-chat");
    let template = "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    model.edit("chat_template.jinja", |bytes| *bytes = template.as_bytes().to_vec());
    model.set("config.json", "max_position_embeddings", json!(1024));
    let server = Server::start(&model.path(), &["--served-model-name", "m"]);
    (model, server)
}

/// Makes a marker of the tiny tokenizer's token 1.
pub(super) fn respell(model: &Model, marker: &str) {
    model.edit("tokenizer.json", |bytes| {
        let text = String::from_utf8(bytes.clone()).expect("text").replace("<|start|>", marker);
        let at = text.rfind("\"special\": true").expect("the second special token");
        *bytes = [&text[..at], "\"special\": false", &text[at + 15..]].concat().into_bytes();
    });
}

pub(super) fn tool(name: &str) -> Value {
    let parameters = json!({
        "type": "object", "properties": {"count": {"type": "integer", "minimum": 1, "maximum": 9}, "unit": {"enum": ["km", "mile"]}},
        "required": ["count", "unit"], "additionalProperties": false,
    });
    json!({"type": "function", "function": {"name": name, "description": "It measures.", "parameters": parameters}})
}

fn ask(more: &Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "How far?"}], "max_tokens": 200, "temperature": 1.5});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// The weights are noise: what keeps to the form does so because nothing else is possible.
#[test]
fn json_keeps_to_its_schema() {
    let (_model, server) = with_tools();
    let schema = json!({
        "type": "object", "required": ["name", "sizes", "ok"], "additionalProperties": false, "$defs": {"size": {"enum": [1, 2, 30]}},
        "properties": {
            "name": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"},
            "sizes": {"type": "array", "items": {"$ref": "#/$defs/size"}, "minItems": 2, "maxItems": 3},
        },
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}});
    for seed in 0..8 {
        let answer = server.post(CHAT, &ask(&json!({"response_format": format, "seed": seed, "n": 2}))).ok();
        for choice in answer["choices"].as_array().expect("choices") {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            let content = choice["message"]["content"].as_str().expect("text");
            let value: Value = serde_json::from_str(content).unwrap_or_else(|e| panic!("{e}: {content}"));
            let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["name", "ok", "sizes"]);
            assert!(value["name"].as_str().is_some_and(|name| name.chars().count() <= 5) && value["ok"].is_boolean());
            let sizes = value["sizes"].as_array().expect("a list");
            assert!(
                (2..=3).contains(&sizes.len()) && sizes.iter().all(|size| [1, 2, 30].map(Value::from).contains(size))
            );
        }
    }
}

#[test]
fn texts_keep_to_their_form() {
    let (_model, server) = with_tools();
    for seed in 0..5 {
        let content = |form: Value| {
            let answer = server.post(CHAT, &ask(&json!({"structured_outputs": form, "seed": seed}))).ok();
            answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
        };
        let date = content(json!({"regex": "[0-9]{4}-[01][0-9]"}));
        assert!(date.len() == 7 && date.as_bytes()[4] == b'-', "{date}");
        assert!(["yes", "no \"way\""].contains(&content(json!({"choice": ["yes", "no \"way\""]})).as_str()));
    }
    let wrong = |more: Value, status: u16, field: &str| {
        let code = if status == 400 { "invalid_parameter" } else { "" };
        server.post(CHAT, &ask(&more)).refused(status, Some(field), code);
    };
    wrong(json!({"structured_outputs": {"regex": "("}}), 400, "structured_outputs");
    wrong(json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), 400, "structured_outputs");
    wrong(json!({"response_format": {"type": "xml"}}), 400, "response_format");
    // Every schema has a name, as OpenAI has it.
    for name in [json!(null), json!(""), json!("two words"), json!("n".repeat(65)), json!(5)] {
        let format = json!({"type": "json_schema", "json_schema": {"name": name, "schema": {}}});
        wrong(json!({"response_format": format}), 400, "response_format");
    }
    wrong(json!({"response_format": {"type": "json_object"}, "ignore_eos": true}), 400, "ignore_eos");
    wrong(
        json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
        400,
        "structured_outputs",
    );
}

#[test]
fn a_call_that_is_demanded_is_made() {
    let (_model, server) = with_tools();
    let tools = json!([tool("walk"), tool("drive")]);
    let named = json!({"type": "function", "function": {"name": "drive"}});
    for (choice, names) in [(named, &["drive"][..]), (json!("required"), &["walk", "drive"])] {
        let body = ask(&json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "seed": 3}));
        let answer = server.post(CHAT, &body).ok()["choices"][0].clone();
        assert_eq!((&answer["finish_reason"], &answer["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        let calls = answer["message"]["tool_calls"].as_array().expect("calls");
        assert_eq!(calls.len(), 1);
        let function = &calls[0]["function"];
        assert!(names.contains(&function["name"].as_str().expect("a name")));
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().expect("text")).expect("JSON");
        assert!(arguments["count"].as_i64().is_some_and(|count| (1..=9).contains(&count)), "{arguments}");
        // The stream makes the same call.
        let mut body = body.clone();
        body["stream"] = json!(true);
        let chunks = server.post(CHAT, &body).chunks();
        let streamed = replayed(&chunks);
        assert_eq!(streamed.iter().map(|call| &call["function"]).collect::<Vec<_>>(), [function]);
        assert_eq!(chunks.last().expect("a chunk")["choices"][0]["finish_reason"], "tool_calls");
    }
    let refused = |more: Value, field: &str| {
        let message = server.post(CHAT, &ask(&more)).refused(400, Some(field), "invalid_parameter");
        assert!(message.contains(field.split('.').next().expect("a part")), "{message}");
    };
    refused(json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "fly"}}}), "tool_choice");
    refused(json!({"tool_choice": "required"}), "tool_choice");
    refused(json!({"tools": [{"type": "web_search"}]}), "tools[0].type");
    // What a client offers by itself is turned off in the client.
    for (kind, setting) in [
        ("web_search", "web_search = \"disabled\""),
        ("web_search_preview", "web_search = \"disabled\""),
        ("namespace", "multi_agent = false"),
        ("custom", "parameters"),
        ("code_interpreter", "turn it off"),
    ] {
        let body = ask(&json!({"tools": [tool("walk"), {"type": kind}]}));
        let message = server.post(CHAT, &body).refused(400, Some("tools[1].type"), "invalid_parameter");
        assert!(message.contains(setting) && message.contains(kind), "{message}");
    }
    let mut strict = tool("walk");
    strict["function"]["strict"] = json!("yes");
    refused(json!({"tools": [strict]}), "tools[0].function.strict");
    let plain = Server::tiny(&[]);
    plain.post(CHAT, &ask(&json!({"tools": tools}))).refused(400, Some("tools"), "unsupported_parameter");
}

/// The calls that the deltas of a stream amount to. They come as the model writes them, not at once.
#[track_caller]
pub(super) fn replayed(chunks: &[Value]) -> Vec<Value> {
    let mut calls: Vec<Value> = Vec::new();
    let mut deltas = 0;
    for delta in chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"][0].as_object()) {
        deltas += 1;
        let more = delta["function"]["arguments"].as_str().expect("text");
        match calls.get_mut(delta["index"].as_u64().expect("a place") as usize) {
            Some(call) => {
                assert_eq!(delta.len(), 2, "only the first delta of a call names it: {delta:?}");
                let arguments = [call["function"]["arguments"].as_str().expect("text"), more].concat();
                call["function"]["arguments"] = json!(arguments);
            }
            None => {
                assert!(delta["id"].is_string() && delta["function"]["name"].is_string(), "{delta:?}");
                calls.push(json!(delta));
            }
        }
    }
    assert!(deltas > 2 * calls.len(), "{deltas} deltas");
    calls
}

/// A length that cuts a call leaves a call, with the arguments so far, and no marker.
#[test]
fn a_call_that_is_cut_is_a_call() {
    let (_model, server) = with_tools();
    let tools = json!([tool("walk"), tool("drive")]);
    let named = json!({"type": "function", "function": {"name": "drive"}});
    let whole = server.post(CHAT, &ask(&json!({"tools": tools, "tool_choice": named, "seed": 3}))).ok();
    let whole_arguments =
        whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].as_str().expect("text").to_owned();
    let mut lengths = std::collections::BTreeSet::new();
    for max_tokens in 1..whole["usage"]["completion_tokens"].as_u64().expect("a number") {
        for stream in [false, true] {
            let more =
                json!({"tools": tools, "tool_choice": named, "seed": 3, "max_tokens": max_tokens, "stream": stream});
            let answer = server.post(CHAT, &ask(&more));
            assert!(!answer.body.contains("tool_call>") && !answer.body.contains("<tool"), "{max_tokens}: {answer:?}");
            let (call, reason) = if stream {
                let chunks = answer.chunks();
                let mut calls = json!({"name": Value::Null, "arguments": ""});
                for delta in chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]["function"]) {
                    if delta["name"].is_string() {
                        calls["name"] = delta["name"].clone();
                    }
                    let more = delta["arguments"].as_str().unwrap_or_default();
                    calls["arguments"] = json!([calls["arguments"].as_str().expect("text"), more].concat());
                }
                (calls, chunks.last().expect("a chunk")["choices"][0]["finish_reason"].clone())
            } else {
                let choice = &answer.ok()["choices"][0];
                assert_eq!(choice["message"]["content"], Value::Null);
                (choice["message"]["tool_calls"][0]["function"].clone(), choice["finish_reason"].clone())
            };
            assert_eq!((&call["name"], reason.as_str()), (&json!("drive"), Some("length")), "{max_tokens}");
            let arguments = call["arguments"].as_str().expect("text");
            assert!(whole_arguments.starts_with(arguments), "{arguments}");
            lengths.insert(arguments.len());
        }
    }
    assert!(lengths.len() > 10, "{lengths:?}");
}

/// The call is what this turn must be; the form holds for a turn that answers.
#[test]
fn a_call_that_is_demanded_needs_no_form() {
    let (_model, server) = with_tools();
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 5}}});
    let forms = [json!({"response_format": format}), json!({"structured_outputs": {"choice": ["yes"]}})];
    for form in forms {
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "walk"}})] {
            let mut more =
                json!({"tools": [tool("walk")], "tool_choice": choice, "parallel_tool_calls": false, "seed": 3});
            let plain =
                server.post(CHAT, &ask(&more)).ok()["choices"][0]["message"]["tool_calls"][0]["function"].clone();
            more.as_object_mut().expect("an object").extend(form.as_object().expect("an object").clone());
            let choice = server.post(CHAT, &ask(&more)).ok()["choices"][0].clone();
            assert_eq!(choice["message"]["tool_calls"][0]["function"], plain);
            assert_eq!(choice["finish_reason"], "tool_calls");
        }
    }
    let wrong = json!({"tools": [tool("walk")], "tool_choice": "required", "response_format": {"type": "xml"}});
    server.post(CHAT, &ask(&wrong)).refused(400, Some("response_format"), "invalid_parameter");
}

fn allowed(mode: &str, names: &[&str]) -> Value {
    let tools: Vec<Value> = names.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
    json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
}

#[test]
fn only_allowed_tools_are_called() {
    let (model, _) = with_tools();
    respell(&model, "<tool_call>");
    model.set("config.json", "max_position_embeddings", json!(2048));
    let server = Server::start(&model.path(), &[]);
    let tools = json!([tool("walk"), tool("drive"), tool("swim")]);
    let ask = |more: &Value| {
        let mut body = ask(&json!({"tools": tools, "max_tokens": 300}));
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let called = |answer: &Value| -> Vec<String> {
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        calls.iter().map(|call| call["function"]["name"].as_str().expect("a name").to_owned()).collect()
    };
    let (mut calls, mut texts) = (0, 0);
    for seed in 0..12 {
        let more = json!({"tool_choice": allowed("auto", &["walk", "swim"]), "logit_bias": {"1": 4}, "seed": seed});
        let answer = server.post(CHAT, &ask(&more)).ok();
        let names = called(&answer);
        assert!(names.iter().all(|name| name != "drive"), "{names:?}");
        calls += names.len();
        texts += usize::from(names.is_empty());
    }
    assert!(calls > 3 && texts > 0, "{calls} {texts}");
    for seed in 0..4 {
        let more = json!({"tool_choice": allowed("required", &["drive", "swim"]), "seed": seed});
        let names = called(&server.post(CHAT, &ask(&more)).ok());
        assert!(!names.is_empty() && names.iter().all(|name| name != "walk"), "{names:?}");
    }
    // All tools stay in the prompt, so that its beginning can be found again.
    let prompt =
        |choice: Value| server.post(CHAT, &ask(&json!({"tool_choice": choice}))).ok()["usage"]["prompt_tokens"].clone();
    assert_eq!(prompt(allowed("auto", &["walk"])), prompt(json!("auto")));
    // Nothing is allowed: then nothing is called, as with "none".
    assert_eq!(prompt(allowed("auto", &[])), prompt(json!("none")));
    for wrong in [
        allowed("required", &[]),
        allowed("auto", &["fly"]),
        allowed("never", &["walk"]),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}}),
        json!({"type": "allowed_tools"}),
    ] {
        server.post(CHAT, &ask(&json!({"tool_choice": wrong}))).refused(400, Some("tool_choice"), "invalid_parameter");
    }
}

/// A token for the marker, which a bias makes likely: what comes behind it is the schema's all the same, and what stands
/// elsewhere is free.
#[test]
fn a_strict_call_that_is_chosen_keeps_to_its_schema() {
    let (model, _) = with_tools();
    respell(&model, "<tool_call>");
    let server = Server::start(&model.path(), &[]);
    let mut strict = tool("walk");
    strict["function"]["strict"] = json!(true);
    let loose = json!({"type": "function", "function": {"name": "look"}});
    let (mut walks, mut looks, mut texts) = (0, 0, 0);
    for seed in 0..24 {
        let more = json!({"tools": [strict, loose], "seed": seed, "logit_bias": {"1": 4}, "max_tokens": 400});
        let choice = server.post(CHAT, &ask(&more)).ok()["choices"][0].clone();
        for call in choice["message"]["tool_calls"].as_array().unwrap_or(&vec![]) {
            let arguments = serde_json::from_str(call["function"]["arguments"].as_str().expect("text"));
            let arguments: Value = match arguments {
                // The length has cut it.
                Err(_) if choice["finish_reason"] == "length" => continue,
                arguments => arguments.expect("JSON"),
            };
            match call["function"]["name"].as_str() {
                Some("walk") => {
                    walks += 1;
                    assert!(arguments["count"].as_i64().is_some_and(|count| (1..=9).contains(&count)), "{arguments}");
                    assert!(["km", "mile"].contains(&arguments["unit"].as_str().expect("a unit")));
                }
                Some("look") => looks += 1,
                other => panic!("{other:?}"),
            }
        }
        texts += usize::from(choice["message"]["content"].as_str().is_some_and(|text| !text.trim().is_empty()));
    }
    assert!(walks > 3 && looks > 3 && texts > 3, "{walks} {looks} {texts}");
    // Only one, at once: then the answer is over.
    let more = json!({"tools": [strict], "parallel_tool_calls": false, "logit_bias": {"1": 100}});
    let choice = server.post(CHAT, &ask(&more)).ok()["choices"][0].clone();
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(1), "{choice}");
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    // A form for what is no call leaves the choice to call.
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 5}}});
    // 29 is "<", with which the marker can begin as well.
    let either = |bias: i32| {
        let more = json!({"tools": [strict], "response_format": format, "logit_bias": {"1": bias, "29": bias}, "max_tokens": 600, "seed": 1});
        server.post(CHAT, &ask(&more)).ok()["choices"][0]["message"].clone()
    };
    assert_eq!(either(-100)["content"], "5");
    assert_eq!(either(30)["tool_calls"][0]["function"]["name"], "walk");
    let wrong =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "strange"}, "strict": true}});
    server.post(CHAT, &ask(&json!({"tools": [wrong]}))).refused(400, Some("tools"), "invalid_parameter");
}
