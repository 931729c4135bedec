//! HumanEval: Python functions to complete, judged by running their tests in the sandbox.

use std::sync::OnceLock;

use crate::Result;
use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::sandbox::{Isolation, ResourceLimits, Sandbox};
use crate::stats::metric::{Metric, MetricValue};
use crate::task::outcome::Grade;
use crate::task::question::{EvalResponse, TaskQuestion};
use crate::task::{Docs, FewShot, Task, TaskInfo};
use crate::tasks::Programs;

const FILE: &str = "humaneval/HumanEval.jsonl";
/// The library's name for what joins prompt and completion.
const FILTER: &str = "create_test";
/// pass@k is reported for these, as far as there are answers.
const REPORTED: [usize; 4] = [1, 10, 64, 100];
const FIELDS: [&str; 4] = ["prompt", "test", "entry_point", "canonical_solution"];

/// The task.
pub(super) struct HumanEval {
    info: TaskInfo,
    isolation: Isolation,
    /// Opened with the data, so that a machine that cannot isolate programs is refused before anything runs.
    sandbox: OnceLock<Sandbox>,
}

impl HumanEval {
    pub(super) fn new(Programs { isolation, answers }: Programs) -> Self {
        let metric = |k: &usize| Metric::filtered(&format!("pass@{k}"), FILTER);
        let info = TaskInfo {
            name: "humaneval".to_owned(),
            version: "1.0".to_owned(),
            group: None,
            about: "Python functions to complete; their tests run in a sandbox".to_owned(),
            description: String::new(),
            few_shot: FewShot::None,
            shots: 0,
            metrics: REPORTED.iter().filter(|k| **k <= answers).map(metric).collect(),
        };
        Self { info, isolation, sandbox: OnceLock::new() }
    }

    fn sandbox(&self) -> Result<&Sandbox> {
        if let Some(sandbox) = self.sandbox.get() {
            return Ok(sandbox);
        }
        let sandbox = Sandbox::open(self.isolation, ResourceLimits::default())?;
        Ok(self.sandbox.get_or_init(|| sandbox))
    }
}

fn text<'a>(doc: &'a Doc, field: &str) -> &'a str {
    doc.get(field).and_then(|value| value.as_str()).unwrap_or_default()
}

impl Task for HumanEval {
    fn info(&self) -> &TaskInfo {
        &self.info
    }

    fn load(&self, data: &DataFolder) -> Result<Docs> {
        self.sandbox()?;
        Ok(Docs { test: data.json_lines(FILE, &FIELDS)?, pool: Vec::new() })
    }

    fn question(&self, doc: &Doc) -> TaskQuestion {
        let until = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"].map(str::to_owned).to_vec();
        TaskQuestion::Generate { question: text(doc, "prompt").to_owned(), until, max_tokens: Some(1024) }
    }

    fn example(&self, doc: &Doc) -> (String, String) {
        (text(doc, "prompt").to_owned(), text(doc, "canonical_solution").to_owned())
    }

    fn grade(&self, doc: &Doc, responses: &[EvalResponse]) -> Result<Grade> {
        let solution = format!("{}{}", text(doc, "prompt"), responses.first().map_or("", EvalResponse::text));
        let check = format!("{}\ncheck({})", text(doc, "test"), text(doc, "entry_point"));
        let verdict = self.sandbox()?.run(&format!("{solution}\n{check}"))?;
        let passed = MetricValue::Number(f64::from(u8::from(verdict.passed())));
        Ok(Grade {
            extracted: [(FILTER.to_owned(), verdict.to_string())].into(),
            gold: "passed".to_owned(),
            metrics: self.info.metrics.iter().map(|metric| (metric.key(), passed)).collect(),
        })
    }
}
