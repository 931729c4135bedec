//! Every task of the table: its documents become questions, a right answer is accepted and a wrong one rejected.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::task::question::{EvalResponse, TaskQuestion};

fn doc(value: Value) -> Doc {
    value.as_object().expect("an object").clone()
}

fn task(name: &str) -> Box<dyn Task> {
    find(&[name.to_owned()], Programs::default()).expect("a task").remove(0)
}

fn text(text: &str) -> Vec<EvalResponse> {
    let (text, finish_reason) = (text.to_owned(), "stop".to_owned());
    vec![EvalResponse::Text { text, finish_reason, prompt_tokens: 1, token_ids: Vec::new(), logprobs: Vec::new() }]
}

/// Answers in which the choice `best` is the likeliest.
fn likely(best: usize, of: usize) -> Vec<EvalResponse> {
    let one = |index| EvalResponse::LogLikelihood {
        logprob: if index == best { -1.0 } else { -200.0 },
        greedy: index == best,
        token_ids: Vec::new(),
        logprobs: Vec::new(),
    };
    (0..of).map(one).collect()
}

#[track_caller]
fn score(task: &dyn Task, doc: &Doc, responses: &[EvalResponse]) -> Vec<f64> {
    let outcome = task.grade(doc, responses).expect("graded");
    let keys: BTreeSet<String> = outcome.metrics.keys().cloned().collect();
    let wanted: BTreeSet<String> = task.info().metrics.iter().map(|metric| metric.key()).collect();
    assert_eq!(keys, wanted, "{} reports what it says", task.info().name);
    task.info().metrics.iter().map(|metric| outcome.metrics[&metric.key()].number()).collect()
}

const DUCKS: &str = "She has 16 - 3 = <<16-3=13>>13.\n#### 1,013";

#[test]
fn gsm8k_reads_the_marked_number_and_the_last_one() {
    let task = task("gsm8k");
    let doc = doc(json!({"question": "How many?", "answer": DUCKS}));
    let TaskQuestion::Generate { question, until, .. } = task.question(&doc) else { panic!("a generation") };
    assert_eq!((question.as_str(), until[0].as_str()), ("Question: How many?\nAnswer:", "Question:"));
    assert_eq!(task.example(&doc).1, DUCKS);
    for (answer, strict, flexible) in [
        (" It is 1000 + 13.\n#### 1013", 1.0, 1.0),
        (" #### $1,013.00", 0.0, 0.0),
        (" #### 1013 dollars", 1.0, 1.0),
        (" #### 1,013.", 1.0, 1.0),
        (" The answer is $1,013.", 0.0, 1.0),
        (" 1013 of 2000", 0.0, 0.0),
        (" #### -1013", 0.0, 0.0),
        (" #### 1013\n#### 5", 1.0, 0.0),
        ("", 0.0, 0.0),
    ] {
        assert_eq!(score(&*task, &doc, &text(answer)), [strict, flexible], "{answer:?}");
    }
    let outcome = task.grade(&doc, &text("no number")).expect("graded");
    assert_eq!(outcome.extracted["strict-match"], "[invalid]");
}

#[test]
fn gsm8k_cot_has_its_eight_examples() {
    let task = task("gsm8k_cot");
    let doc = doc(json!({"question": "How many?", "answer": DUCKS}));
    assert_eq!(score(&*task, &doc, &text(" So 13. The answer is 1013.")), [1.0, 1.0]);
    assert_eq!(score(&*task, &doc, &text(" The answer is 1013 ducks")), [1.0, 1.0]);
    assert_eq!(score(&*task, &doc, &text(" The answer is 13.")), [0.0, 0.0]);
    let crate::task::FewShot::Fixed(pairs) = &task.info().few_shot else { panic!("fixed examples") };
    assert_eq!((pairs.len(), task.info().shots), (8, 8));
    assert!(pairs[0].0.starts_with("Q: There are 15 trees") && pairs[7].1.ends_with("The answer is 8."));
}

#[test]
fn multiple_choices_take_the_likeliest() {
    let rows = [
        ("arc_easy", json!({"query": "Question: Why?", "choices": ["a", "b"], "gold": 1}), "Question: Why?\nAnswer:"),
        (
            "arc_challenge",
            json!({"query": "Question: Why?", "choices": ["a", "b"], "gold": 1}),
            "Question: Why?\nAnswer:",
        ),
        ("piqa", json!({"query": "Question: Why?\n", "choices": ["a", "b"], "gold": 1}), "Question: Why?\nAnswer:"),
        ("openbookqa", json!({"query": "The sun", "choices": ["a", "b"], "gold": 1}), "The sun"),
        ("hellaswag", json!({"ctx": "Run: He", "endings": ["a", "b"], "label": 1}), "Run: He"),
        (
            "boolq",
            json!({"query": "Passage: It is.\nQuestion: is it?", "gold": 1}),
            "It is.\nQuestion: is it?\nAnswer:",
        ),
    ];
    for (name, row, wanted) in rows {
        let (task, doc) = (task(name), doc(row));
        let TaskQuestion::Choose { question, choices } = task.question(&doc) else { panic!("{name}: a choice") };
        assert_eq!(question, wanted, "{name}");
        assert_eq!(score(&*task, &doc, &likely(1, choices.len())), [1.0, 1.0], "{name}");
        assert_eq!(score(&*task, &doc, &likely(0, choices.len())), [0.0, 0.0], "{name}");
        assert_eq!(task.example(&doc), (question, choices[1].clone()), "{name}");
    }
}

#[test]
fn winogrande_chooses_between_contexts() {
    let task = task("winogrande");
    let doc = doc(json!({"context_options": ["so Sarah", "so Maria"], "continuation": "won.", "gold": 0}));
    let questions = vec!["so Sarah".to_owned(), "so Maria".to_owned()];
    assert_eq!(task.question(&doc), TaskQuestion::ChooseContext { questions, continuation: "won.".to_owned() });
    assert_eq!(score(&*task, &doc, &likely(0, 2)), [1.0]);
    assert_eq!(score(&*task, &doc, &likely(1, 2)), [0.0]);
    assert_eq!(task.example(&doc), ("so Sarah".to_owned(), "won.".to_owned()));
}

#[test]
fn lambada_wants_the_last_word_greedily() {
    let task = task("lambada");
    let doc = doc(json!({"context": "I don't care about", "continuation": "signs"}));
    let TaskQuestion::Continue { continuation, .. } = task.question(&doc) else { panic!("a continuation") };
    assert_eq!(continuation, " signs");
    assert_eq!(score(&*task, &doc, &likely(0, 1)), [-1.0, 1.0]);
    assert_eq!(score(&*task, &doc, &likely(1, 1)), [-200.0, 0.0]);
}

#[test]
fn mmlu_letters_its_choices() {
    let task = task("mmlu_college_physics");
    let doc = doc(json!({
        "question": " What? ", "choice0": "w", "choice1": "x", "choice2": "y", "choice3": "z", "answer": "2"
    }));
    let TaskQuestion::Choose { question, choices } = task.question(&doc) else { panic!("a choice") };
    assert_eq!(question, "What?\nA. w\nB. x\nC. y\nD. z\nAnswer:");
    assert_eq!(choices, ["A", "B", "C", "D"]);
    assert!(task.info().description.contains("about college physics."));
    assert_eq!(score(&*task, &doc, &likely(2, 4)), [1.0]);
    assert_eq!(score(&*task, &doc, &likely(3, 4)), [0.0]);
    assert_eq!(task.example(&doc).1, "C");
}

#[test]
fn wikitext_counts_the_words_of_the_original() {
    let task = task("wikitext");
    let doc = doc(json!({"page": " = T = \n a , b\n"}));
    assert_eq!(task.question(&doc), TaskQuestion::Rolling { text: " = T =\na, b\n".to_owned() });
    let metrics = task.grade(&doc, &[EvalResponse::Rolling { logprob: -16.0, tokens: 4 }]).expect("graded").metrics;
    assert_eq!(metrics["word_perplexity,none"].number(), -2.0, "8 pieces, two of them empty");
    assert_eq!(metrics["byte_perplexity,none"].number(), -16.0 / 15.0);
}

fn found(names: &[&str]) -> Result<Vec<Box<dyn Task>>> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    find(&names, Programs::default())
}

#[test]
fn mathematics_reads_final_answers() {
    let row = doc(
        json!({"problem": "What is it?", "solution": "So it is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}"}),
    );
    let minerva = task("minerva_math500");
    let TaskQuestion::Generate { question, until, .. } = minerva.question(&row) else { panic!("a generation") };
    assert_eq!((question.as_str(), until[0].as_str()), ("Problem:\nWhat is it?\n\nSolution:", "Problem:"));
    let crate::task::FewShot::Fixed(pairs) = &minerva.info().few_shot else { panic!("fixed examples") };
    assert!(pairs.len() == 4 && pairs[3].1.contains("I hope it is correct."));
    let said = " Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.";
    assert_eq!(score(&*minerva, &row, &text(said)), [1.0, 1.0]);
    assert_eq!(score(&*minerva, &row, &text("It is \\boxed{0.5}")), [0.0, 1.0]);
    assert_eq!(score(&*minerva, &row, &text(&said.replace("{2}", "{3}"))), [0.0, 0.0]);
    let boxed = task("math500");
    assert_eq!(score(&*boxed, &row, &text("\\boxed{3} no, \\boxed{\\dfrac{1}{2}}.")), [1.0]);
    assert_eq!(score(&*boxed, &row, &text("\\frac{1}{2}")), [0.0], "no box");
    let number = doc(json!({"problem": "How many?", "answer": "025"}));
    assert_eq!(score(&*task("aime24"), &number, &text("\\boxed{25}")), [1.0, 1.0]);
    assert_eq!(score(&*task("aime24"), &number, &text("\\boxed{26}")), [0.0, 0.0]);
    let decimal = doc(json!({"problem": "How many?", "answer": 27.0}));
    assert_eq!(score(&*task("amc23"), &decimal, &text("It is $27$.")), [1.0, 1.0]);
    assert_eq!(score(&*task("amc23"), &decimal, &text("It is $28$.")), [0.0, 0.0]);
}

#[test]
fn humaneval_runs_the_tests() {
    let programs = Programs { isolation: Isolation::None, answers: 10 };
    let task = find(&["humaneval".to_owned()], programs).expect("a task").remove(0);
    let row = doc(json!({
        "prompt": "def twice(x):\n", "entry_point": "twice", "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n",
    }));
    assert_eq!(score(&*task, &row, &text("    return x + x")), [1.0, 1.0]);
    for wrong in ["    return 3 * x", "    return", "  syntax error", "    raise SystemExit(0)"] {
        assert_eq!(score(&*task, &row, &text(wrong)), [0.0, 0.0], "{wrong}");
    }
    let answers: Vec<EvalResponse> =
        (0..10).flat_map(|i| text(if i < 2 { "    return 2 * x" } else { "    return 0" })).collect();
    let outcome = crate::run::repeats::grade(&*task, &row, &answers).expect("graded");
    assert_eq!(outcome.metrics["pass@1,create_test"].number(), 0.2);
    assert_eq!(outcome.metrics["pass@10,create_test"].number(), 1.0, "one of the ten is right");
}

#[test]
fn names_are_tasks_groups_or_files() {
    assert_eq!(found(&["mmlu"]).expect("a group").len(), 57);
    assert_eq!(found(&["mmlu_stem", "mmlu_anatomy"]).expect("once each").len(), 19);
    let refusal = found(&["gsm8"]).err().expect("no such task").to_string();
    assert!(refusal.contains("did you mean `gsm8k`"), "{refusal}");
    let all: Vec<String> = all(Programs::default()).iter().map(|task| task.info().name.clone()).collect();
    assert_eq!(all, names(), "the table's names");
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a name for each");
}

#[test]
fn a_row_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("arc_easy")).expect("made");
    let write = |text: &str| std::fs::write(folder.path().join("arc_easy/arc_easy.jsonl"), text).expect("written");
    let load = || task("arc_easy").load(&DataFolder::new(folder.path().to_owned(), true)).expect_err("bad").to_string();
    let row = "{\"query\": \"Question: Why?\", \"choices\": [\"a\"], \"gold\": 0}\n";
    write(&format!("{row}{{\"query\": \"Question: Why?\", \"choices\": [\"a\"], \"gold\": 1}}\n"));
    assert!(load().contains("arc_easy.jsonl:2") && load().contains("\"1\""), "{}", load());
    write(&format!("{row}{{\"query\": \"Question: Why?\", \"choices\": \"a\", \"gold\": 0}}\n"));
    assert!(load().contains("`choices`"), "{}", load());
    write("{\"choices\": [\"a\"], \"gold\": 0}\n");
    assert!(load().contains("arc_easy.jsonl:1") && load().contains("undefined"), "{}", load());
}
