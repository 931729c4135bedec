//! Models of one tokenizer whose heads have another number of rows, and other ends of text.

use std::fs;

use serde_json::{Map, Value, json};

use crate::serve::client::Server;
use crate::support::{Model, Workshop, arle, fixture, read_json};

/// Values of a row of the embedding, which is the head as well.
const HIDDEN: usize = 32;

/// `tiny-chat` with `rows` more rows of its embedding, which would win every softmax.
fn padded(rows: usize) -> Model {
    let model = Model::copy("tiny-chat");
    model.set("config.json", "vocab_size", json!(300 + rows));
    model.edit_weights("model.safetensors", |header, data| {
        let embedding = header["model.embed_tokens.weight"]["data_offsets"].as_array().expect("two offsets");
        let end = embedding[1].as_u64().expect("an offset") as usize;
        let more: Vec<u8> =
            (0..rows * HIDDEN).flat_map(|i| (if i % 2 == 0 { 3.0_f32 } else { -3.0 }).to_le_bytes()).collect();
        let tail = data.split_off(end);
        data.extend(&more);
        data.extend(tail);
        for (name, entry) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
            let moved =
                |at: usize, by: usize| json!(entry["data_offsets"][at].as_u64().expect("an offset") as usize + by);
            let own = name == "model.embed_tokens.weight";
            let first = entry["data_offsets"][0].as_u64().expect("an offset") as usize;
            let by = if first >= end { more.len() } else { 0 };
            let offsets = json!([moved(0, by), moved(1, if own { more.len() } else { by })]);
            entry["data_offsets"] = offsets;
            if own {
                entry["shape"] = json!([300 + rows, HIDDEN]);
            }
        }
    });
    model
}

const KINDS: [&[&str]; 5] = [
    &["loss.kind=reverse_kl"],
    &["loss.kind=forward_kl"],
    &["loss.kind=top_k", "loss.top_k=5"],
    &["loss.kind=policy_gradient"],
    &["loss.kind=jsd", "loss.lmbda=0.5", "loss.seq_kd=true"],
];

/// The same numbers up to the order in which they were added.
#[track_caller]
fn assert_same(got: &[Map<String, Value>], want: &[Map<String, Value>], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!(got.keys().eq(want.keys()), "{what}");
        for (key, want) in want {
            let (got, want) = (got[key].as_f64().expect("a number"), want.as_f64().expect("a number"));
            assert!((got - want).abs() <= 2e-5 * want.abs().max(0.1), "{what}: {key} is {got}, not {want}");
        }
    }
}

/// `--set` for each of them.
fn set<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    keys.iter().flat_map(|key| ["--set", key]).collect()
}

#[test]
fn padding_of_either_head_changes_nothing() {
    let workshop = Workshop::new();
    let (plain, wide) = (fixture("tiny-chat"), padded(20));
    workshop.replace("kind = \"self\"", "model = \"TEACHER\"");
    for (number, kind) in KINDS.iter().enumerate() {
        let mut seen = vec![];
        for (student, teacher) in [(&plain, &plain), (&plain, &wide.path()), (&wide.path(), &plain)] {
            let run = format!("run-{number}-{}", seen.len());
            let models = [format!("student.model={student}"), format!("teacher.model={teacher}")];
            let models: Vec<&str> = models.iter().map(String::as_str).collect();
            workshop.train(&run, &[set(kind), set(&models)].concat()).ok();
            seen.push(workshop.metrics(&run));
        }
        assert_same(&seen[0], &seen[1], &format!("{kind:?}, padded teacher"));
        assert_same(&seen[0], &seen[2], &format!("{kind:?}, padded student"));
    }
}

#[test]
fn padding_of_a_trained_head_keeps_its_values() {
    let workshop = Workshop::new();
    workshop.replace("[lora]\nr = 4\nalpha = 8.0\n", "");
    let (plain, wide) = (fixture("tiny-chat"), padded(20));
    workshop.replace("kind = \"self\"", "model = \"TEACHER\"");
    let teacher = format!("teacher.model={plain}");
    for (run, student) in [("plain", &plain), ("wide", &wide.path())] {
        workshop.train(run, &set(&[&teacher, &format!("student.model={student}"), "optim.lr=3e-3"])).ok();
    }
    assert_same(&workshop.metrics("wide"), &workshop.metrics("plain"), "every weight");
    let weights = fs::read(workshop.path("wide/checkpoints/latest/model.safetensors")).expect("a model");
    let padding: Vec<u8> = [3.0_f32, -3.0].repeat(HIDDEN / 2).iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(weights.windows(padding.len()).any(|window| window == padding), "no gradient reaches padding");
}

#[test]
fn a_served_teacher_with_padding_is_the_same_teacher() {
    let workshop = Workshop::new();
    let wide = padded(20);
    workshop.replace("kind = \"self\"\nsystem_prompt = \"You are a helpful assistant.\"", "TEACHER");
    let server = Server::start(&wide.path(), &[]);
    let text = fs::read_to_string(workshop.path("recipe.toml")).expect("a recipe");
    for (number, kind) in KINDS[..4].iter().enumerate() {
        let (here, there) = (format!("here-{number}"), format!("there-{number}"));
        workshop.write("recipe.toml", &text.replace("TEACHER", &format!("model = \"{}\"", wide.path())));
        workshop.train(&here, &set(kind)).ok();
        workshop.write("recipe.toml", &text.replace("TEACHER", &format!("url = \"http://{}\"", server.address)));
        // Whole rows in bf16, where the loss takes none and held-out measurements do.
        let (rows, rounding): (&[&str], f64) = if number == 3 { (&[], 1e-3) } else { (&["teacher.rows=f32"], 1e-5) };
        workshop.train(&there, &[set(kind), set(rows)].concat()).ok();
        let number = |run: &str, key: &str| workshop.metrics(run)[0][key].as_f64().expect("a number");
        for key in ["eval/kl", "eval/teacher_nll"] {
            let (here, there) = (number(&here, key), number(&there, key));
            assert!((here - there).abs() < rounding * here.abs().max(1.0), "{kind:?} {key}: {here} and {there}");
        }
    }
}

#[test]
fn a_template_that_ends_turns_with_another_token_is_named_and_can_be_set() {
    let base = Model::copy("tiny-chat");
    base.set("config.json", "eos_token_id", json!(1));
    base.set("generation_config.json", "eos_token_id", json!(1));
    let workshop = Workshop::new();
    let student = format!("student.model={}", base.path());
    let run = |run: &str, more: &[&str]| workshop.train(run, &[set(&[&student]), set(more)].concat());
    run("run", &[]).refused(1, &["\"<|end|>\"", "<|start|>", "student.eos_token"]);
    assert!(!workshop.path("run").exists());
    run("run", &["student.eos_token=<|no such|>"]).refused(2, &["student.eos_token", "<|no such|>"]);
    // Set, it is the model whose files say so.
    run("set", &["student.eos_token=<|end|>"]).ok();
    workshop.train("usual", &[]).ok();
    assert_eq!(workshop.metrics("set"), workshop.metrics("usual"));
    // What another program reads of the trained model says so as well.
    workshop.replace("[lora]\nr = 4\nalpha = 8.0\n", "");
    run("full", &["student.eos_token=<|end|>", "schedule.max_steps=1"]).ok();
    let file = |name: &str| read_json(&workshop.path("full/checkpoints/latest").join(name));
    assert_eq!(file("config.json")["eos_token_id"], json!(0));
    assert_eq!(file("tokenizer_config.json")["eos_token"], json!("<|end|>"));
    // Commands tell it and go on.
    let told = arle(&["generate", "--model", &base.path(), "--chat", "Why?", "--max-tokens", "3"]);
    assert!(told.code == Some(0) && told.stderr.contains("--eos-token \"<|end|>\""), "{told:#?}");
    let quiet =
        arle(&["generate", "--model", &base.path(), "--chat", "Why?", "--max-tokens", "3", "--eos-token", "<|end|>"]);
    assert!(quiet.code == Some(0) && !quiet.stderr.contains("eos-token"), "{quiet:#?}");
}

#[test]
fn a_teacher_that_ends_texts_differently_has_a_way_out() {
    let workshop = Workshop::new();
    let other = Model::copy("tiny-chat");
    other.set("generation_config.json", "eos_token_id", json!([0, 1]));
    workshop.replace("kind = \"self\"", &format!("model = \"{}\"", other.path()));
    workshop.train("run", &[]).refused(1, &["end-of-sequence ids differ", "<|end|>, <|start|>", "student.eos_token"]);
    workshop.train("run", &["--set", "student.eos_token=<|end|>"]).ok();
    workshop.train("both", &["--set", "student.eos_token=[\"<|end|>\", \"<|start|>\"]"]).ok();
}
