//! Models, tokenizer, metrics.

use serde_json::{Value, json};

use super::client::Server;
use crate::support::{fixture, fixtures, read_json};

#[test]
fn models_have_all_their_names() {
    let names = ["--served-model-name", "org/one", "--served-model-name", "two", "--teacher"];
    let teacher = fixture("tiny-chat");
    let server = Server::tiny(&[&names[..], &[teacher.as_str()]].concat());
    let list = server.get("/v1/models").ok();
    let ids: Vec<&Value> = list["data"].as_array().expect("models").iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["org/one", "two", "tiny-chat"]);
    assert_eq!(server.get("/v1/models/org/one").ok()["max_model_len"], 256);
    server.get("/v1/models/three").refused(404, Some("model"), "model_not_found");
    // Student and teacher are the same weights here, so they say the same.
    let ask = |model: &str| {
        let body = json!({"model": model, "prompt": "the sea", "seed": 1, "ignore_eos": true});
        server.post("/v1/completions", &body).ok()
    };
    let [two, teacher] = [ask("two"), ask("tiny-chat")];
    assert_eq!(two["choices"][0]["text"], teacher["choices"][0]["text"]);
    assert_eq!((&two["model"], &two["system_fingerprint"]), (&json!("two"), &json!("org/one@0")));
    assert_eq!(teacher["system_fingerprint"], "tiny-chat@0");
}

#[test]
fn the_tokenizer_is_there() {
    let server = Server::tiny(&[]);
    let info = server.get("/tokenizer_info").ok();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|end|>"), &Value::Null));
    assert!(info["chat_template"].as_str().is_some_and(|template| template.contains("<|start|>")));
    let text = "Why? \u{1f980}";
    let tokens = server.post("/tokenize", &json!({"prompt": text, "return_token_strs": true})).ok();
    assert_eq!(tokens["tokens"].as_array().map(Vec::len), tokens["count"].as_u64().map(|count| count as usize));
    let pieces: Vec<String> = serde_json::from_value(tokens["token_strs"].clone()).expect("texts");
    assert!(text.starts_with(&pieces[..3].concat()), "{pieces:?}");
    assert_eq!(server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).ok(), json!({"prompt": text}));
    let chat = server.post("/tokenize", &json!({"messages": [{"role": "user", "content": "Hi"}]})).ok();
    assert_eq!(chat["rendered"], "<|start|>user\nHi<|end|>\n<|start|>assistant\n");
    server.post("/tokenize", &json!({"prompt": "a", "messages": []})).refused(400, Some("prompt"), "invalid_parameter");
    server.post("/detokenize", &json!({"tokens": [300]})).refused(400, Some("tokens"), "invalid_parameter");
}

#[test]
fn both_renderings_of_the_metrics_agree() {
    let server = Server::tiny(&[]);
    let body = json!({"prompt": [[1, 2, 3], [4]], "max_tokens": 5, "ignore_eos": true, "n": 2});
    server.post("/v1/completions", &body).ok();
    let stats = server.get("/v1/stats").ok();
    let text = server.get("/metrics").body;
    let value = |name: &str| stats[name][0]["value"].as_f64();
    assert_eq!(value("arle_prompt_tokens_total"), Some(4.0));
    assert_eq!(value("arle_generation_tokens_total"), Some(20.0));
    for line in [
        "arle_prompt_tokens_total{model_name=\"tiny-chat\"} 4\n",
        "arle_generation_tokens_total{model_name=\"tiny-chat\"} 20\n",
        "arle_request_success_total{model_name=\"tiny-chat\",finished_reason=\"length\"} 4\n",
        "arle_time_to_first_token_seconds_count{model_name=\"tiny-chat\"} 4\n",
        "arle_inter_token_latency_seconds_count{model_name=\"tiny-chat\"} 16\n",
        "arle_num_sequences 0\n",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    let named = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in named {
        assert!(stats.get(name).is_some(), "{name} is only in /metrics");
    }
}

#[test]
fn metrics_have_the_names_of_vllm() {
    let server = Server::tiny(&["--metric-names", "vllm"]);
    server.post("/v1/completions", &json!({"prompt": [1, 2, 3], "max_tokens": 5, "ignore_eos": true})).ok();
    let text = server.get("/metrics").body;
    for line in [
        "# TYPE vllm:num_requests_running gauge\n",
        "vllm:prompt_tokens_total{model_name=\"tiny-chat\"} 3\n",
        "vllm:generation_tokens_total{model_name=\"tiny-chat\"} 5\n",
        "vllm:request_success_total{model_name=\"tiny-chat\",finished_reason=\"length\"} 1\n",
        "vllm:time_to_first_token_seconds_count{model_name=\"tiny-chat\"} 1\n",
        "arle_weights_version{model_name=\"tiny-chat\"} 0\n",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!text.contains("arle_prompt_tokens_total"));
}

#[test]
fn an_answer_without_a_length_has_one() {
    let server = Server::tiny(&["--default-max-tokens", "6"]);
    let ask = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": true});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post("/v1/chat/completions", &body).ok()["usage"]["completion_tokens"].clone()
    };
    assert_eq!((ask(json!({})), ask(json!({"max_tokens": 9}))), (json!(6), json!(9)));
}

/// The adapter's numbers are PEFT's, the base's are transformers'.
#[test]
fn a_name_selects_the_adapter() {
    let adapter = format!("tuned={}", fixture("adapters/llama-all-linear"));
    let base = "models/llama-gqa-tied";
    let server = Server::start(&fixture(base), &["--adapter", &adapter, "--served-model-name", "base"]);
    for (name, folder) in [("base", base), ("tuned", "adapters/llama-all-linear")] {
        let expected = read_json(&fixtures().join(folder).join("expected.json"));
        let score = server.post("/v1/score", &json!({"model": name, "input": expected["tokens"]})).ok();
        for (got, want) in
            score["data"].as_array().expect("scores").iter().zip(expected["logprobs"].as_array().expect("lists"))
        {
            let pairs = got["logprobs"].as_array().expect("a list").iter().zip(want.as_array().expect("a list"));
            for (got, want) in pairs.skip(1) {
                let (got, want) = (got.as_f64().expect("a number"), want.as_f64().expect("a number"));
                assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "{name}: {got}, expected {want}");
            }
        }
        let greedy: Vec<Vec<u32>> = serde_json::from_value(expected["greedy"].clone()).expect("ids");
        let body = json!({
            "model": name, "prompt": expected["tokens"], "max_tokens": greedy[0].len(), "temperature": 0,
            "ignore_eos": true, "return_token_ids": true,
        });
        let answer = server.post("/v1/completions", &body).ok();
        for (choice, greedy) in answer["choices"].as_array().expect("choices").iter().zip(&greedy) {
            assert_eq!(choice["token_ids"], json!(greedy), "{name}");
        }
    }
}

#[test]
fn adapters_come_and_go() {
    let server =
        Server::start(&fixture("models/llama-gqa-tied"), &["--max-adapters", "1", "--served-model-name", "base"]);
    let folder = fixture("adapters/llama-all-linear");
    let load = |name: &str, folder: &str| {
        server.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": folder}))
    };
    load("tuned", "/nowhere").refused(400, Some("lora_path"), "invalid_parameter");
    load("base", &folder).refused(400, Some("lora_name"), "invalid_parameter");
    let score = |name: &str| server.post("/v1/score", &json!({"model": name, "input": [1, 2, 3]}));
    score("tuned").refused(404, Some("model"), "model_not_found");
    load("tuned", &folder).ok();
    assert_ne!(score("tuned").ok()["data"][0]["logprobs"], score("base").ok()["data"][0]["logprobs"]);
    assert_eq!(server.get("/v1/models").ok()["data"][1]["id"], "tuned");
    load("other", &folder).refused(400, Some("lora_name"), "invalid_parameter");
    let unload = |name: &str| server.post("/v1/unload_lora_adapter", &json!({"lora_name": name}));
    unload("base").refused(404, Some("lora_name"), "model_not_found");
    unload("tuned").ok();
    score("tuned").refused(404, Some("model"), "model_not_found");
    load("other", &folder).ok();
}

#[test]
fn embeddings_are_unit_vectors_in_two_encodings() {
    let server = Server::tiny(&[]);
    let ask = |more: Value| {
        let mut body = json!({"input": ["the sea", "a fish"]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post("/v1/embeddings", &body).ok()["data"].clone()
    };
    let vector = |value: &Value| -> Vec<f32> { serde_json::from_value(value["embedding"].clone()).expect("numbers") };
    let floats = ask(json!({}));
    for (place, one) in floats.as_array().expect("vectors").iter().enumerate() {
        let values = vector(one);
        assert_eq!((one["index"].as_u64(), values.len()), (Some(place as u64), 32));
        assert!((values.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_ne!(vector(&floats[0]), vector(&floats[1]));
    assert_ne!(vector(&ask(json!({"pooling": "mean"}))[0]), vector(&floats[0]));
    assert_eq!(vector(&ask(json!({"dimensions": 3}))[0]).len(), 3);
    // 32 numbers of 4 bytes are 128 bytes, hence 172 characters.
    let text = ask(json!({"encoding_format": "base64"}))[0]["embedding"].as_str().expect("text").to_owned();
    assert_eq!(text.len(), 172);
    server.post("/v1/embeddings", &json!({"input": "a", "dimensions": 33})).refused(
        400,
        Some("dimensions"),
        "invalid_parameter",
    );
}

#[test]
fn a_chat_template_can_be_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("template.jinja");
    std::fs::write(&file, "{% for m in messages %}[{{ m.content }}]{% endfor %}").expect("written");
    let server = Server::tiny(&["--chat-template", &file.display().to_string()]);
    let chat = server.post("/tokenize", &json!({"messages": [{"role": "user", "content": "Hi"}]})).ok();
    assert_eq!(chat["rendered"], "[Hi]");
}
