//! Reasoning: how long it may be, and what comes behind it.

use serde_json::{Value, json};

use super::client::Server;
use super::forms::{respell, tool};
use crate::support::Model;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// The tiny model with a template that begins reasoning, unless it is told not to.
fn thinker() -> (Model, Server) {
    let model = Model::copy("tiny-chat");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }}{{ m.content }}\n{% endfor %}{% if tools %}{{ tools }}{% endif %}\
                    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}";
    model.edit("chat_template.jinja", |bytes| *bytes = template.as_bytes().to_vec());
    model.set("config.json", "max_position_embeddings", json!(1024));
    let server = Server::start(&model.path(), &[]);
    (model, server)
}

fn ask(more: &Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 60, "temperature": 1.5, "seed": 3});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

#[test]
fn a_budget_ends_reasoning() {
    let (_model, server) = thinker();
    let closing = server.post("/tokenize", &json!({"prompt": "</think>"})).ok()["tokens"].clone();
    let closing: Vec<u64> = serde_json::from_value(closing).expect("ids");
    let run = |budget: Value| {
        let body = ask(&json!({"thinking_token_budget": budget, "return_token_ids": true, "ignore_eos": true}));
        let answer = server.post(CHAT, &body).ok();
        let ids: Vec<u64> = serde_json::from_value(answer["choices"][0]["token_ids"].clone()).expect("ids");
        (ids, answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64(), answer)
    };
    let (free, thought, answer) = run(Value::Null);
    // Noise does not find the end by itself.
    assert_eq!((thought, &answer["choices"][0]["message"]["content"]), (Some(60), &json!("")));
    for budget in [0, 1, 7, 30] {
        let (ids, thought, answer) = run(json!(budget));
        assert_eq!(ids[..budget], free[..budget]);
        assert_eq!(ids[budget..budget + closing.len()], closing);
        assert_eq!(thought, Some((budget + closing.len()) as u64));
        assert_ne!(answer["choices"][0]["message"]["content"], "");
        assert_eq!(answer["choices"][0]["message"].get("reasoning_content").is_none(), budget == 0);
    }
    assert_eq!(run(json!(-1)).0, free);
    assert_eq!(run(json!(60)).0, free);
    // A second answer to the same prompt has a budget of its own.
    let two = server.post(CHAT, &ask(&json!({"thinking_token_budget": 2, "n": 2, "ignore_eos": true}))).ok();
    assert_eq!(two["usage"]["completion_tokens_details"]["reasoning_tokens"], 2 * (2 + closing.len()));
    server.post(CHAT, &ask(&json!({"thinking_token_budget": -2}))).refused(
        400,
        Some("thinking_token_budget"),
        "invalid_parameter",
    );
    let plain = Server::tiny(&[]);
    plain.post(CHAT, &ask(&json!({"thinking_token_budget": 2}))).refused(
        400,
        Some("thinking_token_budget"),
        "unsupported_parameter",
    );
}

#[test]
fn a_form_begins_behind_reasoning() {
    let (_model, server) = thinker();
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}});
    let message = |more: Value| {
        let mut body = json!({"response_format": format});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post(CHAT, &ask(&body)).ok()["choices"][0]["message"].clone()
    };
    let formed =
        |message: &Value| ["{\"ok\": true}", "{\"ok\": false}"].contains(&message["content"].as_str().expect("text"));
    let short = message(json!({}));
    assert!(formed(&short) && short.get("reasoning_content").is_none(), "{short}");
    let long = message(json!({"thinking_token_budget": 12}));
    assert!(formed(&long) && long["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()), "{long}");
    let endless = message(json!({"chat_template_kwargs": {"enable_thinking": true}}));
    assert_eq!(endless["content"], "");
    // The same for calls that are demanded.
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    let more = json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "thinking_token_budget": 4, "max_tokens": 200});
    let answer = server.post(CHAT, &ask(&more)).ok()["choices"][0].clone();
    assert_eq!(
        (&answer["finish_reason"], &answer["message"]["tool_calls"][0]["function"]["name"]),
        (&json!("tool_calls"), &json!("f"))
    );
    assert!(answer["message"]["reasoning_content"].is_string());
}

#[test]
fn reasoning_is_an_item_of_a_response() {
    let (_model, server) = thinker();
    let body = json!({"input": "Why?", "max_output_tokens": 40, "temperature": 1.5, "seed": 3, "ignore_eos": true, "thinking_token_budget": 6});
    let response = server.post(RESPONSES, &body).ok();
    let items = response["output"].as_array().expect("items");
    assert_eq!([&items[0]["type"], &items[1]["type"]], ["reasoning", "message"]);
    assert_eq!([&items[0]["status"], &items[1]["status"]], ["completed", "incomplete"]);
    assert_eq!(items[0]["content"][0]["type"], "reasoning_text");
    assert!(response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64() > Some(6));
    let stream = server.post(RESPONSES, &{
        let mut body = body.clone();
        body["stream"] = json!(true);
        body
    });
    for name in ["reasoning_text.delta", "reasoning_text.done", "output_text.delta", "output_text.done", "incomplete"] {
        assert!(stream.body.contains(&format!("event: response.{name}\n")), "{name} is not in {}", stream.body);
    }
    // Its items go on as the conversation.
    let mut input = vec![json!({"role": "user", "content": "Why?"})];
    input.extend(items.iter().cloned());
    input.push(json!({"role": "user", "content": "Really?"}));
    let next = server.post(RESPONSES, &json!({"input": input, "max_output_tokens": 1})).ok();
    assert!(next["usage"]["input_tokens"].as_u64() > response["usage"]["input_tokens"].as_u64());
    let off = json!({"input": "Why?", "max_output_tokens": 4, "reasoning": {"effort": "none"}, "ignore_eos": true});
    assert_eq!(server.post(RESPONSES, &off).ok()["output"][0]["type"], "message");
}

/// The prompt does not begin reasoning; a bias makes the model do so, or not.
#[test]
fn a_model_may_begin_reasoning_by_itself() {
    let (model, _) = thinker();
    respell(&model, "<think>");
    let template =
        "{{ tools }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{# it knows </think> #}";
    model.edit("chat_template.jinja", |bytes| *bytes = template.as_bytes().to_vec());
    let server = Server::start(&model.path(), &[]);
    let ask = |bias: i32, more: Value| {
        // 29 is "<", with which the marker can begin as well.
        let mut body = ask(&json!({"logit_bias": {"1": bias, "29": bias.min(0)}}));
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post(CHAT, &body).ok()["choices"][0]["message"].clone()
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["near", "far"]}}});
    let formed = |message: &Value| ["\"near\"", "\"far\""].contains(&message["content"].as_str().expect("text"));
    let thought = ask(100, json!({"response_format": format, "thinking_token_budget": 3}));
    assert!(formed(&thought) && thought["reasoning_content"] == "<think><think><think>", "{thought}");
    let silent = ask(-100, json!({"response_format": format}));
    assert!(formed(&silent) && silent.get("reasoning_content").is_none(), "{silent}");
    // Where any text may come, so may reasoning, and it need not end.
    let mut strict = tool("walk");
    strict["function"]["strict"] = json!(true);
    for parallel in [true, false] {
        let more = json!({"tools": [strict], "parallel_tool_calls": parallel, "max_tokens": 20});
        let endless = ask(100, more.clone());
        assert!(endless["reasoning_content"].as_str().is_some_and(|text| text.len() > 100), "{endless}");
        let mut short = more.clone();
        short["thinking_token_budget"] = json!(1);
        let short = ask(100, short);
        assert_eq!(short["reasoning_content"], "<think>");
        assert!(short["content"].as_str().is_some_and(|text| text.starts_with("<think>")), "{short}");
        assert!(ask(-100, more).get("reasoning_content").is_none());
    }
}
