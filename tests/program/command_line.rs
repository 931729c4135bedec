//! `arle score` and `arle generate`: the shape and the values of what they print, and what they refuse.

use serde_json::{Value, json};

use crate::support::{arle, fixture, fixtures, read_json};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// Both lists are equal to 1e-4 relative, with `null` in the same places.
#[track_caller]
pub(crate) fn assert_close(got: &Value, want: &Value) {
    let (got, want) = (got.as_array().expect("a list"), want.as_array().expect("a list"));
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        match (got.as_f64(), want.as_f64()) {
            (Some(g), Some(w)) => assert!((g - w).abs() <= 1e-4 * w.abs().max(1.0), "position {i}: {g} instead of {w}"),
            _ => assert!(got.is_null() && want.is_null(), "position {i}: {got} instead of {want}"),
        }
    }
}

fn perplexity(logprobs: &Value) -> f64 {
    let known: Vec<f64> = logprobs.as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
    (-known.iter().sum::<f64>() / known.len() as f64).exp()
}

/// Scores and continues every sequence of `expected.json` and compares with transformers' answers.
fn assert_answers(model: &str, adapter: Option<&str>, expected: &Value) {
    let adapter: Vec<&str> = adapter.iter().flat_map(|folder| ["--adapter", folder]).collect();
    let sequences = expected["tokens"].as_array().expect("sequences");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens.json");
    std::fs::write(&file, expected["tokens"].to_string()).expect("written");
    let file = file.display().to_string();
    let scores = arle(&[&["score", "--model", model, "--tokens-file", &file, "--json"], &adapter[..]].concat()).lines();
    assert_eq!(scores.len(), sequences.len());
    for (i, (score, tokens)) in scores.iter().zip(sequences).enumerate() {
        assert_eq!(keys(score), ["tokens", "logprobs", "perplexity"]);
        assert_eq!(&score["tokens"], tokens);
        assert_close(&score["logprobs"], &expected["logprobs"][i]);
        let (got, want) = (score["perplexity"].as_f64().expect("a number"), perplexity(&expected["logprobs"][i]));
        assert!((got / want - 1.0).abs() < 1e-4, "{got} instead of {want}");
    }
    let tokens = sequences[0].to_string();
    let greedy =
        ["generate", "--model", model, "--tokens", &tokens, "--temperature", "0", "--max-tokens", "12", "--json"];
    let generated = arle(&[&greedy, &adapter[..]].concat()).object();
    assert_eq!(generated["tokens"], expected["greedy"][0]);
}

#[test]
fn scores_and_greedy_tokens_equal_transformers() {
    for name in ["llama-gqa-tied", "llama-mha-untied-bf16", "llama-sharded", "qwen2-gqa", "qwen3-gqa-tied"] {
        let model = format!("models/{name}");
        let expected = read_json(&fixtures().join(&model).join("expected.json"));
        assert_answers(&fixture(&model), None, &expected);
    }
}

#[test]
fn scores_with_an_adapter_equal_pefts() {
    for name in ["llama-all-linear", "qwen3-patterns-rslora"] {
        let adapter = fixtures().join("adapters").join(name);
        let expected = read_json(&adapter.join("expected.json"));
        let model = format!("models/{}", expected["base"].as_str().expect("a name"));
        assert_answers(&fixture(&model), Some(&adapter.display().to_string()), &expected);
        let plain =
            arle(&["score", "--model", &fixture(&model), "--tokens", &expected["tokens"][0].to_string(), "--json"]);
        let difference = plain.object()["logprobs"][1].as_f64().expect("a number")
            - expected["logprobs"][0][1].as_f64().expect("a number");
        assert!(difference.abs() > 1e-3, "the adapter changes nothing, so this test could not fail");
    }
}

#[test]
fn token_ids_are_read_from_lists_of_both_kinds_and_from_files() {
    let (model, folder) = (fixture("models/llama-gqa-tied"), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("ids.txt");
    std::fs::write(&file, "55 18\n26\n").expect("written");
    let score = |flag: &str, value: &str| arle(&["score", "--model", &model, flag, value, "--json"]).ok();
    let want = score("--tokens", "55,18,26");
    assert_eq!(score("--tokens", "[55, 18, 26]"), want);
    assert_eq!(score("--tokens-file", &file.display().to_string()), want);
    assert_eq!(score("--tokens", "[[55, 18, 26]]"), want);
}

#[test]
fn top_lists_the_most_likely_tokens_of_every_position() {
    let model = fixture("models/llama-gqa-tied");
    let score = arle(&["score", "--model", &model, "--tokens", "55,18,26", "--top", "96", "--json"]).object();
    assert_eq!(keys(&score), ["tokens", "logprobs", "top", "perplexity"]);
    let top = score["top"].as_array().expect("a list");
    assert_eq!(top.len(), 3);
    assert_eq!(top[0], json!([]));
    for position in [1, 2] {
        let pairs: Vec<(u64, f64)> =
            serde_json::from_value(top[position].clone()).expect("pairs of id and log-probability");
        assert_eq!(pairs.len(), 96);
        assert!(pairs.windows(2).all(|pair| pair[0].1 >= pair[1].1), "falling");
        let mass: f64 = pairs.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((mass - 1.0).abs() < 1e-5, "{mass}");
        let own =
            pairs.iter().find(|(id, _)| Some(*id) == score["tokens"][position].as_u64()).expect("every id is there");
        assert_eq!(Some(own.1), score["logprobs"][position].as_f64());
    }
}

#[test]
fn one_token_has_no_perplexity() {
    let score = arle(&["score", "--model", &fixture("models/llama-gqa-tied"), "--tokens", "5", "--json"]).object();
    assert_eq!(score, json!({ "tokens": [5], "logprobs": [null], "perplexity": null }));
}

#[test]
fn text_is_scored_as_its_tokens_are() {
    let model = fixture("tiny-chat");
    let by_text = arle(&["score", "--model", &model, "--text", "Why is the sky blue?", "--json"]).object();
    let by_ids = arle(&["score", "--model", &model, "--tokens", &by_text["tokens"].to_string(), "--json"]).object();
    assert_eq!(by_text, by_ids);
    let readable = arle(&["score", "--model", &model, "--text", "Why is the sky blue?"]).ok();
    assert!(readable.lines().last().is_some_and(|line| line.starts_with("perplexity ")), "{readable}");
    assert_eq!(readable.lines().count(), 1 + by_ids["tokens"].as_array().expect("a list").len());
}

#[test]
fn generate_prints_what_it_drew() {
    let model = fixture("tiny-chat");
    let args =
        ["generate", "--model", &model, "--chat", "Why?", "--max-tokens", "6", "--seed", "3", "--ignore-eos", "--json"];
    let generated = arle(&args).object();
    assert_eq!(keys(&generated), ["tokens", "text", "logprobs", "finish_reason", "usage"]);
    assert_eq!(generated["tokens"].as_array().map(Vec::len), Some(6));
    assert_eq!(generated["logprobs"].as_array().map(Vec::len), Some(6));
    assert_eq!(generated["finish_reason"], "length");
    let usage = &generated["usage"];
    assert_eq!(keys(usage), ["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"]);
    assert_eq!(usage["completion_tokens"], 6);
    assert_eq!(usage["total_tokens"].as_u64(), usage["prompt_tokens"].as_u64().map(|prompt| prompt + 6));
    assert_eq!(arle(&args).object(), generated, "equal seeds give equal tokens");
}

#[test]
fn completions_differ_by_seed_and_by_number() {
    let model = fixture("tiny-chat");
    let args = |seed| {
        ["generate", "--model", &model, "--prompt", "Why", "--max-tokens", "8", "--n", "3", "--json", "--seed", seed]
            .map(str::to_owned)
    };
    let tokens = |seed| {
        let args = args(seed);
        let lines = arle(&args.iter().map(String::as_str).collect::<Vec<_>>()).lines();
        lines.iter().map(|line| line["tokens"].to_string()).collect::<Vec<_>>()
    };
    let (first, second) = (tokens("1"), tokens("2"));
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    assert_ne!(first, second);
}

#[test]
fn the_sampled_log_probability_is_the_scored_one() {
    let model = fixture("tiny-chat");
    let generated = arle(&[
        "generate",
        "--model",
        &model,
        "--tokens",
        "60,70,80",
        "--temperature",
        "1",
        "--max-tokens",
        "5",
        "--json",
    ])
    .object();
    let whole: Vec<u64> = [60, 70, 80]
        .into_iter()
        .chain(generated["tokens"].as_array().expect("a list").iter().filter_map(Value::as_u64))
        .collect();
    let score = arle(&["score", "--model", &model, "--tokens", &json!(whole).to_string(), "--json"]).object();
    let scored = Value::Array(score["logprobs"].as_array().expect("a list")[3..].to_vec());
    assert_close(&generated["logprobs"], &scored);
}

#[test]
fn a_stop_text_and_a_stop_id_end_the_completion() {
    let model = fixture("tiny-chat");
    let args =
        ["generate", "--model", &model, "--tokens", "60,70,80", "--temperature", "0", "--max-tokens", "8", "--json"];
    let free = arle(&args).object();
    let third_id = &free["tokens"][2];
    let third = third_id.to_string();
    let first_at =
        free["tokens"].as_array().expect("a list").iter().position(|id| id == third_id).expect("it is there");
    let stopped = arle(&[&args[..], &["--stop-token-ids", &third]].concat()).object();
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(stopped["tokens"].as_array().expect("a list").len() <= first_at + 1, "{stopped}");
}

#[test]
fn heads_narrower_than_a_page_get_enough_memory() {
    // Heads of width 4: pages are padded, so they take more bytes than keys and values alone.
    let model = fixture("gguf/formats.gguf");
    let score = arle(&["score", "--model", &model, "--tokens", "1,2,3", "--json"]).object();
    assert_eq!(score["logprobs"].as_array().map(Vec::len), Some(3));
    let greedy = [
        "generate",
        "--model",
        &model,
        "--tokens",
        "1,2,3",
        "--max-tokens",
        "40",
        "--temperature",
        "0",
        "--n",
        "2",
        "--ignore-eos",
        "--json",
    ];
    let lines = arle(&greedy).lines();
    assert_eq!(lines[0]["tokens"].as_array().map(Vec::len), Some(40));
    assert_eq!(lines[0]["tokens"], lines[1]["tokens"]);
}
