//! `arle bench`, and models of random weights.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::arle;

/// A folder with the shape of a small student and that of a wider teacher.
fn shapes() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, hidden) in [("student.json", 64), ("teacher.json", 96)] {
        let config = json!({
            "model_type": "qwen3", "vocab_size": 128, "hidden_size": hidden, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
            "eos_token_id": 2,
        });
        fs::write(folder.path().join(name), config.to_string()).expect("written");
    }
    folder
}

fn random(folder: &TempDir, name: &str) -> String {
    format!("random:{}", folder.path().join(name).display())
}

/// One JSON object of `arle bench --device cpu --json` on the student.
fn bench(folder: &TempDir, args: &[&str]) -> Value {
    let model = random(folder, "student.json");
    arle(&[&["bench", "--model", &model, "--device", "cpu", "--json"], args].concat()).object()
}

/// Numbers of that name are there and above zero.
#[track_caller]
fn assert_positive(report: &Value, names: &[&str]) {
    for name in names {
        assert!(report[name].as_f64().is_some_and(|value| value > 0.0), "{name} in {report}");
    }
}

#[test]
fn random_weights_answer_like_any_other() {
    let folder = shapes();
    let model = random(&folder, "student.json");
    let args = ["generate", "--model", &model, "--device", "cpu", "--tokens", "5,6,7", "--max-tokens", "4", "--json"];
    let first = arle(&args).object();
    assert_eq!(first["tokens"].as_array().map(Vec::len), Some(4), "{first}");
    assert_eq!(first["tokens"], arle(&args).object()["tokens"]);
    let score = arle(&["score", "--model", &model, "--device", "cpu", "--tokens", "5,6,7", "--json"]).object();
    assert_eq!(score["logprobs"].as_array().map(Vec::len), Some(3), "{score}");
    arle(&["generate", "--model", &model, "--device", "cpu", "--prompt", "text"]).refused(1, &["tokenizer"]);
    arle(&["bench", "--model", "random:no/such.json"]).refused(1, &["random:no/such.json", "config.json"]);
}

#[test]
fn speed_is_measured_for_every_number_of_sequences() {
    let folder = shapes();
    let report = bench(&folder, &["--prompt-len", "20", "--new", "4", "--sequences", "1,3"]);
    assert_positive(&report, &["prefill", "decode_1", "decode_3", "seconds_1", "seconds_3", "peak_memory_bytes"]);
}

#[test]
fn requests_are_completed_to_their_lengths() {
    let folder = shapes();
    let path = folder.path().join("requests.json");
    let file = path.display().to_string();
    let write = |value: Value| fs::write(&path, value.to_string()).expect("written");
    write(json!([{"prompt": [3, 4, 5], "max_tokens": 9}, {"prompt": vec![7; 40], "max_tokens": 5}]));
    let report = bench(&folder, &["--requests", &file, "--temperature", "0.6"]);
    assert_eq!([&report["requests"], &report["prompt_tokens"], &report["output_tokens"]], [2, 43, 14]);
    assert_positive(&report, &["seconds", "output_tokens_per_s"]);

    let model = random(&folder, "student.json");
    let refused = |code, words: &[&str]| {
        arle(&["bench", "--model", &model, "--device", "cpu", "--requests", &file]).refused(code, words);
    };
    write(json!([]));
    refused(1, &["requests.json", "no request"]);
    write(json!([{"prompt": [1], "max_tokens": 1, "n": 2}]));
    refused(1, &["requests.json", "`n`"]);
    write(json!([{"prompt": [1], "max_tokens": 1}, {"prompt": [128], "max_tokens": 1}]));
    refused(1, &["request 1", "128", "vocabulary"]);
    write(json!([{"prompt": [1], "max_tokens": 0}]));
    refused(1, &["request 0", "max_tokens 0"]);
    write(json!([{"prompt": [1], "max_tokens": 256}]));
    refused(1, &["257 tokens", "256"]);
}

#[test]
fn a_distillation_step_is_measured_by_phase() {
    let folder = shapes();
    let teacher = random(&folder, "teacher.json");
    let step = ["--opd", "--teacher", &teacher, "--prompts", "3", "--prompt-len", "8", "--new", "6", "--steps", "2"];
    for more in [&[][..], &["--full"], &["--set", "loss.kind=forward_kl", "--warmup", "0"]] {
        let report = bench(&folder, &[&step, more].concat());
        assert_positive(&report, &["step", "rollout", "teacher", "forward", "backward", "optimizer", "loss"]);
        assert_eq!([&report["generated_tokens"], &report["sequence_tokens"]], [18.0, 42.0], "{report}");
        assert_eq!(report["steps"].as_array().map(Vec::len), Some(2));
        assert_eq!(report["skipped_steps"], 0.0);
        assert!(report["mismatch_max"].as_f64().is_some_and(|difference| difference < 1e-4), "{report}");
        let phases = ["rollout", "teacher", "forward", "backward", "optimizer"].map(|name| report[name].as_f64());
        let known: f64 = phases.into_iter().flatten().sum();
        assert!(known <= 1.5 * report["step"].as_f64().unwrap_or(0.0), "{report}");
    }
}

#[test]
fn settings_without_effect_are_refused() {
    let folder = shapes();
    let (model, teacher) = (random(&folder, "student.json"), random(&folder, "teacher.json"));
    let opd = ["bench", "--model", &model, "--device", "cpu", "--opd", "--teacher", &teacher];
    let refused = |more: &[&str], words: &[&str]| arle(&[&opd, more].concat()).refused(2, words);
    refused(&["--set", "teacher.model=x"], &["--set teacher.model", "no effect"]);
    refused(&["--set", "rollout.group_sise=2"], &["unknown key `rollout.group_sise`", "`rollout.group_size`"]);
    refused(&["--set", "rollot.group_size=2"], &["unknown key `rollot`"]);
    refused(&["--set", "teacher.modle=x"], &["unknown key `teacher.modle`", "`teacher.model`"]);
    refused(&["--set", "runtime.device=reference"], &["--set runtime.device", "--device"]);
    refused(&["--set", "runtime.kv_bytes=8MiB"], &["--set runtime.kv_bytes", "--kv-bytes"]);
    refused(&["--full", "--set", "lora.r=4"], &["--set lora.r", "--full"]);
    refused(&["--set", "loss.kind=x"], &["loss.kind", "reverse_kl"]);
    refused(&["--steps", "0"], &["--steps", "at least 1"]);
    for args in [&["--opd"][..], &["--teacher", "x"], &["--full"], &["--steps", "3"]] {
        let ended = arle(&[&["bench", "--model", &model], args].concat());
        assert_eq!(ended.code, Some(2), "{ended:#?}");
    }
    let ended = arle(&[&opd[..], &["--sequences", "2"]].concat());
    assert_eq!(ended.code, Some(2), "{ended:#?}");
}
