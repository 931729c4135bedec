//! WikiText-2: perplexity of whole articles. Words and bytes are those of the text before it is detokenized.

use std::borrow::Cow;

use regex::Regex;
use serde_json::json;

use crate::data::DataFolder;
use crate::data::doc::Doc;
use crate::task::grading;
use crate::task::outcome::Grade;
use crate::task::question::{EvalResponse, TaskQuestion};
use crate::task::{Docs, FewShot, Task, TaskInfo};
use crate::{Error, Result};

const FILE: &str = "wikitext2/test.txt";

/// The task.
pub(super) struct WikiText {
    info: TaskInfo,
}

impl WikiText {
    pub(super) fn new() -> Self {
        let info = TaskInfo {
            name: "wikitext".to_owned(),
            version: "2.0".to_owned(),
            group: None,
            about: "perplexity of the articles of WikiText-2, a word, a byte".to_owned(),
            description: String::new(),
            few_shot: FewShot::None,
            shots: 0,
            metrics: grading::rolling_metrics(),
        };
        Self { info }
    }
}

/// The articles of a file. Each begins with a line ` = Title = ` between blank lines.
fn articles(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let blank = |index: usize| lines.get(index).is_none_or(|line| line.trim().is_empty());
    let title = |line: &str| line.starts_with(" = ") && line.ends_with(" = ") && !line.starts_with(" = =");
    let begins = |&index: &usize| title(lines[index]) && (index == 0 || blank(index - 1)) && blank(index + 1);
    let starts: Vec<usize> = (0..lines.len()).filter(begins).collect();
    let ends = starts.iter().skip(1).copied().chain([lines.len()]);
    starts.iter().zip(ends).map(|(&start, end)| lines[start..end].join("\n")).collect()
}

/// Takes back what the word-level form did to the text.
fn detokenize(text: &str) -> String {
    let text = text.replace("s '", "s'");
    let number = Regex::new("/' [0-9]/").expect("a fixed expression");
    let mut text = number.replace_all(&text, "/'[0-9]/").into_owned();
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        text = text.replace(from, to);
    }
    for (open, close) in [("\\(", "\\)"), ("\\[", "\\]"), ("\\{", "\\}"), ("\"", "\""), ("'", "'")] {
        let plain = |mark: &str| mark.trim_start_matches('\\').to_owned();
        let inside = Regex::new(&format!(r"{open}\s*([^{close}]*?)\s*{close}")).expect("a fixed expression");
        let to = format!("{}${{1}}{}", plain(open), plain(close));
        if let Cow::Owned(replaced) = inside.replace_all(&text, to) {
            text = replaced;
        }
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}

fn page(doc: &Doc) -> &str {
    doc.get("page").and_then(|page| page.as_str()).unwrap_or_default()
}

impl Task for WikiText {
    fn info(&self) -> &TaskInfo {
        &self.info
    }

    fn load(&self, data: &DataFolder) -> Result<Docs> {
        if let Some(test) = data.hub_rows(FILE)? {
            return Ok(Docs { test, pool: Vec::new() });
        }
        let articles = articles(&data.text(FILE)?);
        if articles.is_empty() {
            let what = "no line is a title such as ` = Title = ` between blank lines".to_owned();
            return Err(Error::from(command::Error::Data { path: data.root().join(FILE), line: None, what }));
        }
        let doc = |page: String| Doc::from_iter([("page".to_owned(), json!(page))]);
        Ok(Docs { test: articles.into_iter().map(doc).collect(), pool: Vec::new() })
    }

    fn question(&self, doc: &Doc) -> TaskQuestion {
        TaskQuestion::Rolling { text: detokenize(page(doc)) }
    }

    fn example(&self, doc: &Doc) -> (String, String) {
        (String::new(), page(doc).to_owned())
    }

    fn grade(&self, doc: &Doc, responses: &[EvalResponse]) -> Result<Grade> {
        let page = page(doc);
        // Pieces between runs of white space, the empty ones at both ends included, as the library counts.
        let words = Regex::new(r"\s+").expect("a fixed expression").split(page).count();
        let metrics = grading::rolling(responses, words, page.len());
        Ok(Grade { metrics, ..Grade::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_begin_at_their_titles() {
        let text = " \n = One = \n \n text = 2 = \n \n = = Part = = \n \n = Two = \n \n more\n";
        let got = articles(text);
        assert_eq!(got, [" = One = \n \n text = 2 = \n \n = = Part = = \n ", " = Two = \n \n more\n"]);
    }

    /// What lm-evaluation-harness' detokenizer makes of it.
    #[test]
    fn word_level_text_becomes_plain() {
        let text = " = = Part = = \n The dogs ' 1 @,@ 000 \" big \" ( red ) bones , it 's said . [ 2 ] { x } 'a ' N \u{b0} C\n";
        assert_eq!(detokenize(text), EXPECTED);
    }

    const EXPECTED: &str = " == Part ==\nThe dogs'1,000 \"big\" (red) bones, it's said. [2] {x} 'a' N\u{b0}C\n";
}
