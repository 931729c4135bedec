//! Reports: what they show is what the folders hold, as HTML that is whole and holds no markup of a model's.

use std::fs;

use super::{Data, run, samples};
use crate::support::{Workshop, arle, arle_train, read_json};

/// Every tag is closed by its own kind, in order.
#[track_caller]
fn assert_whole(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let body = html.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    // Nothing in a style sheet is a tag.
    for (at, _) in body.match_indices('<') {
        let tag = &body[at + 1..];
        let tag = &tag[..tag.find('>').expect("it ends")];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("a name");
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "at {tag}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
}

#[test]
fn two_runs_are_shown_beside_each_other() {
    let data = Data::new();
    data.write("arc_easy/arc_easy.jsonl", &{
        let row = |i: usize| format!("{{\"query\": \"Question: <script>alert({i})</script> & why?\", \"choices\": [\"a\", \"<b>\", \"c\", \"dd\"], \"gold\": {}}}\n", i % 4);
        (0..8).map(row).collect::<String>()
    });
    let (a, b) = (data.name("a"), data.name("b"));
    run(&data.eval(&["--tasks", "arc_easy,gsm8k", "--max-gen-toks", "8", "--num-fewshot", "1", "--out", &a])).ok();
    run(&data.eval(&["--tasks", "arc_easy", "--num-fewshot", "3", "--out", &b])).ok();
    let file = data.name("report.html");
    assert_eq!(arle(&["eval", "--report", &file, &a, &b]).ok().trim(), file);
    let html = fs::read_to_string(&file).expect("a report");
    assert_whole(&html);
    assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains("://"), "nothing from elsewhere");
    for folder in [&a, &b] {
        let results = read_json(&std::path::Path::new(folder).join("results.json"));
        let score = results["results"]["arc_easy"]["acc,none"].as_f64().expect("a score");
        assert!(html.contains(&format!("<td class=\"number\">{score:.4}</td>")), "{score}");
    }
    for heading in ["Scores", "Differences", "Calibration", "Lengths"] {
        assert!(html.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    let right = |folder: &str| -> Vec<bool> {
        let samples = samples(data.path(&format!("{folder}/samples_arc_easy.jsonl")));
        samples.iter().map(|sample| sample["correct"] == true).collect()
    };
    let (first, second) = (right("a"), right("b"));
    let changed = first.iter().zip(&second).filter(|(a, b)| a != b).count();
    assert_eq!(html.matches("<details>").count(), changed, "documents that changed");

    let alone = data.name("alone.html");
    arle(&["eval", "--report", &alone, &a]).ok();
    let html = fs::read_to_string(&alone).expect("a report");
    assert_whole(&html);
    assert!(html.contains("&lt;script&gt;alert(0)&lt;/script&gt; &amp; why?") && html.contains("<h2>Examples</h2>"));
}

#[test]
fn a_training_run_is_shown_by_step() {
    let (workshop, data) = (Workshop::new(), Data::new());
    let tasks = format!("every = 2\ntasks = [\"arc_easy\"]\ndata = {:?}\nany_data = true\n", data.name(""));
    workshop.replace("every = 2\n", &tasks);
    let (recipe, out, file) = (workshop.name("recipe.toml"), workshop.name("run"), workshop.name("run.html"));
    arle_train(&[&recipe, "--out", &out, "--set", "eval.sample_prompts=[\"Why?\"]"]).ok();
    arle(&["eval", "--report", &file, &out]).ok();
    let html = fs::read_to_string(&file).expect("a report");
    assert_whole(&html);
    assert!(html.contains("<h2>By step of training</h2>") && html.contains(">arc_easy: acc</figcaption>"));
    let curve = html.split(">arc_easy: acc</figcaption>").nth(1).and_then(|rest| rest.split("</figure>").next());
    let curve = curve.expect("a figure");
    assert_eq!(curve.matches("<circle").count(), 3, "steps 0, 2 and 4");
    assert!(curve.contains(">teacher</text>"), "{curve}");
    assert!(html.contains(">held out: kl</figcaption>"));
    for drawn in ["loss", "teacher_kl"] {
        let curve = html
            .split(&format!(">training: {drawn}</figcaption>"))
            .nth(1)
            .and_then(|rest| rest.split("</figure>").next());
        assert_eq!(curve.expect("a figure").matches("<circle").count(), 4, "{drawn} of 4 steps");
    }
    assert!(html.contains("<h2>Recipe</h2>") && html.contains("max_steps = 4"));
    assert!(html.contains("<h2>Samples</h2>") && html.contains("<h4>student, step 4</h4>"));
}

#[test]
fn runs_without_tasks_show_what_they_measured() {
    let workshop = Workshop::new();
    workshop.train("a", &["--set", "eval.every=2"]).ok();
    workshop.train("b", &["--set", "eval.every=2", "--set", "optim.lr=1e-3"]).ok();
    workshop.train("c", &["--set", "eval.every=0", "--set", "eval.at_start=false", "--set", "eval.at_end=false"]).ok();
    let (a, b, c, file) = (workshop.name("a"), workshop.name("b"), workshop.name("c"), workshop.name("report.html"));
    arle(&["eval", "--report", &file, &a, &b]).ok();
    let html = fs::read_to_string(&file).expect("a report");
    assert_whole(&html);
    let curve = html.split(">held out: kl</figcaption>").nth(1).and_then(|rest| rest.split("</figure>").next());
    assert_eq!(curve.expect("a figure").matches("<polyline").count(), 2);
    arle(&["eval", "--report", &file, &c]).ok();
    let html = fs::read_to_string(&file).expect("a report");
    assert_whole(&html);
    assert!(html.contains(">training: loss</figcaption>") && !html.contains("held out"), "what training alone says");
}

#[test]
fn what_is_no_run_is_refused() {
    let data = Data::new();
    let (a, file) = (data.name("a"), data.name("report.html"));
    run(&data.eval(&["--tasks", "arc_easy", "--out", &a])).ok();
    arle(&["eval", "--report", &file, &data.name("nowhere")]).refused(1, &["nowhere"]);
    arle(&["eval", "--report", &file, &data.name("arc_easy")]).refused(1, &["results.json", "metrics.jsonl"]);
    arle(&["eval", "--report", &file, &a, &data.name("arc_easy")]).refused(1, &["results.json"]);
    arle(&["eval", "--report", &file, &a, "--tasks", "arc_easy"]).refused(2, &["--tasks", "--report"]);
    arle(&["eval", "--compare", &a, &a, "--limit", "3"]).refused(2, &["--limit", "--compare"]);
    arle(&["eval", "--compare", &a, &a, "--device", "cpu"]).refused(2, &["--compare", "--device"]);
    arle(&["eval", "--report", &file, &a, "--adapter", &a]).refused(2, &["--report", "--adapter"]);
    arle(&["eval", "--report", &file]).refused(2, &["--report", "RUN"]);
    assert!(!data.path("report.html").exists());
}
