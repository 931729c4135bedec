//! The data sets of the hub that lm-evaluation-harness 0.4.13 uses, as rows of the tasks' files.
//!
//! The hub keeps every public data set as Parquet too, whatever it was uploaded as: on the branch `refs/convert/parquet`, in
//! a file `CONFIGURATION/SPLIT/0000.parquet`, and more where a part is larger than any of these.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use regex::Regex;
use runtime::source::DataSet;
use runtime::{read, sums};
use serde_json::{Value, json};

use crate::data::doc::Doc;
use crate::{Error, Result};
use command::progress::Progress;
use data::parquet;

/// Branch of the hub's own Parquet files.
const PARQUET: &str = "refs/convert/parquet";

/// How a row of the hub becomes one of the tasks' file; the error names what it lacks.
type Convert = fn(Doc) -> Result<Doc, String>;

/// What stands for a file.
struct Split {
    repo: &'static str,
    configuration: String,
    split: &'static str,
    convert: Convert,
}

/// Rows and where they are from.
pub(crate) struct HubRows {
    pub(crate) docs: Vec<Doc>,
    /// `hf:org/name@commit/configuration/split`.
    pub(crate) source: String,
    /// SHA-256 of its file.
    pub(crate) sum: String,
}

/// The tasks' data sets, each opened once.
pub(crate) struct Hub {
    sets: Mutex<BTreeMap<&'static str, DataSet>>,
    progress: Progress,
}

impl Hub {
    pub(crate) fn new(progress: Progress) -> Self {
        Self { sets: Mutex::default(), progress }
    }

    /// The rows that stand for a file of the tasks' data, downloaded unless they are in the hub's cache.
    ///
    /// # Errors
    /// A file that no data set of the hub stands for; one that cannot be had, or has other columns.
    pub(crate) fn rows(&self, file: &str) -> Result<HubRows> {
        let split = split(file).ok_or_else(|| {
            let what = "no data set of the hub is known to have it; name a folder that does with --data (`eval.data`)";
            Error::from(command::Error::Data { path: PathBuf::from(file), line: None, what: what.to_owned() })
        })?;
        let say = |line: &str| self.progress.line(line);
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if !sets.contains_key(split.repo) {
            sets.insert(split.repo, DataSet::open(&format!("hf:{}@{PARQUET}", split.repo), &say)?);
        }
        let set = &sets[split.repo];
        let place = format!("{}/{}", split.configuration, split.split);
        let folder = set.get_folder(&place, &say)?;
        let commit = set.snapshot().file_name().unwrap_or_default().to_string_lossy().into_owned();
        read(&split, folder, format!("hf:{}@{commit}/{place}", split.repo))
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

fn read(split: &Split, folder: PathBuf, source: String) -> Result<HubRows> {
    let refuse = |line: Option<usize>, what: String| {
        Error::from(command::Error::Data { path: PathBuf::from(&source), line, what })
    };
    let entries = fs::read_dir(&folder).map_err(|e| refuse(None, format!("the hub has no such part: {e}")))?;
    let files = entries.collect::<std::io::Result<Vec<_>>>().map_err(Error::io(&folder))?;
    // Without the hub it is not known whether all files of a larger part are in the cache.
    let [file] = files.as_slice() else {
        return Err(refuse(None, format!("is in {} files, must be in one", files.len())));
    };
    let path = file.path();
    let sum = sums::of_bytes(&read::bytes(&path, read::TEXT)?);
    let rows = parquet::objects(&path, None)?.into_iter().enumerate();
    let docs: Vec<Doc> = rows
        .map(|(index, row)| (split.convert)(row).map_err(|what| refuse(Some(index + 1), what)))
        .collect::<Result<_>>()?;
    if docs.is_empty() {
        return Err(refuse(None, "has no rows".to_owned()));
    }
    Ok(HubRows { docs, source, sum })
}

fn split(file: &str) -> Option<Split> {
    let (repo, configuration, split, convert): (_, _, _, Convert) = match file {
        "gsm8k/train.jsonl" => ("openai/gsm8k", "main", "train", Ok),
        "gsm8k/test.jsonl" => ("openai/gsm8k", "main", "test", Ok),
        "math500/test.jsonl" => ("HuggingFaceH4/MATH-500", "default", "test", Ok),
        "humaneval/HumanEval.jsonl" => ("openai/openai_humaneval", "openai_humaneval", "test", Ok),
        "aime24/test.jsonl" => ("Maxwell-Jia/AIME_2024", "default", "train", aime),
        "arc_easy/arc_easy.jsonl" => ("allenai/ai2_arc", "ARC-Easy", "test", arc),
        "arc_challenge/arc_challenge.jsonl" => ("allenai/ai2_arc", "ARC-Challenge", "test", arc),
        "openbookqa/openbook_qa.jsonl" => ("allenai/openbookqa", "main", "test", openbookqa),
        "hellaswag/val.jsonl" => ("Rowan/hellaswag", "default", "validation", hellaswag),
        "piqa/piqa.jsonl" => ("baber/piqa", "default", "validation", piqa),
        "winogrande/winogrande.jsonl" => ("allenai/winogrande", "winogrande_xl", "validation", winogrande),
        "boolq/boolq.jsonl" => ("aps/super_glue", "boolq", "validation", boolq),
        "lambada/lambada_openai.jsonl" => ("EleutherAI/lambada_openai", "default", "test", lambada),
        "wikitext2/test.txt" => ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", wikitext),
        _ => return mmlu_split(file),
    };
    Some(Split { repo, configuration: configuration.to_owned(), split, convert })
}

/// `mmlu/test/SUBJECT_test.csv` and `mmlu/dev/SUBJECT_dev.csv`.
fn mmlu_split(file: &str) -> Option<Split> {
    let (folder, name) = file.strip_prefix("mmlu/")?.split_once('/')?;
    let split = ["test", "dev"].into_iter().find(|split| *split == folder)?;
    let configuration = name.strip_suffix(&format!("_{split}.csv"))?.to_owned();
    Some(Split { repo: "cais/mmlu", configuration, split, convert: mmlu })
}

fn text<'a>(row: &'a Doc, column: &str) -> Result<&'a str, String> {
    row.get(column).and_then(Value::as_str).ok_or_else(|| format!("has no text `{column}`"))
}

fn texts(row: &Doc, column: &str) -> Result<Vec<String>, String> {
    let list = row.get(column).and_then(Value::as_array);
    let list = list.and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
    list.ok_or_else(|| format!("has no list of texts `{column}`"))
}

/// A whole number, written as one or as text.
fn number(row: &Doc, column: &str) -> Result<u64, String> {
    let value = row.get(column).and_then(|value| value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()));
    value.ok_or_else(|| format!("has no number `{column}`"))
}

fn doc<const N: usize>(fields: [(&str, Value); N]) -> Doc {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Answers of `choices`, and which of them `answerKey` names.
fn lettered(row: &Doc) -> Result<(Vec<String>, usize), String> {
    let choices = row.get("choices").and_then(Value::as_object).ok_or("has no `choices`")?;
    let (answers, labels, key) = (texts(choices, "text")?, texts(choices, "label")?, text(row, "answerKey")?);
    let gold = labels.iter().position(|label| label == key.trim_start());
    Ok((answers, gold.ok_or_else(|| format!("`answerKey` is {key:?}, and there are {labels:?}"))?))
}

fn arc(row: Doc) -> Result<Doc, String> {
    let (choices, gold) = lettered(&row)?;
    let query = format!("Question: {}", text(&row, "question")?);
    Ok(doc([("query", json!(query)), ("choices", json!(choices)), ("gold", json!(gold))]))
}

fn openbookqa(row: Doc) -> Result<Doc, String> {
    let (choices, gold) = lettered(&row)?;
    Ok(doc([("query", json!(text(&row, "question_stem")?)), ("choices", json!(choices)), ("gold", json!(gold))]))
}

fn hellaswag(row: Doc) -> Result<Doc, String> {
    let context =
        format!("{}: {} {}", text(&row, "activity_label")?, text(&row, "ctx_a")?, capital(text(&row, "ctx_b")?));
    let endings: Vec<String> = texts(&row, "endings")?.iter().map(|ending| plain(ending)).collect();
    Ok(doc([("ctx", json!(plain(&context))), ("endings", json!(endings)), ("label", json!(number(&row, "label")?))]))
}

/// The first letter large, all others small.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().collect::<String>()).unwrap_or_default();
    first + &letters.as_str().to_lowercase()
}

/// Without the marks that the texts of `WikiHow` have.
fn plain(text: &str) -> String {
    static MARKS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[.*?\]").expect("a fixed expression"));
    let text = text.trim().replace(" [title]", ". ");
    MARKS.replace_all(&text, "").replace("  ", " ")
}

fn piqa(row: Doc) -> Result<Doc, String> {
    let choices = [text(&row, "sol1")?, text(&row, "sol2")?];
    let query = format!("Question: {}\n", text(&row, "goal")?);
    Ok(doc([("query", json!(query)), ("choices", json!(choices)), ("gold", json!(number(&row, "label")?))]))
}

fn winogrande(row: Doc) -> Result<Doc, String> {
    let sentence = text(&row, "sentence")?;
    let (before, after) = sentence.split_once('_').ok_or("`sentence` has no gap `_`")?;
    let contexts = [text(&row, "option1")?, text(&row, "option2")?].map(|option| format!("{before}{option}"));
    let gold = number(&row, "answer")?.checked_sub(1).ok_or("`answer` is 0, and the first is 1")?;
    let continuation = json!(after.trim());
    Ok(doc([("context_options", json!(contexts)), ("continuation", continuation), ("gold", json!(gold))]))
}

fn boolq(row: Doc) -> Result<Doc, String> {
    let query = format!("Passage: {}\nQuestion: {}?", text(&row, "passage")?, text(&row, "question")?);
    Ok(doc([("query", json!(query)), ("choices", json!(["no", "yes"])), ("gold", json!(number(&row, "label")?))]))
}

fn lambada(row: Doc) -> Result<Doc, String> {
    let (context, last) = text(&row, "text")?.rsplit_once(' ').ok_or("`text` is one word")?;
    Ok(doc([("context", json!(context)), ("continuation", json!(last))]))
}

fn wikitext(row: Doc) -> Result<Doc, String> {
    Ok(doc([("page", json!(text(&row, "page")?))]))
}

fn mmlu(row: Doc) -> Result<Doc, String> {
    let choices = texts(&row, "choices")?;
    let Ok([a, b, c, d]) = <[String; 4]>::try_from(choices) else { return Err("has not four `choices`".to_owned()) };
    let (question, answer) = (text(&row, "question")?, number(&row, "answer")?.to_string());
    let choices = [("choice0", json!(a)), ("choice1", json!(b)), ("choice2", json!(c)), ("choice3", json!(d))];
    Ok(doc(choices).into_iter().chain(doc([("question", json!(question)), ("answer", json!(answer))])).collect())
}

fn aime(row: Doc) -> Result<Doc, String> {
    let answer = match row.get("Answer") {
        Some(Value::String(answer)) => answer.clone(),
        Some(answer @ Value::Number(_)) => answer.to_string(),
        _ => return Err("has no `Answer`".to_owned()),
    };
    Ok(doc([("problem", json!(text(&row, "Problem")?)), ("answer", json!(answer))]))
}
