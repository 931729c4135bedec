//! Adapters that change while they are served.

use serde_json::{Value, json};

use super::client::{Server, wait_until};
use crate::support::{Workshop, fixture};

/// Two adapters on the tiny chat model that are far apart.
fn adapters(workshop: &Workshop) -> [String; 2] {
    ["first", "second"].map(|name| {
        let set = if name == "first" { "runtime.seed=1" } else { "runtime.seed=2" };
        workshop.train(name, &["--set", set, "--set", "eval.every=0", "--set", "optim.lr=5e-2"]).ok();
        workshop.name(&format!("{name}/checkpoints/latest"))
    })
}

#[test]
fn an_adapter_is_replaced_in_place() {
    let workshop = Workshop::new();
    let [first, second] = adapters(&workshop);
    let server = Server::tiny(&["--max-adapters", "1"]);
    let load = |folder: &str, in_place: bool| {
        let body = json!({"lora_name": "tuned", "lora_path": folder, "load_inplace": in_place});
        server.post("/v1/load_lora_adapter", &body)
    };
    // A prompt of several pages, so that its prefix is kept.
    let prompt: Vec<u32> = (0..50).map(|i| 20 + i * 3 % 200).collect();
    let ask = |server: &Server| {
        let body = json!({"model": "tuned", "prompt": prompt, "max_tokens": 20, "temperature": 0, "ignore_eos": true,
            "return_token_ids": true});
        server.post("/v1/completions", &body).ok()
    };
    let said = |answer: &Value| answer["choices"][0]["token_ids"].clone();
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(load(&first, true).ok(), json!({"loaded": "tuned", "weights_version": 0}));
    ask(&server);
    let before = ask(&server);
    assert!(cached(&before) >= Some(32), "{before}");
    assert_eq!(before["choices"][0]["weights_versions"], json!([0]));
    load(&second, false).refused(400, Some("lora_name"), "invalid_parameter");
    load("/nowhere", true).refused(400, Some("lora_path"), "invalid_parameter");
    load(&fixture("adapters/llama-all-linear"), true).refused(400, Some("lora_path"), "invalid_parameter");
    assert_eq!(said(&ask(&server)), said(&before), "what was refused changed nothing");

    assert_eq!(load(&second, true).ok(), json!({"loaded": "tuned", "weights_version": 1}));
    let after = ask(&server);
    // Nothing of the old weights is left: no prefix, no token.
    assert_eq!((cached(&after), &after["choices"][0]["weights_versions"]), (Some(0), &json!([1])));
    assert_eq!(after["system_fingerprint"], "tuned@1");
    assert_ne!(said(&after), said(&before));
    let fresh = Server::tiny(&["--adapter", &format!("tuned={second}")]);
    assert_eq!(said(&ask(&fresh)), said(&after));
    assert!(cached(&ask(&server)) >= Some(32), "the new weights have prefixes of their own");
    assert_eq!(server.get("/v1/models").ok()["data"].as_array().map(Vec::len), Some(2));
}

/// Requests that run go on, and every token tells whose it is.
#[test]
fn requests_in_flight_are_told_of_the_new_version() {
    let workshop = Workshop::new();
    let [first, second] = adapters(&workshop);
    let server = Server::tiny(&["--adapter", &format!("tuned={first}")]);
    let body = json!({"model": "tuned", "prompt": [5, 6], "max_tokens": 240, "ignore_eos": true, "n": 8});
    let folders = [&second, &first];
    let mut loads = 0;
    let mut ask = || {
        std::thread::scope(|scope| {
            let running = scope.spawn(|| server.post("/v1/completions", &body).ok());
            while !running.is_finished() {
                let load = json!({"lora_name": "tuned", "lora_path": folders[loads % 2], "load_inplace": true});
                server.post("/v1/load_lora_adapter", &load).ok();
                loads += 1;
            }
            running.join().expect("answered")
        })
    };
    // On a busy machine a request may be over before a load comes.
    wait_until("a load meets a running request", || several_versions(&ask()));
}

/// Whether an answer was begun with one version of the weights and ended with another; versions only rise.
fn several_versions(answer: &Value) -> bool {
    let choices = answer["choices"].as_array().expect("choices").iter();
    let versions = choices.map(|choice| -> Vec<u64> {
        let versions: Vec<u64> = serde_json::from_value(choice["weights_versions"].clone()).expect("versions");
        assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
        versions
    });
    versions.map(|versions| versions.len()).max() > Some(1)
}
