//! `/v1/score` and `/v1/raw_logits`: the same numbers in every form, and no more of them than were asked for.

use serde_json::{Value, json};

use super::client::{Response, Server};

const TOKENS: [u32; 6] = [5, 17, 200, 3, 42, 9];
const V: usize = 300;

fn score(server: &Server, more: &Value) -> Response {
    let mut body = json!({"input": TOKENS});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    server.post("/v1/score", &body)
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
}

fn f32s(answer: &Response) -> Vec<f32> {
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/octet-stream"));
    answer.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("whole numbers"))).collect()
}

/// ln softmax(z / t).
fn log_softmax(z: &[f32], t: f64) -> Vec<f64> {
    let sum = z.iter().map(|&v| (f64::from(v) / t).exp()).sum::<f64>().ln();
    z.iter().map(|&v| f64::from(v) / t - sum).collect()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-5
}

#[test]
fn all_forms_tell_the_same() {
    let server = Server::tiny(&[]);
    let whole = score(&server, &json!({})).ok()["data"][0].clone();
    assert_eq!((&whole["tokens"], &whole["logprobs"][0]), (&json!(TOKENS), &Value::Null));
    let rows = score(&server, &json!({"rows": "logits", "dtype": "f32"}));
    for (name, want) in
        [("x-logits-rows", "5"), ("x-logits-cols", "300"), ("x-logits-dtype", "f32"), ("x-weights-version", "0")]
    {
        assert_eq!(rows.headers[name], want, "{name}");
    }
    let z = f32s(&rows);
    for temperature in [1.0, 0.7] {
        let more = json!({"top_k": 4, "ids": [0, 299], "temperature": temperature, "positions": [1, 6]});
        let data = score(&server, &more).ok()["data"][0].clone();
        assert_eq!((&data["tokens"], &data["positions"]), (&json!(TOKENS[1..]), &json!([1, 6])));
        for (i, row) in z.chunks(V).enumerate() {
            let logs = log_softmax(row, temperature);
            let (ids, top) = (&data["top_ids"][i], numbers(&data["top_logprobs"][i]));
            let ids: Vec<usize> = serde_json::from_value(ids.clone()).expect("ids");
            let mut order: Vec<usize> = (0..V).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            assert_eq!(ids, order[..4]);
            assert!(ids.iter().zip(&top).all(|(&id, &value)| near(value, logs[id])));
            let tail = order[4..].iter().map(|&id| logs[id].exp()).sum::<f64>().ln();
            assert!(near(data["tail_logprobs"][i].as_f64().expect("a number"), tail));
            assert!(near(data["logprobs"][i].as_f64().expect("a number"), logs[TOKENS[i + 1] as usize]));
            let given = numbers(&data["id_logprobs"][i]);
            assert!(near(given[0], logs[0]) && near(given[1], logs[299]));
            if temperature == 1.0 {
                assert!(near(whole["logprobs"][i + 1].as_f64().expect("a number"), logs[TOKENS[i + 1] as usize]));
            }
        }
    }
    // bf16 is the same rounded; a part is a part; the position after the last token is one.
    let rounded = score(&server, &json!({"rows": "logits"})).bytes;
    let halves = rounded.chunks(2).map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]])));
    assert!(rounded.len() == 2 * z.len() && halves.zip(&z).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
    assert_eq!(f32s(&score(&server, &json!({"rows": "logits", "dtype": "f32", "positions": [2, 4]}))), z[V..3 * V]);
    let raw = f32s(
        &server.post("/v1/raw_logits", &json!({"input_ids": TOKENS, "positions": [0, 1, 2, 3, 4, 5], "dtype": "f32"})),
    );
    assert_eq!(raw[..5 * V], z);
    assert_eq!(f32s(&score(&server, &json!({"rows": "logits", "dtype": "f32", "positions": [6, 7]}))), raw[5 * V..]);
    let seeds = server.post("/v1/raw_logits", &json!({"input_ids": TOKENS, "positions": [0, 1, 2, 3, 4, 5]}));
    assert_eq!((seeds.headers["x-logits-rows"].as_str(), seeds.headers["x-logits-dtype"].as_str()), ("6", "bf16"));
    assert_eq!((seeds.bytes.len(), &seeds.bytes[..rounded.len()]), (6 * V * 2, &rounded[..]));
}

/// The last hidden state, after the norm, is what embeddings are made of.
#[test]
fn hidden_states_before_and_after_the_last_norm() {
    let server = Server::tiny(&[]);
    let hidden = |kind: &str| {
        let answer = score(&server, &json!({"rows": kind, "dtype": "f32", "positions": [1, 7]}));
        assert_eq!((answer.headers["x-hidden-rows"].as_str(), answer.headers["x-hidden-cols"].as_str()), ("6", "32"));
        f32s(&answer)
    };
    let (before, after) = (hidden("hidden"), hidden("hidden_normalized"));
    // The fixture's norm has weights of 1.
    for (before, after) in before.chunks(32).zip(after.chunks(32)) {
        let size = (before.iter().map(|v| f64::from(v * v)).sum::<f64>() / 32.0 + 1e-6).sqrt();
        assert!(before.iter().zip(after).all(|(b, a)| near(f64::from(*b) / size, f64::from(*a))));
    }
    let vector = numbers(&server.post("/v1/embeddings", &json!({"input": TOKENS})).ok()["data"][0]["embedding"]);
    let length = after[5 * 32..].iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    assert!(after[5 * 32..].iter().zip(&vector).all(|(a, b)| near(f64::from(*a) / length, *b)));
}

#[test]
fn sequences_of_one_request_are_as_alone() {
    let server = Server::tiny(&[]);
    let inputs = json!([TOKENS, [7], [1, 2, 3]]);
    let body = json!({"input": inputs, "positions": [[3, 6], [0, 1], [0, 3]], "top_k": 2});
    let answer = server.post("/v1/score", &body).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], 10);
    let data = &answer["data"];
    assert_eq!(data[1]["logprobs"], json!([null]));
    let alone = |input: Value, positions: Value| {
        server.post("/v1/score", &json!({"input": input, "positions": positions, "top_k": 2})).ok()["data"][0].clone()
    };
    for key in ["tokens", "logprobs", "top_ids", "top_logprobs", "tail_logprobs"] {
        assert_eq!(data[0][key], alone(json!(TOKENS), json!([3, 6]))[key], "{key}");
        assert_eq!(data[2][key], alone(json!([1, 2, 3]), json!([0, 3]))[key], "{key}");
    }
    let text = server.post("/v1/score", &json!({"input": ["the sea", "a fish"]})).ok();
    assert_eq!(text["data"].as_array().map(Vec::len), Some(2));
}

#[test]
fn what_cannot_be_answered_is_refused_by_field() {
    let server = Server::tiny(&["--max-score-bytes", "2000"]);
    for (field, value) in [
        ("positions", json!([0, 7])),
        ("positions", json!([3, 3])),
        ("positions", json!([4, 2])),
        ("positions", json!([[0, 6], [0, 6]])),
        ("positions", json!([[0, 6], [0]])),
        ("positions", json!("all")),
        ("top_k", json!(301)),
        ("top_k", json!(-1)),
        ("ids", json!([300])),
        ("temperature", json!(0)),
        ("rows", json!("attention")),
        ("input", json!([])),
        ("input", json!([1, 300])),
    ] {
        score(&server, &json!({field: value})).refused(400, Some(field), "invalid_parameter");
    }
    let rows = |more: Value| {
        let mut body = json!({"rows": "logits"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        score(&server, &body)
    };
    rows(json!({"dtype": "f16"})).refused(400, Some("dtype"), "invalid_parameter");
    rows(json!({"positions": [0, 2]})).refused(400, Some("positions"), "invalid_parameter");
    rows(json!({"input": [1]})).refused(400, Some("input"), "invalid_parameter");
    rows(json!({"top_k": 1})).refused(400, Some("top_k"), "invalid_parameter");
    score(&server, &json!({"dtype": "f32"})).refused(400, Some("dtype"), "invalid_parameter");
    score(&server, &json!({"input": vec![1; 300]})).refused(400, Some("input"), "context_length_exceeded");
    // Three rows of 300 bf16 logits are 1800 bytes.
    rows(json!({"positions": [1, 4]}));
    let message = rows(json!({"positions": [1, 5]})).refused(413, None, "payload_too_large");
    assert!(message.contains("4 rows of 600 bytes exceeds 2000 bytes (--max-score-bytes)"), "{message}");
    score(&server, &json!({"top_k": 300})).refused(413, None, "payload_too_large");
    let raw = |body: Value| server.post("/v1/raw_logits", &body);
    raw(json!({"input_ids": [1, 2], "positions": [0]})).refused(400, Some("positions"), "invalid_parameter");
    raw(json!({"input_ids": [1, 2], "positions": [1, 2]})).refused(400, Some("positions"), "invalid_parameter");
    raw(json!({"input_ids": [300]})).refused(400, Some("input_ids"), "invalid_parameter");
    raw(json!({"input_ids": []})).refused(400, Some("input_ids"), "invalid_parameter");
    raw(json!({"input_ids": vec![1; 4]})).refused(413, None, "payload_too_large");
    raw(json!({"positions": [0]})).refused(400, Some("input_ids"), "invalid_parameter");
    assert_eq!(raw(json!({"input_ids": [1, 2, 3]})).status, 200);
}
