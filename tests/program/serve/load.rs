//! Full servers, clients that leave, servers that stop.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Response, Server, wait_until};

const TEXT: &str = "/v1/completions";

/// A model of random weights that takes about a second for what `long` asks.
pub(super) fn slow_model() -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "eos_token_id": 0,
    });
    let path = folder.path().join("slow.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let source = format!("random:{}", path.display());
    (folder, source)
}

pub(super) fn long(max_tokens: usize, more: &Value) -> String {
    let mut body = json!({"prompt": [1, 2, 3], "max_tokens": max_tokens, "ignore_eos": true, "return_token_ids": true});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body.to_string()
}

#[test]
fn a_full_server_says_so_and_a_client_that_leaves_makes_room() {
    let (_folder, model) = slow_model();
    let server = Server::start(&model, &["--max-running", "1", "--max-waiting", "1"]);
    let mut stream = server.open("POST", TEXT, &[], &long(8000, &json!({"n": 2, "stream": true})));
    stream.read_exact(&mut [0; 400]).expect("the stream has begun");
    let full = server.send("POST", TEXT, &[], &long(1, &json!({})));
    full.refused(429, None, "server_busy");
    assert!(full.headers["retry-after"].parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    assert_eq!(server.stat("arle_num_sequences"), 2.0);
    assert_eq!(server.stat("arle_requests_refused_total"), 1.0);
    stream.shutdown(Shutdown::Both).expect("closed");
    drop(stream);
    wait_until("empty", || server.stat("arle_num_sequences") == 0.0 && server.stat("arle_num_requests_running") == 0.0);
    assert_eq!(server.send("POST", TEXT, &[], &long(1, &json!({}))).status, 200);
    assert!(server.stat("arle_generation_tokens_total") < 8000.0, "the rest was not computed");
}

#[test]
fn a_request_whose_time_is_over_has_what_came_so_far() {
    let (_folder, model) = slow_model();
    let server = Server::start(&model, &["--request-timeout", "1", "--max-running", "2"]);
    let ask = |more: Value| server.send("POST", TEXT, &[], &long(8000, &more));
    let answer = ask(json!({"n": 2})).ok();
    for choice in answer["choices"].as_array().expect("choices") {
        assert_eq!(choice["finish_reason"], "length");
        let tokens = choice["token_ids"].as_array().map_or(0, Vec::len);
        assert!((1..8000).contains(&tokens), "{tokens}");
    }
    let chunks = ask(json!({"stream": true})).chunks();
    assert_eq!(chunks.last().expect("chunks")["choices"][0]["finish_reason"], "length");
    wait_until("cancelled", || server.stat("arle_num_requests_running") == 0.0);
    // Nothing came, so there is nothing to show.
    server.send("POST", "/pause?mode=keep", &[], "").ok();
    ask(json!({})).refused(504, None, "timeout");
}

#[test]
fn a_client_that_does_not_stream_is_missed_too() {
    let (_folder, model) = slow_model();
    let server = Server::start(&model, &[]);
    let waiting = server.open("POST", TEXT, &[], &long(8000, &json!({})));
    wait_until("running", || server.stat("arle_num_requests_running") == 1.0);
    drop(waiting);
    wait_until("cancelled", || server.stat("arle_num_requests_running") == 0.0);
    let aborted = "finished_reason=\"abort\"} 1";
    assert!(server.get("/metrics").body.contains(aborted));
}

/// Whoever leaves, whenever: pages and queue are as before.
#[test]
fn a_thousand_clients_that_leave_at_any_time() {
    let server = Server::tiny(&["--max-running", "8", "--max-waiting", "2000"]);
    let pages = |server: &Server| server.stat("arle_kv_cache_usage_perc");
    assert_eq!(pages(&server), 0.0);
    let leave = |number: u64| {
        // Any fixed sequence that looks random: a multiplication by an odd constant.
        let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let body = json!({
            "prompt": "the sea is blue", "max_tokens": 100, "ignore_eos": true,
            "n": 1 + random % 3, "stream": random.is_multiple_of(2), "seed": number,
        });
        let mut stream = server.open("POST", TEXT, &[], &body.to_string());
        std::thread::sleep(Duration::from_micros(random % 5000));
        if random.is_multiple_of(5) {
            // Some read a little first; the answer may be over already.
            let _read = stream.read(&mut [0; 64]);
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || (0..125).for_each(|i| leave(worker * 125 + i)));
        }
    });
    wait_until("empty", || server.stat("arle_num_sequences") == 0.0);
    wait_until("idle", || server.stat("arle_num_requests_running") + server.stat("arle_num_requests_waiting") == 0.0);
    assert_eq!(pages(&server), 0.0);
    let body = json!({"prompt": "the sea is blue", "max_tokens": 4, "seed": 1});
    server.post(TEXT, &body).ok();
}

/// Whether the server tells that it stops. A connection that the signal met before its request was read ends without an answer.
fn drains(server: &Server) -> bool {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(&server.address).expect("it listens while it drains");
    let asked = stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.starts_with("HTTP/1.1 503")
}

#[test]
fn a_signal_lets_running_requests_end_and_a_second_one_does_not() {
    let (_folder, model) = slow_model();
    let mut server = Server::start(&model, &[]);
    let running = server.open("POST", TEXT, &[], &long(1200, &json!({})));
    wait_until("running", || server.stat("arle_num_requests_running") == 1.0);
    server.signal("TERM");
    // Who asks a server that stops is told, as long as something runs.
    wait_until("draining", || drains(&server));
    assert_eq!(server.get("/ready").json(), json!({"status": "draining"}));
    server.send("POST", TEXT, &[], &long(1, &json!({}))).refused(503, None, "service_unavailable");
    let answer = Response::read(running).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 1200);
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));

    let mut server = Server::start(&model, &[]);
    let _running = server.open("POST", TEXT, &[], &long(8000, &json!({})));
    wait_until("running", || server.stat("arle_num_requests_running") == 1.0);
    server.signal("INT");
    wait_until("draining", || drains(&server));
    server.signal("INT");
    assert_eq!(server.child.wait().expect("it ends").code(), Some(130));
}
