//! What a task is.

pub(crate) mod definition;
pub(crate) mod grading;
pub(crate) mod outcome;
pub(crate) mod question;

use crate::Result;
use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::stats::metric::Metric;
use crate::task::outcome::Grade;
use crate::task::question::{EvalResponse, TaskQuestion};

/// The documents of a task.
#[derive(Debug, Clone, Default)]
pub struct Docs {
    /// What is evaluated.
    pub test: Vec<Doc>,
    /// What few-shot examples are drawn from; empty where the task has none or fixed ones.
    pub pool: Vec<Doc>,
}

/// Where few-shot examples come from.
#[derive(Debug, Clone, PartialEq)]
pub enum FewShot {
    /// Drawn from the pool, anew for every document, with one stream of random numbers a task.
    Random,
    /// Drawn from the tested documents themselves, without the one that is evaluated.
    RandomOthers,
    /// The first ones of the pool.
    First,
    /// Always these (question, answer) pairs.
    Fixed(Vec<(String, String)>),
    /// The task has none.
    None,
}

/// What is known of a task before its data is.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskInfo {
    /// Its name on the command line.
    pub name: String,
    /// Version of the definition, lm-evaluation-harness' number where it is its task.
    pub version: String,
    /// The group that reports a mean over several tasks.
    pub group: Option<String>,
    /// One line for people.
    pub about: String,
    /// Text before everything else.
    pub description: String,
    /// Where examples come from.
    pub few_shot: FewShot,
    /// Examples unless the command line has another number.
    pub shots: usize,
    /// What it reports, in this order. The first one is the task's score.
    pub metrics: Vec<Metric>,
}

/// A benchmark: documents, questions, grading.
pub trait Task: Send + Sync {
    /// Name, version, few-shot rule, metrics.
    fn info(&self) -> &TaskInfo;

    /// Reads its documents.
    ///
    /// # Errors
    /// A file that is missing, is not the known one, or has a row that the task cannot use.
    fn load(&self, data: &DataFolder) -> Result<Docs>;

    /// What is asked about a document.
    fn question(&self, doc: &Doc) -> TaskQuestion;

    /// A document as a few-shot example: its question and its answer.
    fn example(&self, doc: &Doc) -> (String, String);

    /// Grades the answers: one, or one for every choice.
    ///
    /// # Errors
    /// When a grader cannot do its work (a sandbox that does not start); a wrong answer is no error.
    fn grade(&self, doc: &Doc, responses: &[EvalResponse]) -> Result<Grade>;
}
