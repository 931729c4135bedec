//! Tasks during a training run: the student as it is, the teacher once.

use serde_json::Value;

use super::{Data, samples};
use crate::support::{Workshop, arle_train};

fn recipe(workshop: &Workshop, data: &Data, more: &str) -> String {
    let text = std::fs::read_to_string(workshop.path("recipe.toml")).expect("a recipe");
    let tasks = format!("every = 2\ntasks = [\"arc_easy\"]\ndata = {:?}\nany_data = true\n{more}", data.name(""));
    workshop.write("tasks.toml", &text.replace("every = 2\n", &tasks));
    workshop.name("tasks.toml")
}

#[test]
fn scores_are_in_the_metrics_and_in_the_summary_beside_the_teachers() {
    let (workshop, data) = (Workshop::new(), Data::new());
    let (recipe, out) = (recipe(&workshop, &data, "limit = 6\n"), workshop.name("run"));
    let lines = arle_train(&[&recipe, "--out", &out, "--json"]).lines();
    let key = "eval/arc_easy/acc";
    let measured: Vec<(u64, f64)> =
        lines.iter().filter_map(|line| Some((line.get("step")?.as_u64()?, line.get(key)?.as_f64()?))).collect();
    assert_eq!(measured.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 2, 4]);
    let summary = lines.last().expect("a summary");
    assert_eq!(summary["before"][key], measured[0].1);
    assert_eq!(summary["after"][key], measured[2].1);
    assert!(summary["teacher"][key].is_f64(), "{summary}");
    assert!(summary["after"]["eval/kl"].is_f64(), "held-out rows are measured too");
    let compared = summary["compared"].as_array().expect("rows").iter().find(|row| row["metric"] == "acc,none");
    let compared = compared.expect("the accuracy");
    assert_eq!((&compared["a"], &compared["b"]), (&summary["before"][key], &summary["after"][key]));
    assert!(compared["interval"][0].is_f64() && compared["within_noise"].is_boolean(), "{compared}");
    let first = samples(workshop.path("run/eval/step_000000/samples_arc_easy.jsonl"));
    let last = samples(workshop.path("run/eval/step_000004/samples_arc_easy.jsonl"));
    let logprob = |sample: &Value| sample["responses"][0]["logprob"].as_f64().expect("a number");
    assert_eq!((first.len(), last.len()), (6, 6));
    assert_ne!(logprob(&first[0]), logprob(&last[0]), "the student has changed");
    let teacher = samples(workshop.path("run/eval/teacher/samples_arc_easy.jsonl"));
    assert_eq!(logprob(&first[0]), logprob(&teacher[0]), "the student begins as its teacher");
}

#[test]
fn tasks_are_checked_before_the_run() {
    let (workshop, data) = (Workshop::new(), Data::new());
    let refused = |more: &str, code: i32, words: &[&str]| {
        let recipe = recipe(&workshop, &data, more);
        arle_train(&[&recipe, "--out", &workshop.name("run")]).refused(code, words);
    };
    refused("limit = 0\n", 2, &["eval.limit"]);
    refused("max_length = 1000\n", 2, &["eval.max_length", "256"]);
    let kv = ["--set", "runtime.kv_bytes=1KiB"];
    let recipe_with_tasks = recipe(&workshop, &data, "");
    arle_train(&[&[recipe_with_tasks.as_str()], &kv[..]].concat()).refused(1, &["runtime.kv_bytes", "eval.max_length"]);
    let dry = |set: &str| arle_train(&[&recipe_with_tasks, "--dry-run", "--set", set]);
    dry("eval.tasks=[\"arc_esy\"]").refused(2, &["arc_esy", "arc_easy"]);
    dry("checkpoint.best=eval/arc_easy/ac").refused(2, &["eval/arc_easy/ac", "eval/arc_easy/acc_norm", "eval/kl"]);
    dry("checkpoint.best=eval/arc_easy/acc").ok();
    let recipe = workshop.name("recipe.toml");
    arle_train(&[&recipe, "--set", "eval.limit=3"]).refused(2, &["eval.limit", "eval.tasks"]);
    arle_train(&[&recipe, "--set", "eval.tasks=[\"arc_easy\"]"]).refused(2, &["eval.data"]);
}
