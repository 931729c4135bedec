//! What is refused before anything runs, and with which words.

use super::{Data, run};
use crate::support::{arle, fixture};

#[test]
fn a_run_that_cannot_mean_anything_is_refused() {
    let data = Data::new();
    let refused = |more: &[&str], code: i32, words: &[&str]| run(&data.eval(more)).refused(code, words);
    refused(&[], 2, &["--tasks", "--list"]);
    refused(&["--tasks", "arc_esy"], 2, &["arc_esy", "did you mean `arc_easy`"]);
    refused(&["--tasks", "arc_easy", "--repeats", "2"], 2, &["--repeats", "--temperature 0"]);
    refused(&["--tasks", "arc_easy", "--top-p", "0.9"], 2, &["--top-p"]);
    refused(&["--tasks", "arc_easy", "--limit", "0"], 2, &["--limit", "at least 1"]);
    refused(&["--tasks", "arc_easy", "--num-fewshot", "8"], 2, &["--num-fewshot", "7 examples of arc_easy"]);
    refused(&["--tasks", "wikitext", "--num-fewshot", "1"], 2, &["wikitext", "no examples"]);
    refused(&["--tasks", "arc_easy", "--max-length", "300"], 2, &["--max-length", "256"]);
    refused(&["--tasks", "arc_easy", "--max-length", "100", "--batch-tokens", "50"], 2, &["--batch-tokens", "100"]);
    refused(&["--tasks", "arc_easy", "--kv-bytes", "1KiB"], 1, &["--kv-bytes", "--max-length", "256 tokens"]);
    refused(&["--tasks", "gsm8k"], 1, &["documents do not fit", "256 new ones", "--max-gen-toks", "--left-truncate"]);
    refused(&["--tasks", "piqa"], 1, &["piqa.jsonl", "--data"]);
    let (model, folder) = (fixture("tiny-chat"), data.name(""));
    let known = ["eval", "--model", &model, "--data", &folder, "--tasks", "arc_easy"];
    arle(&known).refused(1, &["arc_easy.jsonl", "SHA-256", "d2d12e59", "--any-data"]);
    arle(&["eval", "--model", &model, "--tasks", "arc_easy"]).refused(2, &["--data", "nothing is downloaded"]);
    let nobody = ["eval", "--url", "http://127.0.0.1:9", "--served-model", "m", "--retries", "0"];
    let nobody = [&nobody[..], &["--data", &folder, "--any-data", "--tasks", "arc_easy"]].concat();
    arle(&nobody).refused(1, &["127.0.0.1:9", "/tokenize"]);
    let adapted = [&nobody[..], &["--adapter", &folder]].concat();
    arle(&adapted).refused(2, &["--adapter", "--url"]);
    refused(&["--tasks", "arc_easy", "--concurrency", "2"], 2, &["--concurrency", "--model"]);
    let chat = [&nobody[..], &["--apply-chat-template"]].concat();
    arle(&chat).refused(2, &["--apply-chat-template", "log-probabilities"]);
}

#[test]
fn prompts_that_are_cut_are_counted() {
    let data = Data::new();
    let more = ["--tasks", "gsm8k", "--num-fewshot", "5", "--max-gen-toks", "200", "--left-truncate"];
    let table = run(&data.eval(&more)).ok();
    assert!(table.contains("4 prompts were cut at their beginning"), "{table}");
}

#[test]
fn the_list_names_tasks_and_groups() {
    let list = arle(&["eval", "--list"]).ok();
    for word in ["gsm8k ", "5-shot", "wikitext", "mmlu_stem", "group of 57 tasks"] {
        assert!(list.contains(word), "{word}: {list}");
    }
}
