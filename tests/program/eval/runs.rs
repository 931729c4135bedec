//! What an evaluation reports, and that the same model gives the same numbers in every way of asking it.

use serde_json::{Value, json};

use super::{Data, run, samples};
use crate::serve::client::Server;
use crate::support::read_json;

const TASKS: &str = "arc_easy,gsm8k,lambada,winogrande,wikitext";

#[test]
fn results_have_the_librarys_names_and_samples_say_how_they_came() {
    let data = Data::new();
    let out = data.name("out");
    let asked = data.eval(&["--tasks", TASKS, "--num-fewshot", "0", "--max-gen-toks", "8", "--out", &out, "--json"]);
    let printed = run(&asked).object();
    assert_eq!(printed, read_json(&data.path("out/results.json")));
    assert_eq!(printed["n-samples"]["gsm8k"], json!({"original": 4, "effective": 4}));
    assert_eq!(printed["n-shot"]["gsm8k"], 0);
    assert_eq!(printed["versions"]["gsm8k"], 3.0);
    assert_eq!(printed["higher_is_better"]["wikitext"]["word_perplexity"], false);
    let number =
        |task: &str, key: &str| printed["results"][task][key].as_f64().unwrap_or_else(|| panic!("{task} {key}"));
    for (task, key) in [
        ("arc_easy", "acc,none"),
        ("arc_easy", "acc_norm_stderr,none"),
        ("gsm8k", "exact_match,strict-match"),
        ("gsm8k", "exact_match,flexible-extract"),
        ("lambada", "perplexity_stderr,none"),
        ("winogrande", "acc,none"),
        ("wikitext", "bits_per_byte,none"),
    ] {
        assert!(number(task, key).is_finite());
    }
    assert_eq!(printed["results"]["wikitext"]["bits_per_byte_stderr,none"], "N/A");

    let arc = samples(data.path("out/samples_arc_easy.jsonl"));
    let right = arc.iter().filter(|sample| sample["correct"] == true).count();
    assert_eq!(number("arc_easy", "acc,none"), right as f64 / 8.0);
    // Wilson (1927) for `right` of 8, solved for p: |p - right / 8| = z sqrt(p (1 - p) / 8).
    let interval = &printed["wilson_95"]["arc_easy"]["acc,none"];
    for end in interval.as_array().expect("two ends").iter().map(|end| end.as_f64().expect("a number")) {
        let distance = (end - right as f64 / 8.0).abs();
        let expected = 1.959_963_985 * (end * (1.0 - end) / 8.0).sqrt();
        assert!((distance - expected).abs() < 1e-6, "{interval}, {right} right");
    }
    assert_eq!(printed["wilson_95"].get("wikitext"), None, "no score of right and wrong");
    assert_eq!(arc[1]["prompt"], "Question: What is moon?\nAnswer:");
    assert_eq!(arc[1]["choices"], json!([" a", " bb", " moon", " dddd"]));
    let [first, second] = [&arc[1]["responses"][0], &arc[1]["responses"][2]];
    assert_eq!(first["token_ids"].as_array().expect("ids").len(), first["logprobs"].as_array().expect("numbers").len());
    assert_ne!(first["logprob"], second["logprob"]);
    let text = &samples(data.path("out/samples_gsm8k.jsonl"))[0]["responses"][0];
    assert_eq!(text["token_ids"].as_array().expect("ids").len(), 8);
    assert_eq!(text["finish_reason"], "length");
    // A long text is scored in windows, each token once.
    let rolled = &samples(data.path("out/samples_wikitext.jsonl"))[0]["responses"][0];
    assert!(rolled["tokens"].as_u64().expect("a count") > 256, "{rolled}");
}

/// Metrics and log-likelihoods of every sample.
fn numbers(folder: &str, data: &Data) -> Vec<Value> {
    TASKS
        .split(',')
        .flat_map(|task| samples(data.path(&format!("{folder}/samples_{task}.jsonl"))))
        .map(|sample| {
            let logprobs: Vec<Value> =
                sample["responses"].as_array().expect("answers").iter().map(|r| r["logprob"].clone()).collect();
            json!([sample["prompt"], sample["metrics"], sample["extracted"], logprobs])
        })
        .collect()
}

#[test]
fn the_table_ends_with_the_seeds() {
    let data = Data::new();
    let shown = run(&data.eval(&["--tasks", "arc_easy", "--seed", "7", "--sampling-seed", "8"])).ok();
    assert!(shown.ends_with("\nseeds: examples 7, sampling 8\n"), "{shown}");
    assert!(shown.contains("95 % (Wilson)"), "{shown}");
}

#[test]
fn a_server_gives_the_same_numbers() {
    let data = Data::new();
    let more = ["--tasks", TASKS, "--num-fewshot", "0", "--max-gen-toks", "8", "--max-length", "200", "--out"];
    run(&data.eval(&[&more[..], &[&data.name("here")]].concat())).ok();
    let server = Server::tiny(&["--served-model-name", "m"]);
    let url = format!("http://{}", server.address);
    let (folder, out) = (data.name(""), data.name("there"));
    let ask = ["eval", "--url", &url, "--served-model", "m", "--data", &folder, "--any-data"];
    crate::support::arle(&[&ask[..], &more[..], &[&out]].concat()).ok();
    assert_eq!(numbers("here", &data), numbers("there", &data));
}

const CAPITALS: &str = r#"
name = "capitals"
version = "1"
about = "capitals"
kind = "generate_until"
data = { test = "capitals.jsonl" }
[prompt]
question = "What is the capital of {{country}}?"
answer = "{{capital}}"
[few_shot]
count = 1
[[extract]]
name = "word"
regex = '\w+'
"#;

#[test]
fn a_task_of_ones_own_goes_through_the_chat_template() {
    let data = Data::new();
    data.write("capitals.toml", CAPITALS);
    let rows = [("Spain", "Madrid"), ("Italy", "Rome")]
        .map(|(country, capital)| json!({"country": country, "capital": capital}));
    data.rows("capitals.jsonl", rows.into_iter());
    let (task, out) = (data.name("capitals.toml"), data.name("out"));
    let more =
        ["--tasks", &task, "--apply-chat-template", "--system", "Be brief.", "--max-gen-toks", "4", "--out", &out];
    let table = run(&data.eval(&more)).ok();
    assert!(table.contains("capitals") && table.contains("exact_match (up)") && table.contains("word"), "{table}");
    let sample = &samples(data.path("out/samples_capitals.jsonl"))[0];
    let wanted = "<|start|>system\nBe brief.<|end|>\n<|start|>user\nWhat is the capital of Italy?<|end|>\n\
                  <|start|>assistant\nRome<|end|>\n<|start|>user\nWhat is the capital of Spain?<|end|>\n<|start|>assistant\n";
    assert_eq!(sample["prompt"], wanted);
}

#[test]
fn sampled_answers_repeat_and_differ() {
    let data = Data::new();
    let out = data.name("out");
    let more =
        ["--tasks", "gsm8k", "--num-fewshot", "0", "--max-gen-toks", "6", "--temperature", "1", "--repeats", "3"];
    run(&data.eval(&[&more[..], &["--out", &out]].concat())).ok();
    let again = data.name("again");
    run(&data.eval(&[&more[..], &["--out", &again]].concat())).ok();
    let (first, second) =
        (samples(data.path("out/samples_gsm8k.jsonl")), samples(data.path("again/samples_gsm8k.jsonl")));
    assert_eq!(first, second, "equal seeds, equal answers");
    let texts: Vec<&Value> =
        first[0]["responses"].as_array().expect("answers").iter().map(|r| &r["token_ids"]).collect();
    assert!(texts.len() == 3 && texts[0] != texts[1], "{texts:?}");
}
