//! The adapter that a run leaves is the model that the run measured.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Workshop, arle, fixture};

#[test]
fn scoring_with_the_adapter_gives_the_perplexity_that_the_run_measured() {
    let workshop = Workshop::new();
    let rslora =
        ["--set", "lora.rslora=true", "--set", "lora.rank_pattern={\"q_proj\" = 2}", "--set", "schedule.max_steps=6"];
    workshop.train("run", &rslora).ok();
    let metrics = workshop.metrics("run");
    let measured = metrics.last().and_then(|line| line["eval/perplexity"].as_f64()).expect("a measurement");

    // Held-out rows are the last two; what the teacher wrote for them is in the run's folder.
    let completions: Vec<Vec<u32>> =
        serde_json::from_slice(&fs::read(workshop.path("run/teacher_completions.json")).expect("completions"))
            .expect("lists of ids");
    let sequences: Vec<Vec<u32>> =
        [7, 8].iter().zip(&completions).map(|(i, completion)| [prompt(*i), completion.clone()].concat()).collect();
    workshop.write("tokens.json", &json!(sequences).to_string());
    let score = |adapter: &[&str]| {
        let (model, tokens) = (fixture("tiny-chat"), workshop.name("tokens.json"));
        let lines =
            arle(&[&["score", "--model", &model, "--tokens-file", &tokens, "--json"], adapter].concat()).lines();
        let of_completions = lines.iter().zip(&completions).flat_map(|(line, completion)| {
            let all = line["logprobs"].as_array().expect("a list");
            all[all.len() - completion.len()..].iter().filter_map(Value::as_f64)
        });
        let logprobs: Vec<f64> = of_completions.collect();
        (-logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp()
    };
    let with = score(&["--adapter", &workshop.name("run/checkpoints/latest")]);
    assert!((with / measured - 1.0).abs() < 1e-4, "{with} by arle score, {measured} by the run");
    let without = score(&[]);
    assert!((without / measured - 1.0).abs() > 1e-2, "the adapter changes nothing, so this test could not fail");
}

/// Token ids of a row's prompt, from the program itself: the prompt of `generate --chat` without its answer.
fn prompt(number: u32) -> Vec<u32> {
    let text = format!("<|start|>user\nWhy is number {number} blue?<|end|>\n<|start|>assistant\n");
    let score = arle(&["score", "--model", &fixture("tiny-chat"), "--text", &text, "--json"]).object();
    serde_json::from_value(score["tokens"].clone()).expect("ids")
}

#[test]
fn an_adapter_continues_to_be_trained_and_can_be_a_teacher() {
    let workshop = Workshop::new();
    workshop.train("first", &[]).ok();
    let latest = workshop.name("first/checkpoints/latest");
    let metrics = workshop.metrics("first");
    let after = metrics.last().and_then(|line| line["eval/kl"].as_f64()).expect("a measurement");
    workshop
        .train(
            "second",
            &[
                "--set",
                &format!("student.adapter={latest}"),
                "--set",
                "teacher.kind=model",
                "--set",
                &format!("teacher.model={}", fixture("tiny-chat")),
            ],
        )
        .ok();
    let start = workshop.metrics("second")[0]["eval/kl"].as_f64().expect("a measurement");
    // Both teachers are the base model with its system prompt; only their completions' random numbers are the same.
    assert!((start / after - 1.0).abs() < 1e-3, "the second run starts where the first ended: {start}, {after}");
    workshop.replace("system_prompt = \"You are a helpful assistant.\"", "");
    let same = [
        "--set",
        "teacher.kind=checkpoint",
        "--set",
        &format!("teacher.path={latest}"),
        "--set",
        &format!("student.adapter={latest}"),
    ]
    .map(str::to_owned);
    workshop.train("third", &same.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let start = workshop.metrics("third")[0]["eval/kl"].as_f64().expect("a measurement");
    assert!(start.abs() < 1e-6, "student and teacher are the same checkpoint: {start}");
}

#[test]
fn an_adapter_continues_only_with_its_own_ranks_and_scales() {
    let workshop = Workshop::new();
    workshop.train("first", &["--set", "lora.rank_pattern={\"up_proj\" = 2}"]).ok();
    let adapter = format!("student.adapter={}", workshop.name("first/checkpoints/latest"));
    let again = |set: &[&str]| {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        workshop.train("second", &[&["--set", adapter.as_str(), "--set", "schedule.max_steps=1"], &set[..]].concat())
    };
    let same = "lora.rank_pattern={\"up_proj\" = 2}";
    let first = "model.layers.0.self_attn.q_proj";
    let cases: &[(&[&str], &[&str])] = &[
        (&[same, "lora.r=8"], &[first, "rank 4", "rank 8"]),
        (&[same, "lora.alpha=16.0"], &[first, "scale 2", "scale 4"]),
        (&[same, "lora.rslora=true"], &[first, "scale 2", "scale 4"]),
        (&[], &["model.layers.0.mlp.up_proj", "rank 2", "rank 4"]),
        (&[same, "lora.target_modules=[\"q_proj\"]"], &["model.layers.0.self_attn.k_proj", "rank 4", "no branch"]),
    ];
    for (set, words) in cases {
        again(set).refused(1, words);
        again(set).refused(1, &["lora: ", "adapter to continue", "set r, alpha"]);
    }
    assert!(!workshop.path("second").exists(), "a refused run leaves nothing behind");
    workshop.replace("[lora]\nr = 4\nalpha = 8.0\n", "");
    again(&[]).refused(1, &["full fine-tune", "adapter"]);
    workshop.replace("[data]", "[lora]\nr = 4\nalpha = 8.0\n[data]");
    again(&[same]).ok();
}
