//! What trainers ask of vLLM's server: scores of given tokens, pauses, routes about the server.

use serde_json::{Map, Value, json};

use super::client::{Response, Server, wait_until};
use super::load::{long, slow_model};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const TOKENS: [u32; 7] = [17, 201, 44, 44, 3, 250, 9];

fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// The request by which TRL scores completions under a teacher.
fn scored(server: &Server, more: &Value) -> Response {
    let body = json!({"prompt": [TOKENS, [5]], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 3});
    server.post(TEXT, &with(body, more))
}

#[test]
fn prompts_are_scored_at_the_temperature_with_ranks() {
    let server = Server::tiny(&[]);
    for (temperature, given) in [(2.5, json!(2.5)), (1.0, json!(1.0)), (1.0, json!(0)), (1.0, json!(null))] {
        let choices = scored(&server, &json!({"temperature": given})).ok()["choices"].clone();
        assert_eq!(choices[1]["prompt_logprobs"], json!([null]), "nothing comes before the first token");
        let body = json!({"input": TOKENS, "top_k": 300, "temperature": temperature});
        let expected = server.post("/v1/score", &body).ok()["data"][0].clone();
        for place in 1..TOKENS.len() {
            let listed = choices[0]["prompt_logprobs"][place].as_object().expect("an object");
            let ids = expected["top_ids"][place].as_array().expect("ids");
            let own = ids.iter().position(|id| *id == json!(TOKENS[place])).expect("all ids are listed");
            assert_eq!(listed.len(), 3 + usize::from(own >= 3));
            for rank in [0, 1, 2, own] {
                let entry = &listed[&ids[rank].to_string()];
                assert_eq!(entry["rank"], json!(rank + 1));
                assert_eq!(entry["logprob"], expected["top_logprobs"][place][rank], "{temperature} {place} {rank}");
            }
        }
    }
}

#[test]
fn as_many_alternatives_as_there_are_tokens() {
    let server = Server::tiny(&[]);
    for all in [300, -1] {
        let choices = scored(&server, &json!({"prompt_logprobs": all})).ok()["choices"].clone();
        let listed = choices[0]["prompt_logprobs"][3].as_object().expect("an object").clone();
        let mass: f64 = listed.values().map(|entry| entry["logprob"].as_f64().expect("a number").exp()).sum();
        assert!(listed.len() == 300 && (mass - 1.0).abs() < 1e-5, "{mass}");
    }
    let message =
        scored(&server, &json!({"prompt_logprobs": 301})).refused(400, Some("prompt_logprobs"), "invalid_parameter");
    assert!(message.contains("300"), "{message}");
    let none = scored(&server, &json!({"prompt_logprobs": 0})).ok()["choices"][0]["prompt_logprobs"][2].clone();
    assert!(none["44"]["rank"].as_u64() >= Some(1) && none.as_object().map(Map::len) == Some(1), "{none}");
    let small = Server::tiny(&["--max-score-bytes", "2000"]);
    let message = scored(&small, &json!({})).refused(413, Some("prompt_logprobs"), "payload_too_large");
    assert!(message.contains("--max-score-bytes"), "{message}");
}

#[test]
fn tokens_are_called_by_their_ids() {
    let server = Server::tiny(&[]);
    let more =
        json!({"max_tokens": 4, "ignore_eos": true, "return_token_ids": true, "return_tokens_as_token_ids": true});
    let text = server.post(TEXT, &with(json!({"prompt": TOKENS, "logprobs": 2}), &more)).ok()["choices"][0].clone();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = with(json!({"messages": messages, "logprobs": true, "top_logprobs": 2}), &more);
    let chat = server.post(CHAT, &body).ok()["choices"][0].clone();
    for place in 0..4 {
        let name = |choice: &Value| json!(format!("token_id:{}", choice["token_ids"][place]));
        assert_eq!(text["logprobs"]["tokens"][place], name(&text));
        let listed = text["logprobs"]["top_logprobs"][place].as_object().expect("an object");
        assert!(listed.keys().all(|key| key.starts_with("token_id:")), "{listed:?}");
        let entry = &chat["logprobs"]["content"][place];
        assert_eq!(entry["token"], name(&chat));
        assert!(entry["top_logprobs"][1]["token"].as_str().is_some_and(|token| token.starts_with("token_id:")));
    }
}

/// With `processed_logprobs` the log-probabilities are those of the distribution that is drawn from.
#[test]
fn sampled_tokens_are_reported_at_the_temperature() {
    let server = Server::tiny(&["--logprobs-mode", "processed_logprobs"]);
    let ask = |more: Value| {
        let body = json!({"prompt": TOKENS, "max_tokens": 5, "temperature": 0.5, "logprobs": 2, "seed": 3, "ignore_eos": true});
        server.post(TEXT, &with(body, &with(json!({"return_token_ids": true}), &more)))
    };
    let choice = ask(json!({})).ok()["choices"][0].clone();
    let sampled: Vec<u32> = serde_json::from_value(choice["token_ids"].clone()).expect("ids");
    let whole = [&TOKENS[..], &sampled].concat();
    let body = json!({"input": whole, "temperature": 0.5});
    let expected = server.post("/v1/score", &body).ok()["data"][0]["logprobs"].clone();
    for place in 0..5 {
        let got = choice["logprobs"]["token_logprobs"][place].as_f64().expect("a number");
        let expected = expected[TOKENS.len() + place].as_f64().expect("a number");
        assert!((got - expected).abs() < 1e-4, "{got}, expected {expected}");
    }
    ask(json!({"top_p": 0.9})).refused(400, Some("top_p"), "unsupported_parameter");
    ask(json!({"top_p": 0.9, "logprobs": null})).ok();
}

#[test]
fn generating_pauses_and_goes_on() {
    let (_folder, model) = slow_model();
    let server = Server::start(&model, &[]);
    let kept = server.open("POST", TEXT, &[], &long(300, &json!({})));
    wait_until("running", || server.stat("arle_num_requests_running") == 1.0);
    assert_eq!(server.post("/pause?mode=keep", &json!({})).ok(), json!({"status": "paused"}));
    assert_eq!(server.get("/is_paused").ok(), json!({"is_paused": true}));
    let steps = server.stat("arle_scheduler_steps_total");
    let late = server.open("POST", TEXT, &[], &long(2, &json!({})));
    wait_until("waiting", || server.stat("arle_num_requests_waiting") == 1.0);
    assert_eq!(server.stat("arle_scheduler_steps_total"), steps);
    assert_eq!(server.post("/resume", &json!({})).ok(), json!({"status": "resumed"}));
    for (request, tokens) in [(kept, 300), (late, 2)] {
        assert_eq!(Response::read(request).ok()["usage"]["completion_tokens"], tokens);
    }
    // The gauge is that of the newest step: it may still count the requests that were just answered.
    wait_until("idle", || server.stat("arle_num_requests_running") == 0.0);
    let cut = server.open("POST", TEXT, &[], &long(8000, &json!({})));
    wait_until("running", || server.stat("arle_num_requests_running") == 1.0);
    server.post("/pause", &json!({})).ok();
    assert_eq!(Response::read(cut).ok()["choices"][0]["finish_reason"], "cancelled");
    server.post("/pause?mode=wait", &json!({})).refused(400, Some("mode"), "unsupported_parameter");
    assert_eq!(server.send("POST", "/pause?mode=sleep", &[], "").status, 400);
    server.send("POST", "/resume", &[], "").ok();
}

#[test]
fn cached_prefixes_are_forgotten() {
    let server = Server::tiny(&[]);
    let cached = || {
        let body = json!({"prompt": vec![7; 64], "max_tokens": 1});
        server.post(TEXT, &body).ok()["usage"]["prompt_tokens_details"]["cached_tokens"].clone()
    };
    assert_eq!(cached(), 0);
    assert_ne!(cached(), 0);
    assert_eq!(server.send("POST", "/reset_prefix_cache", &[], "").ok(), json!({"success": true}));
    assert_eq!(cached(), 0);
}

#[test]
fn the_server_says_what_it_is() {
    let server = Server::tiny(&["--max-adapters", "2"]);
    assert_eq!(server.get("/get_world_size").ok(), json!({"world_size": 1}));
    assert!(server.get("/version").ok()["version"].is_string());
    let config = server.get("/server_info?config_format=json").ok()["vllm_config"].clone();
    assert_eq!(config["weight_transfer_config"], Value::Null);
    assert_eq!(config["model_config"]["dtype"], "torch.float32");
    assert_eq!(
        (&config["lora_config"]["max_loras"], &config["parallel_config"]["data_parallel_size"]),
        (&json!(2), &json!(1))
    );
    for route in ["/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"] {
        let message = server.send("POST", route, &[], "").refused(400, None, "weight_transfer_unsupported");
        assert!(message.contains("/v1/load_lora_adapter"), "{message}");
    }
}

/// What is rendered and then generated is the answer to the conversation.
#[test]
fn a_conversation_is_rendered_to_what_tokens_are_generated_from() {
    let server = Server::tiny(&[]);
    let body = json!({
        "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 9, "seed": 11, "temperature": 0.8, "ignore_eos": true, "n": 2,
    });
    let mut rendered = server.post("/v1/chat/completions/render", &body).ok();
    assert_eq!(rendered["features"], Value::Null);
    let chat = server.post(CHAT, &with(body, &json!({"return_token_ids": true, "logprobs": true}))).ok();
    assert_eq!(rendered["token_ids"], chat["prompt_token_ids"]);
    rendered["sampling_params"]["logprobs"] = json!(0);
    rendered["sampling_params"]["output_kind"] = json!(2);
    let generated = server.post("/inference/v1/generate", &rendered).ok();
    assert_eq!(generated["request_id"], rendered["request_id"]);
    for place in 0..2 {
        assert_eq!(generated["choices"][place]["token_ids"], chat["choices"][place]["token_ids"]);
        let [tokens, texts] = [&generated, &chat].map(|answer| &answer["choices"][place]["logprobs"]["content"]);
        assert_eq!(tokens[8]["logprob"], texts[8]["logprob"]);
        assert_eq!(tokens[8]["token"], json!(format!("token_id:{}", generated["choices"][place]["token_ids"][8])));
    }
    let wrong = json!({"token_ids": [1], "sampling_params": {"temperature": -1}});
    server.post("/inference/v1/generate", &wrong).refused(
        400,
        Some("sampling_params.temperature"),
        "invalid_parameter",
    );
}

#[test]
fn prompts_keep_their_end_and_texts_their_stop() {
    let server = Server::tiny(&[]);
    let ask = |more: Value| {
        let body = json!({"prompt": TOKENS, "max_tokens": 12, "seed": 5, "ignore_eos": true, "return_token_ids": true});
        server.post(TEXT, &with(body, &more))
    };
    let cut = ask(json!({"truncate_prompt_tokens": 3})).ok()["choices"][0].clone();
    assert_eq!(cut["prompt_token_ids"], json!(TOKENS[4..]));
    assert_eq!(cut["token_ids"], ask(json!({"prompt": TOKENS[4..]})).ok()["choices"][0]["token_ids"]);
    let long = ask(json!({"prompt": vec![1; 1000], "truncate_prompt_tokens": 200})).ok()["choices"][0].clone();
    assert_eq!(long["prompt_token_ids"], json!(vec![1; 200]));
    for keep in [0, -2, 257] {
        ask(json!({"truncate_prompt_tokens": keep})).refused(400, Some("truncate_prompt_tokens"), "invalid_parameter");
    }
    let whole = ask(json!({})).ok()["choices"][0]["text"].as_str().expect("text").to_owned();
    let stop: String = whole.chars().skip(4).take(2).collect();
    let end = whole.find(&stop).expect("it is there");
    assert_eq!(ask(json!({"stop": stop})).ok()["choices"][0]["text"], whole[..end]);
    let included = ask(json!({"stop": stop, "include_stop_str_in_output": true})).ok();
    assert_eq!(included["choices"][0]["text"], whole[..end + stop.len()]);
    // The end of the model is a special token.
    let bias = json!({"logit_bias": {"0": 100}, "max_tokens": 2});
    let text = |more: Value| ask(with(bias.clone(), &more)).ok()["choices"][0]["text"].clone();
    assert_eq!(text(json!({})), "");
    assert_eq!(text(json!({"skip_special_tokens": false})), "<|end|><|end|>");
    let ended = json!({"skip_special_tokens": false, "ignore_eos": false});
    assert_eq!(text(ended.clone()), "");
    assert_eq!(text(with(ended, &json!({"include_stop_str_in_output": true}))), "<|end|>");
}

#[test]
fn forms_have_their_older_names() {
    let server = Server::tiny(&[]);
    let ask = |more: Value| server.post(TEXT, &with(json!({"prompt": TOKENS, "max_tokens": 60, "seed": 1}), &more));
    for more in [
        json!({"guided_choice": ["ab", "ac"]}),
        json!({"guided_regex": "a[bc]"}),
        json!({"guided_grammar": "start: \"a\" (\"b\" | \"c\")", "guided_decoding_backend": "outlines"}),
        json!({"structured_outputs": {"choice": ["ab", "ac"], "json": null}}),
    ] {
        let text = ask(more).ok()["choices"][0]["text"].clone();
        assert!(text == "ab" || text == "ac", "{text}");
    }
    ask(json!({"guided_json": {"type": 5}})).refused(400, Some("guided_json"), "invalid_parameter");
    ask(json!({"guided_whitespace_pattern": " "})).refused(
        400,
        Some("guided_whitespace_pattern"),
        "unsupported_parameter",
    );
    ask(json!({"use_beam_search": true})).refused(400, Some("use_beam_search"), "unsupported_parameter");
}

/// An object that lists its properties has no others, so it ends.
#[test]
fn an_object_ends_with_its_properties() {
    let server = Server::tiny(&[]);
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}});
    for seed in 0..8 {
        let body = json!({"prompt": TOKENS, "max_tokens": 60, "seed": seed, "structured_outputs": {"json": schema}});
        let choice = server.post(TEXT, &body).ok()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "stop");
        let object: Map<String, Value> = serde_json::from_str(choice["text"].as_str().expect("text")).expect("JSON");
        assert!(object.keys().all(|key| key == "a" || key == "b"), "{object:?}");
    }
}

#[test]
fn the_last_message_goes_on() {
    let server = Server::tiny(&[]);
    let messages = json!([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because the"}]);
    let ask = |more: Value| {
        let body =
            json!({"messages": messages, "max_tokens": 5, "seed": 2, "return_token_ids": true, "ignore_eos": true});
        server.post(CHAT, &with(body, &more))
    };
    let rendered = |more: Value| {
        let tokens = server.post("/tokenize", &with(json!({"messages": messages}), &more)).ok();
        tokens["rendered"].as_str().expect("text").to_owned()
    };
    let goes_on = json!({"continue_final_message": true, "add_generation_prompt": false});
    assert!(rendered(goes_on.clone()).ends_with("assistant\nBecause the"));
    assert!(rendered(json!({"add_generation_prompt": false})).ends_with("Because the<|end|>\n"));
    let answer = ask(goes_on).ok();
    let prompt = server.post("/tokenize", &json!({"prompt": rendered(json!({"continue_final_message": true}))})).ok();
    assert_eq!(answer["prompt_token_ids"], prompt["tokens"]);
    let both = json!({"continue_final_message": true, "add_generation_prompt": true});
    ask(both).refused(400, Some("continue_final_message"), "invalid_parameter");
}
