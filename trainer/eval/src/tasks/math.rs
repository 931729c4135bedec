//! Mathematics with a final answer: MATH-500, AIME 2024, AMC 2023.

use serde::Deserialize;
use serde_json::Value;

use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::grade::{answer, boxed, competition, hendrycks, minerva};
use crate::stats::metric::{Metric, MetricValue};
use crate::task::outcome::Grade;
use crate::task::question::{EvalResponse, TaskQuestion};
use crate::task::{Docs, FewShot, Task, TaskInfo};
use crate::{Error, Result};

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// MATH-500 with four worked examples, as lm-evaluation-harness prompts base models.
    Minerva,
    /// MATH-500 without examples: the answer in a box.
    Boxed,
    Aime,
    Amc,
}

pub(super) const SETS: [Set; 4] = [Set::Minerva, Set::Boxed, Set::Aime, Set::Amc];

/// One of the sets.
pub(super) struct Mathematics {
    info: TaskInfo,
    set: Set,
}

const EXAMPLES: &str = include_str!("minerva_examples.toml");
const IN_A_BOX: &str = "\nPlease reason step by step, and put your final answer within \\boxed{}.";

#[derive(Deserialize)]
struct Examples {
    example: Vec<Example>,
}

#[derive(Deserialize)]
struct Example {
    question: String,
    answer: String,
}

fn examples() -> Vec<(String, String)> {
    let examples: Examples = toml::from_str(EXAMPLES).expect("a built-in file, which a test reads");
    examples.example.into_iter().map(|example| (example.question, example.answer)).collect()
}

/// Equality as mathematics, beside the library's of texts.
const EQUAL: &str = "math_equal";
const EXACT: &str = "exact_match";

impl Mathematics {
    pub(super) fn new(set: Set) -> Self {
        let (name, version, about, shots) = match set {
            Set::Minerva => ("minerva_math500", "3.1", "competition mathematics, four worked examples", 4),
            Set::Boxed => ("math500", "1.0", "competition mathematics without examples, the answer in a box", 0),
            Set::Aime => ("aime24", "0.0", "AIME 2024, whole numbers; answers are long", 0),
            Set::Amc => ("amc23", "1.0", "AMC 2023, numbers", 0),
        };
        let metrics = match set {
            Set::Boxed => vec![Metric::mean(EQUAL)],
            Set::Minerva | Set::Aime | Set::Amc => vec![Metric::mean(EXACT), Metric::mean(EQUAL)],
        };
        let info = TaskInfo {
            name: name.to_owned(),
            version: version.to_owned(),
            group: None,
            about: about.to_owned(),
            description: String::new(),
            few_shot: if shots > 0 { FewShot::Fixed(examples()) } else { FewShot::None },
            shots,
            metrics,
        };
        Self { info, set }
    }

    fn file(&self) -> &'static str {
        match self.set {
            Set::Minerva | Set::Boxed => "math500/test.jsonl",
            Set::Aime => "aime24/test.jsonl",
            Set::Amc => "amc23/test.jsonl",
        }
    }

    fn question(&self, doc: &Doc) -> String {
        let problem = text(doc, "problem");
        match self.set {
            Set::Minerva => format!("Problem:\n{problem}\n\nSolution:"),
            Set::Boxed => format!("{problem}{IN_A_BOX}"),
            Set::Aime | Set::Amc => format!("Question: {problem}\nAnswer:"),
        }
    }

    /// The right answer, in the form that its set compares.
    fn gold(&self, doc: &Doc) -> String {
        match self.set {
            Set::Minerva => minerva::gold(&text(doc, "solution")).unwrap_or_default(),
            Set::Boxed | Set::Aime | Set::Amc => text(doc, "answer"),
        }
    }
}

/// A field as text; numbers as JSON writes them.
fn text(doc: &Doc, field: &str) -> String {
    match doc.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

impl Task for Mathematics {
    fn info(&self) -> &TaskInfo {
        &self.info
    }

    fn load(&self, data: &DataFolder) -> Result<Docs> {
        let fields: &[&str] = if self.set == Set::Minerva { &["problem", "solution"] } else { &["problem", "answer"] };
        let test = data.json_lines(self.file(), fields)?;
        if let Some(index) = test.iter().position(|doc| self.gold(doc).is_empty()) {
            let what = "there is no final answer to compare with".to_owned();
            return Err(Error::from(command::Error::Data {
                path: data.root().join(self.file()),
                line: Some(index + 1),
                what,
            }));
        }
        Ok(Docs { test, pool: Vec::new() })
    }

    fn question(&self, doc: &Doc) -> TaskQuestion {
        let (until, max_tokens): (&[&str], _) = match self.set {
            Set::Minerva => (&["Problem:"], None),
            Set::Boxed => (&["</s>", "<|im_end|>", "<|eot_id|>"], Some(2048)),
            Set::Aime | Set::Amc => (&["Question:", "</s>", "<|im_end|>", "<|eot_id|>"], Some(32768)),
        };
        let until = until.iter().map(|stop| (*stop).to_owned()).collect();
        TaskQuestion::Generate { question: self.question(doc), until, max_tokens }
    }

    fn example(&self, doc: &Doc) -> (String, String) {
        (self.question(doc), text(doc, "solution"))
    }

    fn grade(&self, doc: &Doc, responses: &[EvalResponse]) -> Result<Grade> {
        let response = responses.first().map_or("", EvalResponse::text);
        let gold = self.gold(doc);
        let extracted = match self.set {
            Set::Minerva => minerva::extract(response),
            Set::Boxed => boxed::last_boxed(response).unwrap_or_default().to_owned(),
            Set::Aime | Set::Amc => hendrycks::boxed_or_dollars(response).to_owned(),
        };
        let number = |right: bool| MetricValue::Number(f64::from(u8::from(right)));
        let mut outcome = Grade { gold: gold.clone(), ..Grade::default() };
        let mut report = |metric: &str, right: bool| outcome.metrics.insert(format!("{metric},none"), number(right));
        match self.set {
            Set::Minerva => {
                report(EXACT, minerva::is_equiv(&extracted, &gold));
                // A model that puts its answer in a box and does not say the final words is right all the same.
                let boxed = boxed::last_boxed(response).map(str::to_owned);
                let said = boxed::final_answer(response).or(boxed).unwrap_or_default();
                report(EQUAL, answer::math_equal(&said, &text(doc, "answer")));
            }
            Set::Boxed => _ = report(EQUAL, answer::math_equal(&extracted, &gold)),
            Set::Aime | Set::Amc => {
                report(EXACT, competition::exact(&extracted, &gold));
                report(EQUAL, competition::equal(&extracted, &gold));
            }
        }
        outcome.extracted.insert("none".to_owned(), extracted);
        Ok(outcome)
    }
}
