//! A task described in TOML: where its rows are, how they become prompts, how answers are read and compared.
//!
//! The built-in tasks that need no code of their own are such files (`tasks/*.toml`), so each of them is an example.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as JinjaValue};
use minijinja::{Environment, UndefinedBehavior};
use regex::Regex;
use runtime::text::{TemplateError, Templates};
use serde::Deserialize;

use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::stats::metric::{Aggregation, Metric};
use crate::task::grading::{self, ChosenMatch, Extract, Normal};
use crate::task::outcome::Grade;
use crate::task::question::{EvalResponse, TaskQuestion};
use crate::task::{Docs, FewShot, Task, TaskInfo};
use crate::{Error, Result};
use command::parse_errors::plain;

/// The file as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    name: String,
    version: String,
    about: String,
    kind: TaskKind,
    #[serde(default)]
    group: Option<String>,
    data: TaskData,
    prompt: PromptRules,
    #[serde(default)]
    few_shot: Shots,
    #[serde(default)]
    generate: Generate,
    #[serde(default)]
    extract: Vec<ExtractRule>,
    #[serde(default)]
    compare: Compare,
}

/// What is asked, lm-evaluation-harness' `output_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TaskKind {
    GenerateUntil,
    MultipleChoice,
    Loglikelihood,
    LoglikelihoodRolling,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskData {
    /// JSON lines that are asked.
    test: String,
    /// JSON lines that examples are drawn from.
    few_shot: Option<String>,
}

/// Jinja templates over a row's fields.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PromptRules {
    description: String,
    /// What is evaluated.
    question: String,
    /// Name of the field with the contexts to choose from, in place of `question`.
    contexts: Option<String>,
    /// Name of the field with the answers to choose from, or the answers.
    choices: Option<Choices>,
    /// The right answer: of a multiple choice its index, from 0.
    answer: String,
    /// The answer in an example, where it differs.
    example_answer: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Choices {
    Field(String),
    Fixed(Vec<String>),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Shots {
    count: usize,
    rule: TaskRule,
    /// Fixed examples.
    examples: Vec<Example>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    question: String,
    answer: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TaskRule {
    /// Drawn from `data.few_shot`, or from the other rows of `data.test`.
    #[default]
    Random,
    /// The first rows of `data.few_shot`, or of `few_shot.examples`.
    First,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Generate {
    until: Vec<String>,
    max_tokens: Option<usize>,
}

/// How an answer is read out of a text.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtractRule {
    name: String,
    regex: String,
    #[serde(default)]
    take: ChosenMatch,
}

/// How an answer is compared with the right one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Compare {
    ignore_case: bool,
    /// Regular expressions whose matches are taken out of both, one after another.
    ignore: Vec<String>,
}

/// A task from a TOML file.
pub(crate) struct Definition {
    info: TaskInfo,
    file: TaskFile,
    templates: Templates,
    extract: Vec<Extract>,
    normal: Normal,
    /// Where its data is; `None` is the folder of the built-in tasks' data.
    folder: Option<PathBuf>,
}

const QUESTION: &str = "prompt.question";
const ANSWER: &str = "prompt.answer";
const EXAMPLE_ANSWER: &str = "prompt.example_answer";

impl Definition {
    /// Reads a definition; `origin` names it in errors.
    ///
    /// # Errors
    /// TOML that is not a task, by key.
    pub(crate) fn parse(text: &str, origin: &str) -> Result<Self> {
        let error = |what: String| Error::from(command::Error::Syntax { origin: origin.to_owned(), what });
        let file: TaskFile = toml::from_str(text).map_err(|e| error(plain(&e.to_string())))?;
        check(&file).map_err(error)?;
        let regex = |text: &String| Regex::new(text).map_err(|e| error(e.to_string()));
        let extract = file
            .extract
            .iter()
            .map(|rule| Ok(Extract { name: rule.name.clone(), regex: regex(&rule.regex)?, take: rule.take }))
            .collect::<Result<Vec<_>>>()?;
        let ignore = file.compare.ignore.iter().map(regex).collect::<Result<_>>()?;
        let normal = Normal { ignore, ignore_case: file.compare.ignore_case };
        let templates = templates(&file.prompt).map_err(|e| error(e.to_string()))?;
        Ok(Self { info: info(&file), file, templates, extract, normal, folder: None })
    }

    /// The same, with data in `folder`.
    pub(crate) fn with_data_in(self, folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()), ..self }
    }

    fn render(&self, template: &'static str, doc: &Doc) -> Result<String> {
        let failed = |e: TemplateError| {
            Error::from(command::Error::Syntax {
                origin: format!("{} of task {}", template, self.info.name),
                what: e.to_string(),
            })
        };
        let row = doc.clone();
        let bytes = serde_json::to_vec(doc).map_or(0, |text| text.len());
        self.templates.render(template, bytes, move || JinjaValue::from(Serde(row))).map_err(failed)
    }

    fn question(&self, doc: &Doc) -> String {
        self.render(QUESTION, doc).unwrap_or_default()
    }

    fn answer(&self, doc: &Doc) -> String {
        self.render(ANSWER, doc).unwrap_or_default()
    }

    fn choices(&self, doc: &Doc) -> Vec<String> {
        match (&self.file.prompt.contexts, &self.file.prompt.choices) {
            (Some(field), _) | (None, Some(Choices::Field(field))) => strings(doc, field).unwrap_or_default(),
            (None, Some(Choices::Fixed(choices))) => choices.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// Index of the right choice.
    fn gold(&self, doc: &Doc) -> usize {
        let text = if self.file.prompt.contexts.is_some() { self.question(doc) } else { self.answer(doc) };
        text.trim().parse().unwrap_or(usize::MAX)
    }

    /// Looks at everything that asking and grading will need of a row, so that neither can fail later.
    fn check_row(&self, doc: &Doc) -> std::result::Result<(), String> {
        let text = |e: Error| e.to_string();
        let question = self.render(QUESTION, doc).map_err(text)?;
        let answer = self.render(ANSWER, doc).map_err(text)?;
        if self.file.prompt.example_answer.is_some() {
            self.render(EXAMPLE_ANSWER, doc).map_err(text)?;
        }
        if self.file.kind != TaskKind::MultipleChoice {
            return Ok(());
        }
        for field in [&self.file.prompt.contexts, &field_of(&self.file.prompt.choices)].into_iter().flatten() {
            strings(doc, field).ok_or_else(|| format!("`{field}` is not a list of texts"))?;
        }
        let (gold, count) = (self.gold(doc), self.choices(doc).len());
        if gold < count {
            return Ok(());
        }
        let index = if self.file.prompt.contexts.is_some() { question } else { answer };
        Err(format!("the index of the right answer is {index:?}, and there are {count} answers"))
    }

    fn rows(&self, data: &DataFolder, file: &str) -> Result<Vec<Doc>> {
        let rows = data.json_lines(file, &[])?;
        for (index, row) in rows.iter().enumerate() {
            self.check_row(row).map_err(|what| {
                Error::from(command::Error::Data {
                    path: data.root().join(file),
                    line: Some(index + 1),
                    what: format!("task {}: {what}", self.info.name),
                })
            })?;
        }
        Ok(rows)
    }
}

fn field_of(choices: &Option<Choices>) -> Option<String> {
    match choices {
        Some(Choices::Field(field)) => Some(field.clone()),
        Some(Choices::Fixed(_)) | None => None,
    }
}

fn strings(doc: &Doc, field: &str) -> Option<Vec<String>> {
    doc.get(field)?.as_array()?.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

fn templates(prompt: &PromptRules) -> Result<Templates, TemplateError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build().unwrap_or_default());
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let example = prompt.example_answer.iter().map(|answer| (EXAMPLE_ANSWER, answer.clone()));
    let sources = [(QUESTION, prompt.question.clone()), (ANSWER, prompt.answer.clone())];
    Templates::new(environment, sources.into_iter().chain(example).collect())
}

/// Keys that contradict each other.
fn check(file: &TaskFile) -> std::result::Result<(), String> {
    let choice = file.kind == TaskKind::MultipleChoice;
    let chooses = usize::from(file.prompt.contexts.is_some()) + usize::from(file.prompt.choices.is_some());
    if choice && chooses != 1 {
        return Err("a multiple_choice needs either prompt.choices or prompt.contexts".to_owned());
    }
    if !choice && chooses > 0 {
        return Err("prompt.choices and prompt.contexts are for kind = \"multiple_choice\"".to_owned());
    }
    if file.kind != TaskKind::GenerateUntil && !(file.extract.is_empty() && file.generate.until.is_empty()) {
        return Err("[[extract]] and [generate] are for kind = \"generate_until\"".to_owned());
    }
    let first = file.few_shot.count > 0 && file.few_shot.rule == TaskRule::First;
    if first && file.few_shot.examples.is_empty() && file.data.few_shot.is_none() {
        return Err("few_shot.rule = \"first\" needs data.few_shot or [[few_shot.examples]]".to_owned());
    }
    if !file.few_shot.examples.is_empty() && file.few_shot.rule != TaskRule::First {
        return Err("[[few_shot.examples]] need few_shot.rule = \"first\"".to_owned());
    }
    Ok(())
}

fn info(file: &TaskFile) -> TaskInfo {
    let pairs = file.few_shot.examples.iter().map(|e| (e.question.clone(), e.answer.clone())).collect::<Vec<_>>();
    let few_shot = match (file.few_shot.rule, pairs.is_empty(), &file.data.few_shot) {
        _ if file.kind == TaskKind::LoglikelihoodRolling => FewShot::None,
        (_, false, _) => FewShot::Fixed(pairs),
        (TaskRule::First, ..) => FewShot::First,
        (TaskRule::Random, _, Some(_)) => FewShot::Random,
        (TaskRule::Random, _, None) => FewShot::RandomOthers,
    };
    TaskInfo {
        name: file.name.clone(),
        version: file.version.clone(),
        group: file.group.clone(),
        about: file.about.clone(),
        description: file.prompt.description.clone(),
        few_shot,
        shots: file.few_shot.count,
        metrics: metrics(file),
    }
}

fn metrics(file: &TaskFile) -> Vec<Metric> {
    match file.kind {
        TaskKind::GenerateUntil if file.extract.is_empty() => vec![Metric::mean("exact_match")],
        TaskKind::GenerateUntil => {
            file.extract.iter().map(|rule| Metric::filtered("exact_match", &rule.name)).collect()
        }
        // The length of contexts does not bear on what follows them.
        TaskKind::MultipleChoice if file.prompt.contexts.is_some() => vec![Metric::mean("acc")],
        TaskKind::MultipleChoice => vec![Metric::mean("acc"), Metric::mean("acc_norm")],
        TaskKind::Loglikelihood => vec![Metric::low("perplexity", Aggregation::Perplexity), Metric::mean("acc")],
        TaskKind::LoglikelihoodRolling => grading::rolling_metrics(),
    }
}

impl Task for Definition {
    fn info(&self) -> &TaskInfo {
        &self.info
    }

    fn load(&self, data: &DataFolder) -> Result<Docs> {
        let own = self.folder.as_ref().map(|folder| DataFolder::new(folder.clone(), true));
        let data = own.as_ref().unwrap_or(data);
        let pool = match &self.file.data.few_shot {
            Some(file) => self.rows(data, file)?,
            None => Vec::new(),
        };
        Ok(Docs { test: self.rows(data, &self.file.data.test)?, pool })
    }

    fn question(&self, doc: &Doc) -> TaskQuestion {
        let generate = &self.file.generate;
        match self.file.kind {
            TaskKind::GenerateUntil => TaskQuestion::Generate {
                question: self.question(doc),
                until: generate.until.clone(),
                max_tokens: generate.max_tokens,
            },
            TaskKind::MultipleChoice if self.file.prompt.contexts.is_some() => {
                TaskQuestion::ChooseContext { questions: self.choices(doc), continuation: self.answer(doc) }
            }
            TaskKind::MultipleChoice => {
                TaskQuestion::Choose { question: self.question(doc), choices: self.choices(doc) }
            }
            TaskKind::Loglikelihood => {
                TaskQuestion::Continue { question: self.question(doc), continuation: self.answer(doc) }
            }
            TaskKind::LoglikelihoodRolling => TaskQuestion::Rolling { text: self.answer(doc) },
        }
    }

    fn example(&self, doc: &Doc) -> (String, String) {
        if self.file.prompt.contexts.is_some() {
            let context = self.choices(doc).get(self.gold(doc)).cloned().unwrap_or_default();
            return (context, self.answer(doc));
        }
        let answer = match (self.file.kind, &self.file.prompt.example_answer) {
            (_, Some(_)) => self.render(EXAMPLE_ANSWER, doc).unwrap_or_default(),
            (TaskKind::MultipleChoice, None) => self.choices(doc).get(self.gold(doc)).cloned().unwrap_or_default(),
            (_, None) => self.answer(doc),
        };
        (self.question(doc), answer)
    }

    fn grade(&self, doc: &Doc, responses: &[EvalResponse]) -> Result<Grade> {
        Ok(match self.file.kind {
            TaskKind::GenerateUntil => grading::exact_match(&self.answer(doc), responses, &self.extract, &self.normal),
            TaskKind::MultipleChoice => {
                let lengths = self.file.prompt.contexts.is_none();
                grading::choice(&self.choices(doc), self.gold(doc), responses, lengths)
            }
            TaskKind::Loglikelihood => grading::continuation(&self.answer(doc), responses),
            TaskKind::LoglikelihoodRolling => {
                let text = self.answer(doc);
                let words = text.split_whitespace().count();
                let metrics = grading::rolling(responses, words, text.len());
                Grade { extracted: BTreeMap::new(), gold: String::new(), metrics }
            }
        })
    }
}

#[cfg(test)]
mod tests;
