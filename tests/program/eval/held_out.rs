//! The distance to a teacher: the numbers of a training run, of any model.

use serde_json::Value;

use crate::support::{Workshop, arle, fixture, read_json};

/// The workshop's held-out rows in a file of their own.
fn prompts(workshop: &Workshop) -> String {
    let rows = std::fs::read_to_string(workshop.path("rows.jsonl")).expect("rows");
    let rows: String = rows.lines().skip(6).map(|row| format!("{row}\n")).collect();
    workshop.write("held_out.jsonl", &rows);
    workshop.name("held_out.jsonl")
}

#[test]
fn a_checkpoint_has_the_numbers_of_its_run() {
    let workshop = Workshop::new();
    workshop.train("run", &[]).ok();
    let (model, prompts, out) = (fixture("tiny-chat"), prompts(&workshop), workshop.name("out"));
    let adapter = workshop.name("run/checkpoints/latest");
    let measure = |more: &[&str]| {
        let args = ["eval", "--model", &model, "--teacher", &model, "--prompts", &prompts, "--max-gen-toks", "8"];
        let rest = ["--sampling-seed", "0", "--set", "teacher.system_prompt=You are a helpful assistant.", "--json"];
        serde_json::from_str::<Value>(&arle(&[&args[..], &rest, more].concat()).ok()).expect("results")
    };
    let runs = workshop.metrics("run");
    for (step, more) in [(0, vec!["--out", &out]), (4, vec!["--adapter", &adapter])] {
        let results = measure(&more);
        let found = results["results"]["held_out"].as_object().expect("results");
        assert_eq!(found["sample_len"], 2);
        let run = runs[step].iter().filter_map(|(name, value)| Some((name.strip_prefix("eval/")?, value)));
        let mut compared = 0;
        for (name, value) in run {
            assert_eq!(&found[&format!("{name},none")], value, "{name} of step {step}");
            compared += 1;
        }
        assert_eq!(compared, 11);
    }
    assert_ne!(runs[0]["eval/kl"], runs[4]["eval/kl"], "the run has learned");
    assert_eq!(read_json(&workshop.path("out/results.json"))["config"]["sampling_seed"], 0);
    let greedy = measure(&["--temperature", "0"]);
    assert_ne!(greedy["results"]["held_out"]["kl,none"], runs[0]["eval/kl"], "the temperature counts");
}

#[test]
fn what_has_no_effect_on_a_distance_is_refused() {
    let workshop = Workshop::new();
    let (model, prompts) = (fixture("tiny-chat"), prompts(&workshop));
    let refused = |more: &[&str], code: i32, words: &[&str]| {
        arle(&[&["eval", "--model", &model], more].concat()).refused(code, words);
    };
    refused(&["--teacher", &model], 2, &["--prompts"]);
    let asked = ["--teacher", &model, "--prompts", &prompts];
    let with = |more: &[&'static str]| [&asked[..], more].concat();
    refused(&with(&["--tasks", "arc_easy"]), 2, &["--tasks"]);
    refused(&with(&["--num-fewshot", "2"]), 2, &["--num-fewshot"]);
    refused(&with(&["--set", "optim.lr=1"]), 2, &["optim.lr", "teacher."]);
    refused(&with(&["--set", "teacher.sytem=1"]), 2, &["teacher.sytem"]);
    refused(&with(&["--limit", "3"]), 2, &["--limit", "3", "2 held-out rows"]);
    refused(&with(&["--concurrency", "3"]), 2, &["--concurrency"]);
    refused(&["--teacher", &model, "--prompts", "nowhere.jsonl"], 1, &["nowhere.jsonl"]);
    refused(&with(&["--max-gen-toks", "500"]), 1, &["500 new tokens", "context of 256"]);
}
