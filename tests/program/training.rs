//! Short runs from beginning to end: what they print, what they leave, what they learn.

use std::fs;

use serde_json::{Map, Value, json};

use crate::support::{Workshop, arle, read_json};

fn number(line: &Map<String, Value>, key: &str) -> f64 {
    line.get(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("{key} is not a number in {line:?}"))
}

#[test]
fn a_run_prints_its_metrics_and_stores_them() {
    let workshop = Workshop::new();
    let ended = workshop.train("run", &[]);
    assert_eq!(ended.stderr, "", "--json leaves stderr to errors");
    let text = ended.ok();
    let printed = crate::support::json_lines(&text);
    let stored = fs::read_to_string(workshop.path("run/metrics.jsonl")).expect("metrics");
    let (summary, steps) = printed.split_last().expect("lines");
    assert!(text.starts_with(&stored) && stored.lines().count() == steps.len(), "{text}\n{stored}");
    assert_eq!(
        steps.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2), Some(3), Some(4)]
    );
    for line in &steps[1..] {
        let line = line.as_object().expect("an object");
        for key in [
            "loss",
            "teacher_kl",
            "optim/lr",
            "optim/grad_norm",
            "time/step",
            "time/rollout",
            "time/teacher",
            "time/train",
            "completions/tokens",
        ] {
            assert!(number(line, key).is_finite(), "{key}");
        }
        assert!(number(line, "mismatch_kl").abs() < 1e-4, "sampler and trainer agree: {line:?}");
        assert_eq!(number(line, "completions/tokens"), 24.0);
    }
    let measured: Vec<u64> =
        steps.iter().filter(|line| line.get("eval/kl").is_some()).filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(measured, [0, 2, 4], "eval.every = 2, and before the first step");
    assert_eq!(summary["steps"], 4);
    assert_eq!(summary["after"]["eval/kl"], steps[4]["eval/kl"]);
    assert_eq!(summary["before"]["eval/kl"], steps[0]["eval/kl"]);
}

#[test]
fn a_run_ends_when_its_seconds_are_used_up() {
    let workshop = Workshop::new();
    let summary = |more: &[&str], seconds: &str| {
        let length = format!("schedule.max_seconds={seconds}");
        let long = ["--set", "schedule.max_steps=100000", "--set", "eval.every=0", "--set", &length];
        let text = workshop.train("run", &[&long, more].concat()).ok();
        crate::support::json_lines(&text).pop().expect("a summary")
    };
    let first = summary(&[], "1e-6");
    assert_eq!(first["steps"], 1, "a step is never cut");
    let held_out = |step: usize| workshop.metrics("run")[step].contains_key("eval/kl");
    assert!(held_out(0) && held_out(1), "measured at both ends");
    assert_eq!(workshop.names("run/checkpoints"), ["latest", "step_000001"]);
    // The seconds of the first part count: with them used up no step is taken, with more there are.
    assert_eq!(summary(&["--resume"], "1e-6")["steps"], 1);
    let steps = summary(&["--resume"], "0.5")["steps"].as_u64().expect("a number");
    assert!(steps > 1 && steps < 100_000, "{steps}");
    let lines = workshop.metrics_with_times("run");
    let seconds: f64 = lines[1..].iter().map(|line| number(line, "time/step")).sum();
    assert!(seconds >= 0.5, "{seconds}");
}

#[test]
fn the_student_comes_closer_to_its_prompted_teacher() {
    let workshop = Workshop::new();
    let run = |set: &[&str], name| {
        let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        workshop.train(name, &args).ok();
        let metrics = workshop.metrics(name);
        (number(&metrics[0], "eval/kl"), number(&metrics[metrics.len() - 1], "eval/kl"))
    };
    let (before, after) = run(&["schedule.max_steps=25", "eval.every=0", "checkpoint.every=0"], "learns");
    assert!(before > 0.05 && after < 0.5 * before, "held-out KL {before} -> {after}");
    // The same run with a rate that moves nothing does not: the fall comes from what was learned.
    let (before, after) =
        run(&["schedule.max_steps=5", "eval.every=0", "checkpoint.every=0", "optim.lr=1e-12"], "still");
    assert!((after / before - 1.0).abs() < 1e-3, "held-out KL {before} -> {after}");
}

#[test]
fn a_teacher_that_is_the_student_has_nothing_to_say() {
    let workshop = Workshop::new();
    workshop.replace("system_prompt = \"You are a helpful assistant.\"\n", "");
    for (kind, name) in [("reverse_kl", "a"), ("forward_kl", "b"), ("jsd", "c")] {
        workshop.train(name, &["--set", &format!("loss.kind={kind}"), "--set", "schedule.max_steps=1"]).ok();
        let metrics = workshop.metrics(name);
        assert!(number(&metrics[0], "eval/kl").abs() < 1e-6, "{:?}", metrics[0]);
        assert!(number(&metrics[1], "loss").abs() < 1e-6, "{kind}: {:?}", metrics[1]);
        assert!(number(&metrics[1], "optim/grad_norm") < 1e-3, "{kind}: {:?}", metrics[1]);
    }
}

#[test]
fn equal_runs_have_equal_metrics_and_weights_and_another_seed_has_others() {
    let workshop = Workshop::new();
    for (name, seed) in [("first", 5), ("second", 5), ("third", 6)] {
        workshop
            .train(
                name,
                &[
                    "--set",
                    &format!("runtime.seed={seed}"),
                    "--set",
                    "lora.dropout=0.1",
                    "--set",
                    "rollout.group_size=2",
                ],
            )
            .ok();
    }
    assert_eq!(workshop.metrics("first"), workshop.metrics("second"));
    let weights = |run: &str| {
        fs::read(workshop.path(run).join("checkpoints/latest/adapter_model.safetensors")).expect("an adapter")
    };
    assert!(weights("first") == weights("second"));
    assert_ne!(workshop.metrics("first"), workshop.metrics("third"));
    assert!(weights("first") != weights("third"));
}

#[test]
fn micro_batches_change_no_result_beyond_rounding() {
    let workshop = Workshop::new();
    workshop.train("whole", &[]).ok();
    workshop
        .train("cut", &["--set", "runtime.tokens_per_microbatch=108", "--set", "runtime.gradient_checkpointing=true"])
        .ok();
    for (whole, cut) in workshop.metrics("whole").iter().zip(&workshop.metrics("cut")).skip(1) {
        let (a, b) = (number(whole, "loss"), number(cut, "loss"));
        assert!((a / b - 1.0).abs() < 1e-3, "{a} and {b}");
    }
}

#[test]
fn every_kind_of_loss_takes_steps() {
    let cases: &[&[&str]] = &[
        &["loss.kind=jsd", "loss.beta=0.3"],
        &["loss.kind=skewed_forward_kl"],
        &["loss.kind=skewed_reverse_kl"],
        &["loss.kind=top_k", "loss.top_k=5"],
        &["loss.kind=policy_gradient"],
        &["loss.lmbda=0.5", "loss.off_policy=cross_entropy"],
        &["loss.lmbda=0.0", "loss.seq_kd=true"],
    ];
    let workshop = Workshop::new();
    for (i, set) in cases.iter().enumerate() {
        let name = format!("run-{i}");
        let args: Vec<&str> =
            set.iter().flat_map(|set| ["--set", set]).chain(["--set", "schedule.max_steps=2"]).collect();
        workshop.train(&name, &args).ok();
        let metrics = workshop.metrics(&name);
        assert_eq!(metrics.len(), 3, "{set:?}");
        for line in &metrics[1..] {
            assert!(number(line, "loss").is_finite() && number(line, "optim/grad_norm") > 1e-4, "{set:?}: {line:?}");
            assert_eq!(number(line, "optim/skipped"), 0.0, "{set:?}");
        }
    }
}

#[test]
fn cross_entropy_on_given_completions_needs_no_teacher() {
    let workshop = Workshop::new();
    workshop.replace("[teacher]\nkind = \"self\"\nsystem_prompt = \"You are a helpful assistant.\"\n", "");
    workshop.replace("eval_rows = 2", "");
    workshop.replace("[eval]\nevery = 2", "[loss]\nkind = \"cross_entropy\"");
    workshop.train("run", &["--set", "schedule.max_steps=12", "--set", "checkpoint.every=0"]).ok();
    let metrics = workshop.metrics("run");
    let (first, last) = (number(&metrics[0], "loss"), number(&metrics[11], "loss"));
    assert!(last < 0.8 * first, "{first} -> {last}");
}

#[test]
fn the_recipe_and_the_checkpoints_of_a_run_are_there() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "optim.lr=5e-3"]).ok();
    assert_eq!(
        workshop.names("run"),
        [
            "checkpoints",
            "config.toml",
            "given.toml",
            "metrics.jsonl",
            "run.lock",
            "samples.jsonl",
            "teacher_completions.json"
        ]
    );
    let config: toml::Table =
        fs::read_to_string(workshop.path("run/config.toml")).expect("a recipe").parse().expect("TOML");
    assert_eq!(config["optim"]["lr"].as_float(), Some(5e-3));
    assert_eq!(workshop.names("run/checkpoints"), ["latest", "step_000003", "step_000004"], "keep_last = 2");
    assert_eq!(
        fs::read_link(workshop.path("run/checkpoints/latest")).expect("a link").to_string_lossy(),
        "step_000004"
    );
    let files = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint.sha256",
        "optimizer.safetensors",
        "trainer_state.json",
    ];
    assert_eq!(workshop.names("run/checkpoints/latest"), files);
    let adapter = read_json(&workshop.path("run/checkpoints/latest/adapter_config.json"));
    assert_eq!(
        (&adapter["peft_type"], &adapter["r"], adapter["lora_alpha"].as_f64()),
        (&json!("LORA"), &json!(4), Some(8.0))
    );
    assert_eq!(read_json(&workshop.path("run/checkpoints/latest/trainer_state.json"))["step"], 4);
}

#[test]
fn sampled_completions_are_stored_before_during_and_after() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "eval.sample_prompts=[\"Why?\"]"]).ok();
    let text = fs::read_to_string(workshop.path("run/samples.jsonl")).expect("samples");
    let lines = crate::support::json_lines(&text);
    assert_eq!(lines.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(2), Some(4)]);
    assert!(
        lines[0]["teacher"].is_string()
            && lines.iter().all(|line| line["completion"].is_string() && line["prompt"] == "Why?"),
        "{lines:?}"
    );
}

#[test]
fn full_fine_tuning_leaves_a_model_that_is_what_was_measured() {
    let workshop = Workshop::new();
    workshop.replace("[lora]\nr = 4\nalpha = 8.0\n", "");
    workshop.train("run", &["--set", "optim.lr=3e-3", "--set", "schedule.max_steps=5"]).ok();
    let files = [
        "chat_template.jinja",
        "checkpoint.sha256",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    ];
    assert_eq!(workshop.names("run/checkpoints/latest"), files);
    let metrics = workshop.metrics("run");
    assert!(number(&metrics[5], "eval/kl") < 0.8 * number(&metrics[0], "eval/kl"), "{metrics:?}");
    let latest = workshop.name("run/checkpoints/latest");
    let text = ["--text", "Why is the sky blue?", "--json"];
    let trained = arle(&[&["score", "--model", &latest], &text[..]].concat()).object();
    let base = arle(&[&["score", "--model", &crate::support::fixture("tiny-chat")], &text[..]].concat()).object();
    assert_eq!(trained["tokens"], base["tokens"], "the tokenizer came along");
    assert_ne!(trained["logprobs"], base["logprobs"], "the weights are the trained ones");
    arle(&["generate", "--model", &latest, "--chat", "Why?", "--max-tokens", "2", "--json"]).object();
}

#[test]
fn a_pruned_student_has_the_layers_that_were_kept() {
    let workshop = Workshop::new();
    workshop.replace("[lora]\nr = 4\nalpha = 8.0\n", "");
    workshop.replace(
        "[teacher]\nkind = \"self\"\nsystem_prompt = \"You are a helpful assistant.\"",
        "layers = [1]\n[teacher]\nmodel = \"TEACHER\"",
    );
    workshop.replace("TEACHER", &crate::support::fixture("tiny-chat"));
    workshop.train("run", &["--set", "schedule.max_steps=2"]).ok();
    assert_eq!(read_json(&workshop.path("run/checkpoints/latest/config.json"))["num_hidden_layers"], 1);
    assert!(number(&workshop.metrics("run")[0], "eval/kl") > 1e-3, "a layer is missing, so the models differ");
    arle(&["score", "--model", &workshop.name("run/checkpoints/latest"), "--tokens", "1,2", "--json"]).object();
}

#[test]
fn a_run_is_not_overwritten() {
    let workshop = Workshop::new();
    workshop.train("run", &["--set", "schedule.max_steps=1"]).ok();
    let before = fs::read(workshop.path("run/metrics.jsonl")).expect("metrics");
    workshop.train("run", &["--set", "schedule.max_steps=1"]).refused(1, &["holds a run already", "--resume", "--out"]);
    assert_eq!(fs::read(workshop.path("run/metrics.jsonl")).expect("metrics"), before);
}
