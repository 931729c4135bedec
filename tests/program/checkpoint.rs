//! A full fine-tune's checkpoint carries what its source has, in the type that its source has.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Model, Workshop, arle, read_json};

const LORA: &str = "[lora]\nr = 4\nalpha = 8.0\n";
/// Files that no part of ARLE needs, and keys that it does not use.
const TEMPLATE: &str = "additional_chat_templates/rag.jinja";

/// A model with everything that a folder may have beside its weights.
fn source() -> Model {
    let model = Model::copy("tiny-chat");
    fs::create_dir(model.file("additional_chat_templates")).expect("made");
    fs::write(model.file(TEMPLATE), "{{ documents }}").expect("written");
    fs::write(model.file("special_tokens_map.json"), r#"{"pad_token": "<|end|>"}"#).expect("written");
    model.set("generation_config.json", "pad_token_id", json!(0));
    model.set("generation_config.json", "max_new_tokens", json!(77));
    model.set("config.json", "dtype", json!("bfloat16"));
    model
}

/// Names and types of the tensors in a safetensors file.
fn dtypes(path: &std::path::Path) -> Vec<String> {
    let bytes = fs::read(path).expect("a file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let tensors = header.as_object().expect("an object").values();
    tensors.filter_map(|tensor| tensor["dtype"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_full_fine_tune_keeps_files_keys_and_type_and_resumes_bit_for_bit() {
    let (workshop, model) = (Workshop::new(), source());
    workshop.replace(LORA, "");
    let student = format!("student.model={}", model.path());
    let run = |name: &str, more: &[&str]| workshop.train(name, &[&["--set", student.as_str()], more].concat()).ok();
    run("whole", &[]);
    let latest = workshop.path("whole/checkpoints/latest");
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", TEMPLATE]
    {
        assert_eq!(fs::read(latest.join(name)).expect(name), fs::read(model.file(name)).expect(name), "{name}");
    }
    assert_eq!(read_json(&latest.join("generation_config.json")), read_json(&model.file("generation_config.json")));
    assert_eq!(read_json(&latest.join("config.json")), read_json(&model.file("config.json")));
    assert!(dtypes(&latest.join("model.safetensors")).iter().all(|dtype| dtype == "BF16"));
    assert!(dtypes(&latest.join("master_weights.safetensors")).iter().all(|dtype| dtype == "F32"));
    let score = ["score", "--model", &latest.display().to_string(), "--tokens", "5,6,7", "--json"];
    assert!(arle(&score).object()["logprobs"][2].as_f64().is_some(), "the checkpoint is a model");

    run("parts", &["--set", "schedule.max_seconds=1e-6"]);
    run("parts", &["--resume", "--set", "schedule.max_seconds=1e6"]);
    let weights =
        |run: &str| fs::read(workshop.path(run).join("checkpoints/latest/master_weights.safetensors")).expect("a file");
    assert!(weights("whole") == weights("parts"), "a run goes on from the weights in f32");
}

#[test]
fn the_type_of_saved_weights_is_a_key() {
    let workshop = Workshop::new();
    let with_lora = workshop.train("run", &["--set", "checkpoint.dtype=bfloat16"]);
    with_lora.refused(2, &["checkpoint.dtype", "[lora]"]);
    workshop.replace(LORA, "");
    workshop.train("run", &["--set", "checkpoint.dtype=int4"]).refused(2, &["int4", "bfloat16"]);
    workshop.train("run", &["--set", "checkpoint.dtype=f16", "--set", "schedule.max_steps=1"]).ok();
    let latest = workshop.path("run/checkpoints/latest");
    assert!(dtypes(&latest.join("model.safetensors")).iter().all(|dtype| dtype == "F16"));
}
