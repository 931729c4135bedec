//! Where in a response the answer stands.

use std::sync::LazyLock;

use regex::Regex;

/// What stands in the last `\boxed{...}`, or `\fbox{...}` where there is no other. With `\boxed 5`, all up to the next `$`.
/// Nothing where there is none, or its brace is not closed.
#[must_use]
pub fn last_boxed(text: &str) -> Option<&str> {
    // In this order, as lm-evaluation-harness looks for them.
    if let Some(at) = text.rfind(r"\boxed ") {
        let behind = &text[at + r"\boxed ".len()..];
        return Some(behind.split('$').next().unwrap_or(behind));
    }
    let from = text.rfind(r"\boxed").or_else(|| text.rfind(r"\fbox"))?;
    let mut open = 0usize;
    let mut start = None;
    for (at, byte) in text.bytes().enumerate().skip(from) {
        match byte {
            b'{' => {
                open += 1;
                start = start.or(Some(at + 1));
            }
            // A closing brace before any opening one leaves the count below nought in Python, and no box is found.
            b'}' if open == 0 => return None,
            b'}' => {
                open -= 1;
                if open == 0 {
                    let start = start?;
                    // `\boxed` needs its brace next to it.
                    let command = &text[from..start - 1];
                    return (command == r"\boxed" || command == r"\fbox").then(|| &text[start..at]);
                }
            }
            _ => {}
        }
    }
    None
}

static FINAL_ANSWER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("Final Answer: The final answer is(.*?). I hope it is correct.")
        .expect("a constant, which tests compile")
});

/// minerva's extraction: "Final Answer: The final answer is ... . I hope it is correct.", where the last words may be left
/// out as the response ends there. Nothing where it is not found.
#[must_use]
pub fn final_answer(response: &str) -> Option<String> {
    let whole = format!("{response}I hope it is correct.");
    FINAL_ANSWER.captures(&whole).map(|found| found[1].trim().to_owned())
}

/// What follows a response's reasoning: all behind the last `</think>`; of a response that began to think (as
/// `thinking` says, or `<think>` does) and never stopped, nothing; else all of it.
#[must_use]
pub fn after_thinking(response: &str, thinking: bool) -> &str {
    match response.rfind("</think>") {
        Some(at) => &response[at + "</think>".len()..],
        None if thinking || response.trim_start().starts_with("<think>") => "",
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_counts_with_its_braces() {
        let cases = [
            (r"so \boxed{4} or $\boxed{\frac{1}{2}}$.", Some(r"\frac{1}{2}")),
            (r"\boxed{\text{(C)}} \fbox{3}", Some(r"\text{(C)}")),
            (r"\fbox{3}", Some("3")),
            (r"$\boxed 5$ is it", Some("5")),
            (r"\boxed{4", None),
            (r"\boxed{\{1,2\}}", Some(r"\{1,2\}")),
            (r"\boxed", None),
            (r"\boxed}{4}", None),
            (r"\boxed4 {5}", None),
            ("4", None),
            ("", None),
        ];
        for (text, content) in cases {
            assert_eq!(last_boxed(text), content, "{text}");
        }
    }

    #[test]
    fn the_final_answer_is_minervas() {
        let said = |text: &str| final_answer(text);
        assert_eq!(said("Final Answer: The final answer is $24$. I hope it is correct."), Some("$24$".into()));
        // The last words are appended without a space, so only a response that ends in a full stop and a space has them.
        assert_eq!(said("Final Answer: The final answer is $24$. "), Some("$24$".into()));
        assert_eq!(said("Final Answer: The final answer is $24$."), None);
        assert_eq!(said("Final Answer: The final answer is\n$24$. I hope it is correct."), None);
        let two = "Final Answer: The final answer is 1. I hope it is correct.\nFinal Answer: The final answer is 2. I hope it \
                   is correct.";
        assert_eq!(said(two), Some("1".into()));
        assert_eq!(said("24"), None);
    }

    #[test]
    fn thoughts_are_not_answers() {
        assert_eq!(after_thinking("<think>\\boxed{1}</think>\\boxed{2}", false), "\\boxed{2}");
        assert_eq!(after_thinking("\\boxed{1}</think> B", true), " B");
        assert_eq!(after_thinking("still thinking \\boxed{1}", true), "");
        assert_eq!(after_thinking("  <think>\\boxed{1}", false), "");
        assert_eq!(after_thinking("\\boxed{1}", false), "\\boxed{1}");
    }
}
