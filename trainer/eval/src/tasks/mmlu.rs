//! MMLU: 57 subjects with four lettered answers each, and the groups that they belong to.

use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::stats::metric::Metric;
use crate::task::grading;
use crate::task::outcome::Grade;
use crate::task::question::{EvalResponse, TaskQuestion};
use crate::task::{Docs, FewShot, Task, TaskInfo};
use crate::{Error, Result};

/// Groups of subjects, as lm-evaluation-harness has them.
pub(super) const GROUPS: [(&str, &[&str]); 4] = [
    (
        "mmlu_stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "mmlu_other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "mmlu_social_sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "mmlu_humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
];

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
const ANSWER: &str = "answer";

/// One subject.
pub(super) struct Subject {
    info: TaskInfo,
    subject: &'static str,
}

impl Subject {
    pub(super) fn new(subject: &'static str, group: &str) -> Self {
        let topic = subject.replace('_', " ");
        let info = TaskInfo {
            name: format!("mmlu_{subject}"),
            version: "1.0".to_owned(),
            group: Some(group.to_owned()),
            about: format!("exam questions about {topic}, four lettered answers"),
            description: format!("The following are multiple choice questions (with answers) about {topic}.\n\n"),
            few_shot: FewShot::First,
            shots: 0,
            metrics: vec![Metric::mean("acc")],
        };
        Self { info, subject }
    }

    fn rows(&self, data: &DataFolder, split: &str) -> Result<Vec<Doc>> {
        let file = format!("mmlu/{split}/{}_{split}.csv", self.subject);
        let rows = data.csv_in(&format!("mmlu/{split}"), &file)?;
        let bad = |index: usize, what: String| {
            Error::from(command::Error::Data {
                path: data.root().join(&file),
                line: None,
                what: format!("question {}: {what}", index + 1),
            })
        };
        for (index, row) in rows.iter().enumerate() {
            if let Some(field) = ["question", "choice0", "choice1", "choice2", "choice3", ANSWER]
                .into_iter()
                .find(|field| !row.contains_key(*field))
            {
                return Err(bad(index, format!("there is no column `{field}`")));
            }
            if gold(row) >= LETTERS.len() {
                return Err(bad(index, format!("the answer is {}, must be from 0 to 3", row[ANSWER])));
            }
        }
        Ok(rows)
    }
}

fn gold(doc: &Doc) -> usize {
    doc.get(ANSWER).and_then(|answer| answer.as_str()?.trim().parse().ok()).unwrap_or(usize::MAX)
}

fn question(doc: &Doc) -> String {
    let field = |name: &str| doc.get(name).and_then(|value| value.as_str()).unwrap_or_default();
    let choices: String =
        LETTERS.iter().enumerate().map(|(i, letter)| format!("{letter}. {}\n", field(&format!("choice{i}")))).collect();
    format!("{}\n{choices}Answer:", field("question").trim())
}

impl Task for Subject {
    fn info(&self) -> &TaskInfo {
        &self.info
    }

    fn load(&self, data: &DataFolder) -> Result<Docs> {
        Ok(Docs { test: self.rows(data, "test")?, pool: self.rows(data, "dev")? })
    }

    fn question(&self, doc: &Doc) -> TaskQuestion {
        TaskQuestion::Choose { question: question(doc), choices: LETTERS.map(str::to_owned).to_vec() }
    }

    fn example(&self, doc: &Doc) -> (String, String) {
        (question(doc), LETTERS[gold(doc)].to_owned())
    }

    fn grade(&self, doc: &Doc, responses: &[EvalResponse]) -> Result<Grade> {
        Ok(grading::choice(&LETTERS.map(str::to_owned), gold(doc), responses, false))
    }
}
