//! What surrounds an answer, removed: dollars, sizes, spaces, units, degrees, per cent.

use std::sync::LazyLock;

use regex::Regex;

use super::super::boxed::last_boxed;

/// An answer without its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cleaned {
    pub(super) text: String,
    /// It was in per cent.
    pub(super) percent: bool,
    /// It is words only.
    pub(super) words: bool,
}

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant of this file, which its tests compile")
}

/// Ways to write the same thing, replaced in order.
const SPELLINGS: [(&str, &str); 40] = [
    ("\\left", ""),
    ("\\right", ""),
    ("\\!", ""),
    ("{,}", ","),
    ("\\$", ""),
    ("\\,", " "),
    ("\\;", " "),
    ("\\:", " "),
    ("\\ ", " "),
    ("~", " "),
    ("\\qquad", " "),
    ("\\quad", " "),
    ("dfrac", "frac"),
    ("tfrac", "frac"),
    ("cfrac", "frac"),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\circ", ""),
    ("\\degree", ""),
    ("°", ""),
    ("\\lbrace", "\\{"),
    ("\\rbrace", "\\}"),
    ("\\lbrack", "["),
    ("\\rbrack", "]"),
    ("\\lvert", "|"),
    ("\\rvert", "|"),
    ("−", "-"),
    ("–", "-"),
    ("×", "\\times "),
    ("π", "\\pi "),
    ("∞", "\\infty "),
    ("∪", "\\cup "),
    ("≤", "\\le "),
    ("≥", "\\ge "),
    ("\\leqslant", "\\le "),
    ("\\geqslant", "\\ge "),
    ("\\leq", "\\le "),
    ("\\geq", "\\ge "),
    ("bmatrix", "pmatrix"),
    ("\\infinity", "\\infty"),
];
/// Commands that set their argument as words.
static WORDS: LazyLock<Regex> =
    LazyLock::new(|| compiled(r"\\(?:mbox|textbf|textrm|textit|mathrm|mathbf|text|operatorname)\s*\{"));
/// Words that stand between the items of a list.
static JOINED: LazyLock<Regex> = LazyLock::new(|| compiled(r",?\s*\\text\{\s*(?:and|or)\s*\}\s*|,?\s+(?:and|or)\s+"));
/// One group of words and an exponent of a unit.
static GROUP: LazyLock<Regex> = LazyLock::new(|| compiled(r"\\text\{([^{}]*)\}(?:\s*\^\s*(?:\{\s*[23]\s*\}|[23]))?"));
/// A unit that ends an answer after a space, in plain letters; two may follow one another.
static UNIT: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"(?xi-u)(?P<value>[0-9})\]\w])\s+(?:(?:
          degrees?|dollars?|cents?|mm|cm|km|inch(?:es)?|in|feet|foot|ft|miles?|mph|meters?|metres?|hours?|hrs?|minutes?|
          mins?|seconds?|secs?|days?|weeks?|months?|years?|units?|square|sq|cubic|per|pounds?|lbs?|ounces?|oz|grams?|kg|
          lit(?:er|re)s?|points?|students?|people|ways|times|numbers?|integers?|digits?|edges|radians?|yards?|gallons?|
          meals|tickets|cookies|apples|marbles|pieces|dozen|rad)(?:\s*\^\s*(?:\{[23]\}|[23]))?\s*)+\z",
    )
});
static PERCENT: LazyLock<Regex> = LazyLock::new(|| compiled(r"\s*(?:\\%|%|\\text\{\s*percent\s*\}|\bpercent)\s*\z"));
/// A mixed number in plain digits.
static MIXED: LazyLock<Regex> = LazyLock::new(|| compiled(r"\A(-?)(\d+)\s+(\d+)/(\d+)\z"));
static NAMED_SET: LazyLock<Regex> = LazyLock::new(|| compiled(r"\A\s*[a-zA-Z]\s*\\in\s*"));

/// Removes what surrounds the value.
pub(super) fn clean(answer: &str) -> Cleaned {
    let inner = last_boxed(answer).unwrap_or(answer);
    let mut text = WORDS.replace_all(inner, "\\text{").into_owned();
    if let Some(value) = value_in_words(&text) {
        text = value.to_owned();
    }
    text = JOINED.replace_all(&text, ",").into_owned();
    for (from, to) in SPELLINGS {
        text = respelled(&text, from, to);
    }
    text = MIXED.replace(undressed(&text), r"${1}${2}\frac{${3}}{${4}}").into_owned();
    text = NAMED_SET.replace(&text, "").into_owned();
    let percent = PERCENT.is_match(&text);
    if percent {
        text = PERCENT.replace(&text, "").into_owned();
    }
    let (text, words) = without_words(&text);
    let text = UNIT.replace(undressed(&text), "${value}").into_owned();
    let words = words || (text.len() > 1 && text.chars().all(|c| c.is_alphabetic() || c == ' '));
    Cleaned { text: undressed(&text).to_owned(), percent, words }
}

/// What `\text{...}` around all of an answer holds where it is no words: another command.
fn value_in_words(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("\\text{")?.strip_suffix('}')?;
    let mut depth = 0;
    let balanced = inner.bytes().all(|byte| {
        depth += i32::from(byte == b'{') - i32::from(byte == b'}');
        depth >= 0
    });
    (balanced && depth == 0 && inner.contains('\\')).then_some(inner)
}

/// Replaces `from`, but not where a command's name goes on: `\left` in `\leftarrow`.
fn respelled(text: &str, from: &str, to: &str) -> String {
    let named = from.starts_with('\\') && from.ends_with(|c: char| c.is_ascii_alphabetic());
    let mut out = String::new();
    let mut at = 0;
    for (start, _) in text.match_indices(from) {
        let end = start + from.len();
        // A backslash that is escaped itself (`\\,` ends a row of a matrix) begins nothing.
        let escaped =
            from.starts_with('\\') && text[..start].bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1;
        if escaped || (named && text[end..].starts_with(|c: char| c.is_ascii_alphabetic())) {
            continue;
        }
        out += &text[at..start];
        out += to;
        at = end;
    }
    out + &text[at..]
}

/// Without the marks of mathematics, a last full stop and white space around.
fn undressed(text: &str) -> &str {
    let mut text = text.trim();
    loop {
        let before = text;
        for (open, close) in [("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")] {
            if let Some(inner) = text.strip_prefix(open) {
                text = inner.strip_suffix(close).unwrap_or(inner);
            } else if let Some(inner) = text.strip_suffix(close).filter(|_| open == "$") {
                text = inner;
            }
        }
        let stop = text.strip_suffix(['.', ',', ';', ':']);
        text = stop.filter(|rest| !rest.ends_with('\\')).unwrap_or(text).trim();
        if text == before {
            return text;
        }
    }
}

/// `\text{...}`: the words where there is nothing else, else nothing. Says whether it was words.
fn without_words(text: &str) -> (String, bool) {
    let bare = GROUP.replace_all(text, " ");
    if !bare.trim().trim_matches(['(', ')', '.', ' ']).is_empty() {
        return (bare.into_owned(), false);
    }
    let words = GROUP.replace_all(text, "${1}").into_owned();
    let any = GROUP.is_match(text);
    (words, any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surroundings_go_and_values_stay() {
        let cases = [
            (r"$\$32,\!348$.", "32,348", false),
            (r"864 \mbox{ inches}^2", "864", false),
            (r"\frac{270}7\text{ degrees}", r"\frac{270}7", false),
            (r"90^\circ", "90", false),
            (r"50\%", "50", true),
            ("50 percent", "50", true),
            (r"\text{(C)}", "(C)", false),
            (r"\left[ \frac{\pi^2}{8}, 5 \right]", r"[ \frac{\pi^2}{8}, 5 ]", false),
            ("12 square units", "12", false),
            (r"x \in [-2,7]", "[-2,7]", false),
            (r"3, 5, \text{ and } 7", "3, 5,7", false),
            ("2k", "2k", false),
            (r"\boxed{5}", "5", false),
            (r"\(7\)", "7", false),
            ("Evelyn", "Evelyn", false),
        ];
        for (answer, text, percent) in cases {
            let cleaned = clean(answer);
            assert_eq!((cleaned.text.as_str(), cleaned.percent), (text, percent), "{answer}");
        }
        assert!(clean(r"\text{Evelyn}").words && clean("even").words && !clean("x").words && !clean("2k").words);
    }
}
