//! Two runs side by side.

use serde_json::json;

use super::{Data, run, samples};
use crate::support::arle;

#[test]
fn runs_are_compared_document_by_document() {
    let data = Data::new();
    let (a, b) = (data.name("a"), data.name("b"));
    run(&data.eval(&["--tasks", "arc_easy,lambada", "--out", &a])).ok();
    run(&data.eval(&["--tasks", "arc_easy", "--num-fewshot", "2", "--out", &b])).ok();
    let compared = arle(&["eval", "--compare", &a, &b, "--json"]).object();
    let row = &compared.as_array().expect("rows")[0];
    let right = |folder: &str| -> Vec<bool> {
        samples(data.path(&format!("{folder}/samples_arc_easy.jsonl")))
            .iter()
            .map(|sample| sample["correct"] == true)
            .collect()
    };
    let (first, second) = (right("a"), right("b"));
    let differ =
        |sign: bool| -> Vec<usize> { (0..8).filter(|&i| first[i] != second[i] && second[i] == sign).collect() };
    assert_eq!((&row["task"], &row["metric"], &row["n"]), (&json!("arc_easy"), &json!("acc,none"), &json!(8)));
    assert_eq!((&row["gained"], &row["lost"]), (&json!(differ(true)), &json!(differ(false))));
    assert_eq!(row["test"], "McNemar, exact");
    let same = arle(&["eval", "--compare", &a, &a]).ok();
    assert!(same.contains("lambada") && same.matches("within noise").count() == 4, "{same}");

    let c = data.name("c");
    run(&data.eval(&["--tasks", "arc_easy", "--limit", "3", "--out", &c])).ok();
    arle(&["eval", "--compare", &a, &c]).refused(1, &["arc_easy", "(8)", "(3)", "--limit"]);
    arle(&["eval", "--compare", &a, &data.name("gsm8k")]).refused(1, &["no task in common"]);
}
