//! The graders beside the programs that they follow: `scripts/fixtures/make_grade.py` says what a row is.

use std::path::Path;

use serde_json::Value;

use super::{answer, hendrycks, minerva};

struct Row {
    gold: String,
    answer: String,
    right: Option<bool>,
    normal: [String; 2],
    minerva: bool,
    hendrycks: bool,
}

fn rows(text: &str) -> Vec<Row> {
    let rows: Vec<Vec<Value>> = serde_json::from_str(text).expect("rows");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let flag = |value: &Value| value.as_i64().map(|number| number == 1);
    let row = |row: Vec<Value>| Row {
        gold: text(&row[0]),
        answer: text(&row[1]),
        right: flag(&row[2]),
        normal: [text(&row[3]), text(&row[4])],
        minerva: flag(&row[5]).expect("a verdict"),
        hendrycks: flag(&row[6]).expect("a verdict"),
    };
    rows.into_iter().map(row).collect()
}

/// Where minerva's verdicts differ, with ours.
fn differences(rows: &[Row]) -> Vec<(String, String, bool)> {
    let ours = |row: &Row| minerva::is_equiv(&row.normal[1], &row.normal[0]);
    let differs = rows.iter().filter(|row| ours(row) != row.minerva);
    differs.map(|row| (row.normal[0].clone(), row.normal[1].clone(), ours(row))).collect()
}

fn check(rows: &[Row]) {
    for row in rows {
        let normal = [minerva::normalize(&row.gold), minerva::normalize(&row.answer)];
        assert_eq!(normal, row.normal, "{} {}", row.gold, row.answer);
        assert_eq!(hendrycks::is_equiv(&row.answer, &row.gold), row.hendrycks, "{} {}", row.gold, row.answer);
        if let Some(right) = row.right {
            assert_eq!(answer::math_equal(&row.gold, &row.answer), right, "{} {}", row.gold, row.answer);
        }
    }
}

#[test]
fn verdicts_are_those_of_lm_eval() {
    let rows = rows(include_str!("../../../../tests/fixtures/grade.json"));
    assert_eq!(rows.len(), 700);
    check(&rows);
    assert_eq!(differences(&rows), []);
}

/// All pairs: `scripts/fixtures/make_grade.py --all FILE`, then `ARLE_GRADE_FIXTURES=FILE`.
#[test]
#[ignore = "wants the whole file of fixtures"]
fn all_verdicts_are_those_of_lm_eval_but_for_five() {
    let path = std::env::var("ARLE_GRADE_FIXTURES").expect("ARLE_GRADE_FIXTURES");
    let lines = std::fs::read_to_string(Path::new(&path)).expect("the file");
    let rows = rows(&format!("[{}]", lines.lines().collect::<Vec<_>>().join(",")));
    check(&rows);
    let known = [
        // Read or not by what sympy's reader met before them: in a new process all three are read.
        ("1.25", "1.25.", true),
        ("0.15", "0.15.", true),
        // A float of sixteen digits whose difference to the quotient rounds to nought.
        (r"\frac{3840}{289}", "13.28719723183391", false),
        ("3.21", "3.21.", true),
        // An unclosed brace, from which sympy's reader does not step back.
        (r"\begin{pmatrix}1/5\-18/5\end{pmatrix}", r"\begin{pmatrix1/5\-18/5\end{pmatrix}}", true),
    ];
    assert_eq!(differences(&rows), known.map(|(gold, answer, ours)| (gold.to_owned(), answer.to_owned(), ours)));
}
