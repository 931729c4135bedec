//! Tasks beside the programs that they follow, on whole responses: `scripts/fixtures/make_grade.py` says what a row is. And
//! HumanEval beside itself.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::task::outcome::Grade;
use crate::task::question::EvalResponse;
use crate::tasks::{Isolation, Programs, Task, find};

fn task(name: &str) -> Box<dyn Task> {
    find(&[name.to_owned()], Programs::default()).expect("a task").remove(0)
}

fn graded(task: &dyn Task, doc: &Doc, response: &str) -> Grade {
    let (text, finish_reason) = (response.to_owned(), "stop".to_owned());
    let said =
        EvalResponse::Text { text, finish_reason, prompt_tokens: 1, token_ids: Vec::new(), logprobs: Vec::new() };
    task.grade(doc, &[said]).expect("graded")
}

/// A document whose right answer is `gold`.
fn doc(task: &str, gold: &str) -> Doc {
    let row = match task {
        "minerva_math500" => json!({"problem": "?", "solution": format!("\\boxed{{{gold}}}"), "answer": gold}),
        "aime24" => json!({"problem": "?", "answer": gold}),
        _ => json!({"question": "?", "answer": gold}),
    };
    row.as_object().expect("an object").clone()
}

#[test]
fn responses_are_read_and_graded_as_by_lm_eval() {
    let rows: Vec<Vec<Value>> =
        serde_json::from_str(include_str!("../../../../tests/fixtures/responses.json")).expect("rows");
    assert_eq!(rows.len(), 900);
    let mut other = Vec::new();
    for row in &rows {
        let [Value::String(name), Value::String(gold), Value::String(response), verdicts @ ..] = &row[..] else {
            panic!("{row:?}")
        };
        let outcome = graded(&*task(name), &doc(name, gold), response);
        for verdict in verdicts {
            let (filter, read) = (verdict[0].as_str().expect("a filter"), verdict[1].as_str());
            if let Some(read) = read {
                assert_eq!(outcome.extracted[filter], read, "{name}, {filter}: {response:?}");
            }
            let right = outcome.metrics[&format!("exact_match,{filter}")].number();
            if right != verdict[2].as_f64().expect("a score") {
                other.push((name.as_str(), gold.as_str(), response.as_str(), right));
            }
        }
    }
    assert_eq!(other, []);
}

/// `ARLE_DATA=DATA`, a folder with humaneval/HumanEval.jsonl.
#[test]
#[ignore = "wants the data of HumanEval, and ten minutes"]
fn humaneval_accepts_its_solutions_and_nothing_wrong() {
    let data = PathBuf::from(std::env::var_os("ARLE_DATA").expect("ARLE_DATA"));
    let programs = Programs { isolation: Isolation::Namespaces, answers: 1 };
    let task = find(&["humaneval".to_owned()], programs).expect("a task").remove(0);
    let docs = task.load(&DataFolder::new(data, false)).expect("the data").test;
    assert_eq!(docs.len(), 164);
    let wrong = [
        "    return None\n",
        "    raise SystemExit(0)\n",
        "    import os\n    os._exit(0)\n",
        "    import sys\n    sys.setrecursionlimit(10**9)\n    f = lambda: f()\n    return f()\n",
        "return\n",
    ];
    for doc in &docs {
        let verdict = |answer: &str| graded(&*task, doc, answer);
        let own = verdict(doc["canonical_solution"].as_str().expect("text"));
        assert_eq!(own.extracted["create_test"], "passed", "{}", doc["task_id"]);
        for answer in wrong {
            let verdict = verdict(answer);
            assert_eq!(verdict.metrics["pass@1,create_test"].number(), 0.0, "{}: {answer}", doc["task_id"]);
        }
    }
}
