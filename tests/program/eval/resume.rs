//! An evaluation that is stopped goes on at the sample.

use std::fs;
use std::process::Stdio;

use serde_json::json;

use super::{Data, run, samples};
use crate::support::{ARLE, command, read_json};

#[test]
fn what_is_there_is_not_asked_again() {
    let data = Data::new();
    let out = data.name("out");
    let asked = data.eval(&["--tasks", "arc_easy,lambada", "--out", &out]);
    run(&asked).ok();
    let (whole, results) =
        (samples(data.path("out/samples_arc_easy.jsonl")), read_json(&data.path("out/results.json")));
    let file = data.path("out/samples_arc_easy.jsonl");
    let text = fs::read_to_string(&file).expect("samples");
    let lines: Vec<&str> = text.lines().collect();
    // A marked sample shows that it was kept; the last line was cut by a kill.
    let marked = lines[2].replace("\"prompt\":\"", "\"prompt\":\"kept ");
    fs::write(&file, format!("{}\n{}\n{marked}\n{}", lines[0], lines[1], &lines[3][..40])).expect("written");
    let ended = run(&asked);
    assert!(ended.stderr.contains("10 of 16 samples are there already"), "{}", ended.stderr);
    ended.ok();
    let mut again = samples(file);
    let kept =
        again.iter_mut().find(|s| s["prompt"].as_str().expect("text").starts_with("kept ")).expect("it was kept");
    kept["prompt"] = json!(kept["prompt"].as_str().expect("text").trim_start_matches("kept "));
    assert_eq!(again, whole);
    assert_eq!(read_json(&data.path("out/results.json"))["results"], results["results"]);

    let other = data.eval(&["--tasks", "arc_easy,lambada", "--out", &out, "--max-length", "100"]);
    run(&other).refused(1, &["samples_arc_easy.jsonl", "max_length 256", "has 100", "--out"]);
}

#[test]
fn ctrl_c_keeps_what_is_graded() {
    let data = Data::new();
    let row =
        |i: usize| json!({"query": format!("Question: What is {i}?"), "choices": ["a", "b", "c", "d"], "gold": i % 4});
    data.rows("arc_easy/arc_easy.jsonl", (0..20_000).map(row));
    let out = data.name("out");
    let asked = data.eval(&["--tasks", "arc_easy", "--out", &out]);
    let args: Vec<&str> = asked.iter().map(String::as_str).collect();
    let child = command(ARLE, &args).stderr(Stdio::piped()).spawn().expect("the program starts");
    let file = data.path("out/samples_arc_easy.jsonl");
    while fs::read_to_string(&file).map_or(0, |text| text.lines().count()) < 3 {
        std::thread::yield_now();
    }
    let sent = std::process::Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    let ended = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8(ended.stderr).expect("text");
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    let graded = samples(file).len();
    assert!(
        stderr.contains(&format!("interrupted after {graded} of 20000 samples; the same command goes on")),
        "{stderr}"
    );
}
