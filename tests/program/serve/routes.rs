//! Models, tokenizer, metrics.

use serde_json::{Value, json};

use super::client::Server;
use crate::support::fixture;

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
    assert_eq!(tokens["token_strs"][0], "W");
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
