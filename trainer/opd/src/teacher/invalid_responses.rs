//! Servers that lie: each of their answers is refused, by what is wrong with it, and at once.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};

use super::tests::{remote, scripted};
use super::*;

fn student() -> ModelFiles {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-chat");
    ModelFiles::open(Path::new(path)).expect("a fixture")
}

/// The answer of a truthful `/tokenizer_info`.
fn info(student: &ModelFiles) -> Value {
    let tokenizer = student.tokenizer().expect("it has one");
    let template = std::fs::read_to_string(student.path.join("chat_template.jinja")).ok();
    let config: Value = std::fs::read(student.path.join("tokenizer_config.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    json!({
        "fingerprint": tokenizer.fingerprint(), "vocab_size": tokenizer.vocab_size(),
        "model_vocab_size": student.config.vocab_size, "eos_token_ids": student.config.eos_token_ids,
        "chat_template": template.map_or_else(|| config["chat_template"].clone(), Value::from),
        "max_model_len": 64, "max_score_bytes": 1 << 20,
    })
}

fn response(head: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{head}connection: close\r\n\r\n{body}", body.len())
}

fn client(url: &str) -> TeacherClient {
    TeacherClient::new(&remote(url), Interrupt::default(), Progress::new(true)).expect("a client")
}

/// Asks a server that is truthful about its tokenizer, and then answers `lie`.
fn asked<T>(student: &ModelFiles, lie: String, ask: impl FnOnce(&Arle) -> Result<T>) -> Result<T> {
    let (url, server) = scripted(vec![response("", &info(student).to_string()), lie]);
    let arle = Arle::connect(client(&url), &remote(&url), student, false).expect("a truthful beginning");
    let said = ask(&arle);
    // One answer to each question: what is a lie is not asked again.
    assert_eq!(server.join().expect("it ends").len(), 2);
    said
}

fn one() -> Vec<TeacherScoreRequest> {
    vec![TeacherScoreRequest { tokens: vec![1, 2, 3, 4], positions: 1..3 }]
}

/// The truth about [`one`]: probabilities 0.6, 0.3 and a rest of 0.1.
fn truth() -> Value {
    let [a, b, rest] = [0.6f64, 0.3, 0.1].map(f64::ln);
    json!({"object": "list", "data": [{
        "index": 0, "tokens": [2, 3], "logprobs": [a, rest - 1.0],
        "top_ids": [[2, 5], [7, 4]], "top_logprobs": [[a, b], [a, b]], "tail_logprobs": [rest, rest],
    }]})
}

#[test]
fn the_truth_about_a_list_is_taken_and_every_lie_refused() {
    let student = student();
    let format = ScoreFormat::Top { k: 2, temperature: 1.0 };
    let grade = |body: &Value| {
        asked(&student, response("", &body.to_string()), |arle| {
            arle.score(&one(), format).map(|said| format!("{said:?}"))
        })
    };
    grade(&truth()).expect("the truth");
    let vocab = student.config.vocab_size;
    let lies: Vec<(&str, Value, &str)> = vec![
        ("/data/0/logprobs/0", json!(0.5), "log-probability"),
        ("/data/0/logprobs/0", json!(1e39), "log-probability"),
        ("/data/0/logprobs/0", json!(-1e39), "log-probability"),
        ("/data/0/logprobs/0", json!(null), "null"),
        ("/data/0/logprobs/0", json!("NaN"), "NaN"),
        ("/data/0/logprobs/0", json!(-0.7), "contradicts the list"),
        ("/data/0/logprobs/1", json!(-0.1), "contradicts the list"),
        ("/data/0/logprobs/1", json!(-2.0), "contradicts the list"),
        ("/data/0/logprobs", json!([-0.5]), "another number"),
        ("/data/0/logprobs", json!([-0.5, -0.5, -0.5]), "another number"),
        ("/data/0/logprobs", json!("none"), "none"),
        ("/data/0/index", json!(1), "other tokens"),
        ("/data/0/tokens", json!([3, 2]), "other tokens"),
        ("/data/0/tokens", json!([2]), "other tokens"),
        ("/data/0/top_ids/0/0", json!(vocab), "outside the vocabulary"),
        ("/data/0/top_ids/0/0", json!(-1), "-1"),
        ("/data/0/top_ids/0/0", json!(2.5), "2.5"),
        ("/data/0/top_ids/0/1", json!(2), "twice"),
        ("/data/0/top_ids/0", json!([2]), "another number"),
        ("/data/0/top_ids", json!([]), "another number"),
        ("/data/0/top_logprobs/0/1", json!(0.2), "none is"),
        ("/data/0/top_logprobs/0/1", json!(-0.1), "come first"),
        ("/data/0/top_logprobs/0/1", json!(-0.6), "add up to 1.2"),
        ("/data/0/top_logprobs/0/1", json!(-5.0), "add up to 0.7"),
        ("/data/0/top_logprobs/1", json!([-0.5, -1.2, -3.0]), "another number"),
        ("/data/0/tail_logprobs/0", json!(1.0), "none is"),
        ("/data/0/tail_logprobs/0", json!(-0.4), "add up to 1.5"),
        ("/data/0/tail_logprobs/0", json!(-9999.0), "add up to 0.9"),
        ("/data/0/tail_logprobs", json!([]), "another number"),
        ("/data", json!([]), "another number of sequences"),
        ("/data", json!([truth()["data"][0], truth()["data"][0]]), "another number of sequences"),
        ("/data", json!({}), "sequence"),
        ("/data/0", json!(7), "7"),
    ];
    for (place, lie, word) in lies {
        let mut body = truth();
        *body.pointer_mut(place).expect(place) = lie.clone();
        let error = grade(&body).expect_err(&format!("{place} = {lie}")).to_string();
        assert!(error.contains("/v1/score") && error.contains(word), "{place} = {lie}: {error}");
    }
    for text in ["", "<html>busy</html>", "[", "NaN", "null"] {
        let error = asked(&student, response("", text), |arle| arle.score(&one(), format)).expect_err(text).to_string();
        assert!(error.contains("/v1/score"), "{text}: {error}");
    }
}

#[test]
fn rows_of_logits_are_numbers_of_the_right_count() {
    let student = student();
    let vocab = student.config.vocab_size;
    let grade = |columns: usize, rows: usize, odd: Option<&str>| {
        // Two bytes of text are a number in bf16: "00" is a small one.
        let mut body = "00".repeat(rows * vocab);
        if let Some(odd) = odd {
            body.replace_range(0..2, odd);
        }
        let head = format!("x-logits-cols: {columns}\r\n");
        asked(&student, response(&head, &body), |arle| arle.score(&one(), ScoreFormat::Logits(Precision::Bf16)))
    };
    grade(vocab, 2, None).expect("the truth");
    for (columns, rows) in [(vocab, 1), (vocab - 1, 2), (0, 2)] {
        let error = grade(columns, rows, None).expect_err("refused").to_string();
        assert!(error.contains("2 rows"), "{error}");
    }
    assert!(grade(vocab, 3000, None).expect_err("too long").to_string().contains("longer than"));
    assert!(checks::logits(&[0x80, 0x7f], Precision::Bf16).is_err());
    assert!(checks::logits(&[0xc0, 0xff], Precision::Bf16).is_err());
    assert!(checks::logits(&f32::NAN.to_le_bytes(), Precision::F32).is_err());
    assert!(checks::logits(&f32::NEG_INFINITY.to_le_bytes(), Precision::F32).is_err());
    assert!(checks::logits(&f32::MIN.to_le_bytes(), Precision::F32).is_ok());
}

#[test]
fn what_a_teacher_writes_is_what_it_was_asked_for() {
    let student = student();
    let params = SamplingParams { max_tokens: 3, ..SamplingParams::default() };
    let write = |tokens: Value| {
        let body = json!({"choices": [{"text": "x", "finish_reason": "stop", "token_ids": tokens}]}).to_string();
        asked(&student, response("", &body), |arle| arle.generate(&[1, 2], &params, 7))
    };
    assert_eq!(write(json!([4, 5])).expect("the truth").tokens, [4, 5]);
    let beyond = json!([student.config.vocab_size]);
    for tokens in [json!([]), json!([1, 2, 3, 4]), beyond, json!([-1]), json!(null), json!("4 5")] {
        let error = write(tokens.clone()).err().expect("refused").to_string();
        assert!(error.contains("/v1/completions"), "{tokens}: {error}");
    }
}

#[test]
fn an_absurd_description_is_refused() {
    let student = student();
    for (key, value) in [
        ("model_vocab_size", json!(0)),
        ("model_vocab_size", json!(u64::MAX)),
        ("model_vocab_size", json!(1 << 20)),
        ("model_vocab_size", json!(-4)),
        ("vocab_size", json!(7)),
        ("eos_token_ids", json!([0, 1, 2, 3, 4])),
        ("eos_token_ids", json!("</s>")),
        ("fingerprint", json!(7)),
        ("max_model_len", json!("long")),
        ("max_score_bytes", json!(-1)),
    ] {
        let mut body = info(&student);
        body[key] = value.clone();
        let (url, _server) = scripted(vec![response("", &body.to_string())]);
        assert!(Arle::connect(client(&url), &remote(&url), &student, false).is_err(), "{key} = {value}");
    }
}

#[test]
fn an_echo_is_of_the_prompt_and_has_log_probabilities() {
    let ask = TeacherScoreRequest { tokens: vec![1, 2, 3, 4], positions: 1..3 };
    let said = |logprobs: Value, tokens: usize| {
        let tokens = vec!["t"; tokens];
        let body = json!({"choices": [{"logprobs": {"tokens": tokens, "token_logprobs": logprobs}}]}).to_string();
        let (url, server) = scripted(vec![response("", &body)]);
        let said = OpenAi::served(client(&url), "m").score(&ask);
        assert_eq!(server.join().expect("it ends").len(), 1);
        said
    };
    said(json!([null, -1.0, -2.0]), 3).expect("the truth");
    said(json!([null, -1.0, -2.0, -0.1]), 4).expect("with a token more");
    for (logprobs, tokens) in [
        (json!([null, 1.0, -2.0]), 3),
        (json!([null, -1.0, 1e300]), 3),
        (json!([null, null, -2.0]), 3),
        (json!([null, -1.0]), 2),
        (json!([null, -1.0, -2.0]), 2),
        (json!([null, -1.0, -2.0, -0.1, -0.2]), 5),
        (json!([]), 0),
        (json!({"a": 1}), 3),
        (json!(["0", "1", "2"]), 3),
    ] {
        assert!(said(logprobs.clone(), tokens).is_err(), "{logprobs}");
    }
}

/// An answer without an end takes no more memory than one that is as long as it may be, and is not asked for again.
#[test]
fn an_endless_answer_is_cut_off() {
    for head in ["", "content-length: 99999999999999\r\n", "transfer-encoding: chunked\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let flood = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            // The whole request may not have come; its head is enough.
            let _some = stream.read(&mut [0; 4096]).expect("a request");
            write!(stream, "HTTP/1.1 200 OK\r\n{head}connection: close\r\n\r\n").expect("a client");
            let chunk = if head.starts_with("transfer") {
                "2000\r\n".to_owned() + &"[".repeat(8192) + "\r\n"
            } else {
                "[".repeat(8192)
            };
            let mut sent = 0;
            while stream.write_all(chunk.as_bytes()).is_ok() {
                sent += 8192;
            }
            sent
        });
        let error = client(&url).post("/v1/score", &json!({}), 100_000).expect_err("refused").to_string();
        assert!(error.contains("longer than 100000 bytes"), "{error}");
        let sent = flood.join().expect("it ends with its client");
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
}
