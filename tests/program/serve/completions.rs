//! What chat and text completions answer.

use serde_json::{Value, json};

use super::client::Server;
use crate::support::{arle, fixture};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn hello(more: &Value) -> Value {
    let mut body = json!({
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 12, "seed": 7, "ignore_eos": true,
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

#[test]
fn an_answer_has_the_parts_that_clients_read() {
    let server = Server::tiny(&[]);
    let answer = server.post(CHAT, &hello(&json!({"n": 2, "logprobs": true, "top_logprobs": 2}))).ok();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("tiny-chat")));
    assert_eq!(answer["system_fingerprint"], "tiny-chat@0");
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    let choices = answer["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 2);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(index), &json!("length")));
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!(choice["weights_versions"], json!([0]));
        let tokens = choice["logprobs"]["content"].as_array().expect("tokens");
        assert_eq!(tokens.len(), 12);
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|t| serde_json::from_value::<Vec<u8>>(t["bytes"].clone()).expect("bytes")).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.contains(choice["message"]["content"].as_str().expect("text").trim()), "{text:?} {choice}");
        for token in tokens {
            let top = token["top_logprobs"].as_array().expect("alternatives");
            assert_eq!(top.len(), 2);
            assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
            assert!(token["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0));
        }
    }
    assert_ne!(choices[0]["message"], choices[1]["message"], "copies are drawn apart");
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    assert_eq!(usage["total_tokens"].as_u64(), usage["prompt_tokens"].as_u64().map(|prompt| prompt + 24));
    // The same again comes from the cache, and is the same.
    let again = server.post(CHAT, &hello(&json!({"n": 2}))).ok();
    assert_eq!(again["choices"][1]["message"], answer["choices"][1]["message"]);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0));
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let server = Server::tiny(&[]);
    let more = json!({"n": 2, "logprobs": true, "return_token_ids": true});
    let whole = server.post(CHAT, &hello(&more)).ok();
    let mut body = hello(&more);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = server.post(CHAT, &body);
    assert_eq!(response.headers["content-type"], "text/event-stream");
    let mut chunks = response.chunks();
    let last = chunks.pop().expect("a chunk with usage");
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(24)));
    for index in 0..2 {
        let expected = &whole["choices"][index];
        let mine: Vec<&Value> =
            chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == json!(index)).collect();
        assert_eq!(mine[0]["delta"], json!({"role": "assistant", "content": ""}));
        let text: String = mine.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(json!(text), expected["message"]["content"]);
        let ids: Vec<&Value> = mine.iter().filter_map(|choice| choice["token_ids"].as_array()).flatten().collect();
        assert_eq!(json!(ids), expected["token_ids"]);
        let content: Vec<&Value> = mine.iter().filter_map(|c| c["logprobs"]["content"].as_array()).flatten().collect();
        assert_eq!(json!(content), expected["logprobs"]["content"]);
        let reasons: Vec<&Value> =
            mine.iter().map(|c| &c["finish_reason"]).filter(|reason| !reason.is_null()).collect();
        assert_eq!(reasons, [&expected["finish_reason"]]);
    }
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
    assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
}

#[test]
fn prompts_come_as_texts_or_ids_alone_or_in_lists() {
    let server = Server::tiny(&[]);
    let ids = server.post("/tokenize", &json!({"prompt": "the sea"})).ok()["tokens"].clone();
    let texts = |prompt: Value| -> Vec<Value> {
        let body = json!({"prompt": prompt, "max_tokens": 8, "seed": 3, "n": 2, "ignore_eos": true});
        let answer = server.post(TEXT, &body).ok();
        let choices = answer["choices"].as_array().expect("choices");
        assert!(choices.iter().enumerate().all(|(i, c)| c["index"] == json!(i)));
        choices.iter().map(|choice| choice["text"].clone()).collect()
    };
    let one = texts(json!("the sea"));
    assert_eq!(one.len(), 2);
    assert_eq!(texts(ids.clone()), one);
    let other = texts(json!("a fish"));
    assert_eq!(texts(json!(["the sea", "a fish"])), [one.clone(), other.clone()].concat());
    assert_eq!(texts(json!([ids, ids])), [one.clone(), one].concat());
}

/// lm-evaluation-harness reads log-likelihoods of given texts this way.
#[test]
fn the_log_probabilities_of_an_echo_are_those_of_the_command_line() {
    let server = Server::tiny(&[]);
    let text = "Why is the sea blue? \u{e9}";
    let body =
        json!({"prompt": text, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 3});
    let choice = server.post(TEXT, &body).ok()["choices"][0].clone();
    let scored =
        arle(&["score", "--model", &fixture("tiny-chat"), "--device", "cpu", "--text", text, "--json"]).object();
    let expected: Vec<Option<f64>> = serde_json::from_value(scored["logprobs"].clone()).expect("numbers");
    let lists = &choice["logprobs"];
    let got: Vec<Option<f64>> = serde_json::from_value(lists["token_logprobs"].clone()).expect("numbers");
    assert_eq!(got.len(), expected.len() + 1, "the prompt and one new token");
    assert_eq!(got[..expected.len()], expected[..]);
    for name in ["tokens", "top_logprobs", "text_offset"] {
        assert_eq!(lists[name].as_array().map(Vec::len), Some(got.len()), "{name}");
    }
    assert!(got[0].is_none() && lists["top_logprobs"][0].is_null());
    for (place, own) in got.iter().enumerate().skip(1) {
        let top = lists["top_logprobs"][place].as_object().expect("alternatives");
        let best = top.values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
        assert!(own.is_some_and(|own| own <= best));
        assert!(top.contains_key(lists["tokens"][place].as_str().expect("a token")));
        assert!(top.len() <= 2);
    }
    // The new token is greedy: it is the best, and the very same number.
    let last = got.len() - 1;
    let top = lists["top_logprobs"][last].as_object().expect("alternatives");
    assert_eq!(got[last], top.values().filter_map(Value::as_f64).max_by(f64::total_cmp));
    assert!(choice["text"].as_str().is_some_and(|echo| echo.starts_with(text)));
    assert_eq!(lists["text_offset"][last], json!(text.chars().count()));
    // The other form of the same numbers.
    let prompt = choice["prompt_logprobs"].as_array().expect("a list");
    let ids = server.post("/tokenize", &json!({"prompt": text})).ok()["tokens"].clone();
    for (place, entry) in prompt.iter().enumerate().skip(1) {
        assert_eq!(entry[ids[place].to_string()]["logprob"].as_f64(), expected[place]);
    }
    // And of the scoring route.
    let score = server.post("/v1/score", &json!({"input": ids, "top_k": 2})).ok();
    assert_eq!(score["data"][0]["logprobs"], scored["logprobs"]);
    assert_eq!(score["data"][0]["top_ids"][1].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_completion_ends_where_it_was_told() {
    let server = Server::tiny(&[]);
    let ask = |more: Value| {
        let mut body = json!({"prompt": "the sea", "max_tokens": 30, "seed": 5, "ignore_eos": true});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post(TEXT, &body).ok()["choices"][0].clone()
    };
    let free = ask(json!({"return_token_ids": true}));
    let text = free["text"].as_str().expect("text");
    let stop: String = text.chars().skip(4).take(2).collect();
    let stopped = ask(json!({"stop": [stop]}));
    assert_eq!((&stopped["finish_reason"], stopped["text"].as_str()), (&json!("stop"), text.split(&stop).next()));
    let third = free["token_ids"][2].clone();
    let by_id = ask(json!({"stop_token_ids": [third], "return_token_ids": true}));
    assert_eq!(by_id["finish_reason"], "stop");
    assert_eq!(by_id["token_ids"].as_array().and_then(|ids| ids.last()), Some(&third));
    let none = ask(json!({"max_tokens": 0, "echo": true}));
    assert_eq!((&none["text"], &none["finish_reason"]), (&json!("the sea"), &json!("length")));
    let best = ask(json!({"best_of": 4, "logprobs": 0}));
    let mean = |choice: &Value| -> f64 {
        let values: Vec<f64> = serde_json::from_value(choice["logprobs"]["token_logprobs"].clone()).expect("numbers");
        values.iter().sum::<f64>() / values.len() as f64
    };
    let all = server
        .post(
            TEXT,
            &json!({"prompt": "the sea", "max_tokens": 30, "seed": 5, "ignore_eos": true, "n": 4, "logprobs": 0}),
        )
        .ok();
    let means: Vec<f64> = all["choices"].as_array().expect("choices").iter().map(mean).collect();
    assert_eq!(mean(&best), means.into_iter().fold(f64::MIN, f64::max));
}
