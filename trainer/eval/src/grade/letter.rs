//! The letter that a chat answer chooses.
//!
//! lm-evaluation-harness scores choices by their likelihood; a model that answers in words, after thinking perhaps, names a
//! letter instead. The first of these that is found counts: the last box, the last "answer is X" or "Answer: X", the last
//! line that is a letter and at most the choice's text. A letter beyond the choices is no answer.

use std::sync::LazyLock;

use regex::Regex;

use super::boxed::{after_thinking, last_boxed};

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant of this file, which its tests compile")
}

/// Marks that may stand around a letter.
const AROUND: &[char] = &[' ', '\t', '\n', '(', ')', '[', ']', '{', '}', '*', '_', '$', '.', ':', '"', '\'', '`'];

static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r"(?x)\b[Aa][Nn][Ss][Ww][Ee][Rr]\b[*_]*(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?[*_]*\s*:?\s*
          (?:(?:option|choice|letter|Option|Choice)\s+)?
          [*_$(\[\x22'\s]*(?:\\boxed\{|\\text\{|\\textbf\{|\\mathrm\{)*\(?([A-Z])(?:[)\]}*_$.,:;!\x22'\s]|\z)",
    )
});
static LINE: LazyLock<Regex> = LazyLock::new(|| compiled(r"\A[*_$\s]*[(\[]?([A-Z])(?:[)\].:*_$]+(?:\s.*)?|\s*)\z"));

/// The place, from 0, of the chosen letter among `choices` choices.
#[must_use]
pub fn letter(response: &str, choices: usize, thinking: bool) -> Option<usize> {
    let said = after_thinking(response, thinking);
    let place = |letter: char| {
        let place = (letter as usize).checked_sub('A' as usize)?;
        (place < choices.min(26)).then_some(place)
    };
    if let Some(content) = last_boxed(said) {
        return in_box(content).and_then(place);
    }
    let named = NAMED.captures_iter(said).last().and_then(|found| found[1].chars().next());
    if let Some(found) = named {
        return place(found);
    }
    let line = said.lines().rev().find_map(|line| LINE.captures(line)?[1].chars().next());
    line.and_then(place)
}

/// `C`, `(C)`, `\text{C}`, `\textbf{(C) } 5`, `C. Paris`.
fn in_box(content: &str) -> Option<char> {
    let mut text = content.trim();
    for command in ["\\textbf", "\\text", "\\mathrm", "\\mathbf"] {
        text = text.strip_prefix(command).unwrap_or(text);
    }
    let text = text.trim_start_matches(AROUND);
    let mut chars = text.chars();
    let letter = chars.next().filter(char::is_ascii_uppercase)?;
    let rest = chars.as_str();
    let ends = rest.trim_matches(AROUND).is_empty() || rest.starts_with([')', '.', ':', '}', ']']);
    ends.then_some(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_found() {
        let cases = [
            ("C", Some(2)),
            ("(C)", Some(2)),
            ("**C**", Some(2)),
            ("C. Paris", Some(2)),
            ("C) Paris", Some(2)),
            ("The answer is C.", Some(2)),
            ("The correct answer is (B) because A is wrong.", Some(1)),
            ("Answer: B", Some(1)),
            ("**Answer:** D", Some(3)),
            ("**Answer: D**", Some(3)),
            ("The answer is **(A)**", Some(0)),
            ("the answer is option B", Some(1)),
            (r"$\boxed{C}$", Some(2)),
            (r"\boxed{\text{(B)}}", Some(1)),
            (r"\boxed{\textbf{(D)}\ 5}", Some(3)),
            (r"\boxed{A} wait, \boxed{B}", Some(1)),
            ("The answer is A. No: the answer is D.", Some(3)),
            ("<think>The answer is A.</think>\nThe answer is B.", Some(1)),
            (r"The final answer is $\boxed{D}$.", Some(3)),
            ("Let me see.\n\nB", Some(1)),
        ];
        for (response, place) in cases {
            assert_eq!(letter(response, 4, false), place, "{response}");
        }
    }

    #[test]
    fn what_names_no_letter_is_no_answer() {
        for response in [
            "",
            "A good question.",
            "E",
            r"\boxed{E}",
            r"\boxed{5}",
            r"\boxed{ABC}",
            "The answer is Apple",
            "I think so",
            "<think>The answer is A.",
            "The answer is not clear.",
            "answer is b",
        ] {
            assert_eq!(letter(response, 4, false), None, "{response}");
        }
        assert_eq!(letter("The answer is A.", 4, true), None);
        assert_eq!(letter("E", 5, false), Some(4));
    }
}
