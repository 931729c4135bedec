//! A model's own files decide as they do in lm-evaluation-harness 0.4.13's Hugging Face models with transformers 5.24, whose
//! values these are (`scripts/check/eval_hf`, f32).

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::samples;
use crate::support::{Ended, Model, arle, read_json};

const FIRST: &str = "<|start|>";
const TEXTS: [(&str, &str); 5] = [
    ("hello world how are you", " fine"),
    ("The cat sat on the mat.", " and"),
    ("<|start|>The capital of France is", " Paris."),
    ("<|start|>", " x"),
    ("A <|start|> in the middle", "<|start|> y"),
];
const LOG_LIKELIHOODS: [f64; 5] =
    [-29.809110641479492, -5.426218509674072, -35.505714416503906, -14.86845874786377, -19.86763572692871];
const ROLLING: [f64; 5] =
    [-116.40886688232422, -78.32978057861328, -79.73556518554688, -6.429754257202148, -81.74005126953125];
/// Answers to the texts: without a rule, and by rules.
const PLAIN: [&str; 3] = [
    "\u{fffd}\u{fffd}\u{5a4}nnnnnnnnnnnn",
    "[[[czzE_\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}",
    "\u{fffd}ighpita\u{f}\u{fffd}pitapitapitapitapitapitapitapitapitapitapita",
];
const PENALIZED: [&str; 3] = [
    "\u{fffd}\u{fffd}\u{fffd}[@\u{211}u\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}9\u{f}\u{fffd}",
    "[\u{f}\u{fffd}kus\u{fffd}\u{fffd}\u{17}\u{fffd}\u{fffd}0_\u{fffd}\u{fffd}q@",
    "\u{fffd}ighpita\u{f}\u{fffd}C\u{fffd}_{\u{fffd}+\u{fffd}\u{fffd}\u{fffd}<\u{fffd}",
];
const RULED: [&str; 3] = [
    "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}nn\u{fffd}\u{fffd}\u{fffd}Rn@@n#",
    "\u{2}5\u{fffd}\u{5bf} s s\u{fffd}nWnnkkn\u{fffd}",
    "\u{fffd}ighpita\u{f}\u{fffd}pitapita\u{fffd}\u{fffd}\u{fffd}<+pita\u{fffd}pita2",
];

/// A model whose tokenizer adds the first token, and a task of these texts.
struct RecordedRequests {
    model: Model,
    folder: TempDir,
}

impl RecordedRequests {
    fn new(rules: &Value) -> Self {
        let asked = Self { model: Model::copy("tiny-chat"), folder: tempfile::tempdir().expect("a folder") };
        let model = &asked.model;
        for (key, value) in rules.as_object().expect("keys") {
            model.set("generation_config.json", key, value.clone());
        }
        model.set("tokenizer_config.json", "bos_token", json!(FIRST));
        let mut processor = read_json(&model.file("tokenizer.json"))["post_processor"].clone();
        let begin = json!({ "SpecialToken": { "id": FIRST, "type_id": 0 } });
        processor["single"].as_array_mut().expect("parts").insert(0, begin);
        processor["special_tokens"] = json!({ FIRST: { "id": FIRST, "ids": [1], "tokens": [FIRST] } });
        model.set("tokenizer.json", "post_processor", processor);
        let rows: String = TEXTS.iter().map(|(q, a)| format!("{}\n", json!({ "q": q, "a": a }))).collect();
        fs::write(asked.folder.path().join("rows.jsonl"), rows).expect("written");
        asked
    }

    fn eval(&self, kind: &str, more: &[&str]) -> Ended {
        let generate = "[generate]\nuntil = [\"zzzz\"]\nmax_tokens = 16\n[[extract]]\nname = \"all\"\nregex = '.*'\n";
        let text = format!(
            "name = \"t\"\nversion = \"1\"\nabout = \"t\"\nkind = \"{kind}\"\ndata = {{ test = \"rows.jsonl\" }}\n\
             [prompt]\nquestion = \"{{{{q}}}}\"\nanswer = \"{{{{{}}}}}\"\n{}",
            // Of a rolling log-likelihood the answer is the text.
            if kind == "loglikelihood_rolling" { "q" } else { "a" },
            if kind == "generate_until" { generate } else { "" }
        );
        let (task, out) = (self.folder.path().join("t.toml"), self.folder.path().join(kind));
        fs::write(&task, text).expect("written");
        let [model, task, out] = [self.model.path(), task.display().to_string(), out.display().to_string()];
        arle(&[&["eval", "--model", &model, "--device", "cpu", "--tasks", &task, "--out", &out][..], more].concat())
    }

    /// What the samples say, in the order of the texts.
    fn said(&self, kind: &str, key: &str, more: &[&str]) -> Vec<Value> {
        self.eval(kind, more).ok();
        let samples = samples(self.folder.path().join(kind).join("samples_t.jsonl"));
        samples.iter().map(|sample| sample["responses"][0][key].clone()).collect()
    }
}

#[test]
fn a_text_that_has_the_first_token_gets_no_other() {
    let asked = RecordedRequests::new(&json!({}));
    for (kind, wanted) in [("loglikelihood", LOG_LIKELIHOODS), ("loglikelihood_rolling", ROLLING)] {
        let said = asked.said(kind, "logprob", &[]);
        for (said, wanted) in said.iter().zip(wanted) {
            assert!((said.as_f64().expect("a number") - wanted).abs() < 1e-4, "{kind}: {said} {wanted}");
        }
    }
}

#[test]
fn the_generation_configuration_decides_greedy_answers() {
    let penalty = json!({ "repetition_penalty": 1.5 });
    let rules = json!({ "no_repeat_ngram_size": 2, "suppress_tokens": [60, 61], "min_new_tokens": 12 });
    let sampling = json!({ "do_sample": true, "temperature": 0.6, "top_k": 20, "typical_p": 0.5 });
    for (config, wanted) in [(json!({}), PLAIN), (penalty.clone(), PENALIZED), (rules, RULED), (sampling, PLAIN)] {
        let said = RecordedRequests::new(&config).said("generate_until", "text", &[]);
        assert_eq!([&said[1], &said[2], &said[4]], wanted, "{config}");
    }
    let ignored = RecordedRequests::new(&penalty).said("generate_until", "text", &["--ignore-generation-config"]);
    assert_eq!([&ignored[1], &ignored[2], &ignored[4]], PLAIN);
    for (key, value) in [("num_beams", json!(3)), ("guidance_scale", json!(1.5)), ("stop_strings", json!(["x"]))] {
        let asked = RecordedRequests::new(&json!({ key: value }));
        asked.eval("generate_until", &[]).refused(1, &["generation_config.json", key, "--ignore-generation-config"]);
        let generate =
            ["generate", "--model", &asked.model.path(), "--prompt", "x", "--max-tokens", "1", "--temperature", "0"];
        arle(&generate).refused(1, &["generation_config.json", key]);
        arle(&[&generate[..], &["--ignore-generation-config"]].concat()).ok();
    }
}

#[test]
fn generate_follows_the_rules_and_a_run_says_what_rollouts_leave_out() {
    let asked = RecordedRequests::new(&json!({ "no_repeat_ngram_size": 1 }));
    let generate =
        ["generate", "--model", &asked.model.path(), "--tokens", "5,6,7", "--max-tokens", "20", "--ignore-eos"];
    let ids = arle(&[&generate[..], &["--temperature", "0", "--json"]].concat()).object()["tokens"].clone();
    let ids: Vec<u64> = ids.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id")).collect();
    let mut once = ids.clone();
    once.sort_unstable();
    once.dedup();
    assert!(once.len() == ids.len() && ![5, 6, 7].iter().any(|id| ids.contains(id)), "{ids:?}");
}
