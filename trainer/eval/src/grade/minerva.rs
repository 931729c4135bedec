//! minerva_math's answers: the normalisation of appendix D of Lewkowycz et al. (2022) as lm-evaluation-harness 0.4.13 has
//! it, and equality as sympy sees it.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::boxed::{final_answer, last_boxed};
use super::latex::{self, Dialect};

/// lm-evaluation-harness' answer where there is no final one.
pub const INVALID: &str = "[invalidanswer]";

/// The normalised answer of a response: what "Final Answer: The final answer is" names, or [`INVALID`].
#[must_use]
pub fn extract(response: &str) -> String {
    normalize(&final_answer(response).unwrap_or_else(|| INVALID.to_owned()))
}

/// The normalised gold answer: what the solution's last box holds.
#[must_use]
pub fn gold(solution: &str) -> Option<String> {
    last_boxed(solution).map(normalize)
}

/// Whether two normalised answers are equal: as texts, or as sympy reads and simplifies them.
///
/// Known differences to sympy 1.14: decimals are exact here (`0.1+0.2` is `0.3`), and an identity that sympy does not find
/// is found. The fixtures' test counts them.
#[must_use]
pub fn is_equiv(a: &str, b: &str) -> bool {
    if !a.is_empty() && a == b {
        return true;
    }
    match (latex::parse(a.trim(), Dialect::Sympy), latex::parse(b.trim(), Dialect::Sympy)) {
        (Some(a), Some(b)) => latex::equal(&a, &b, Dialect::Sympy),
        _ => false,
    }
}

/// Replaced one after the other, once white space no longer matters.
const SUBSTITUTIONS: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

/// Removed: words of units and filling, and their remains.
const REMOVED: [&str; 40] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
];
const REMOVED_LAST: [&str; 2] = ["\"", "\\dots"];

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant of this file, which its tests compile")
}

/// Patterns and what replaces them, in order.
static SHAPES: LazyLock<[(Regex, &str); 8]> = LazyLock::new(|| {
    [
        (compiled(r"(.*?)(\$)(.*?)(\$)(.*)"), "$$${3}$$"),
        (compiled(r"(\\text\{)(.*?)(\})"), "${2}"),
        (compiled(r"(\\textbf\{)(.*?)(\})"), "${2}"),
        (compiled(r"(\\overline\{)(.*?)(\})"), "${2}"),
        (compiled(r"(\\boxed\{)(.*)(\})"), "${2}"),
        (compiled(r"(frac)([^{])(.)"), "frac{${2}}{${3}}"),
        (compiled(r"(sqrt)(\[[^\]]*\])(\w)"), "${1}${2}{${3}}"),
        (compiled(r"(sqrt)([^{\[])"), "sqrt{${2}}"),
    ]
});
static GROUPED: LazyLock<Regex> = LazyLock::new(|| compiled(r"\A-?\d{1,3}(,\d{3})+\z"));
static COMMAND: LazyLock<Regex> = LazyLock::new(|| compiled(r"\\[a-zA-Z]+"));

/// Longest answer that is normalised, in bytes: the patterns take time with the square of the length.
const MAX_LEN: usize = 4096;

/// The normal form of a final answer. A text beyond 4096 bytes is no final answer and stays as it is.
#[must_use]
pub fn normalize(answer: &str) -> String {
    if answer.len() > MAX_LEN {
        return answer.to_owned();
    }
    let mut text = answer.rsplit('=').next().unwrap_or_default().to_owned();
    let removed = || REMOVED.iter().chain(&REMOVED_LAST);
    for word in removed().filter(|word| is_word(word)) {
        text = without_words(&text, word);
    }
    for (from, to) in SUBSTITUTIONS {
        text = text.replace(from, to);
    }
    for piece in removed() {
        text = if is_word(piece) { without_pieces(&text, piece) } else { text.replace(piece, "") };
    }
    for (pattern, to) in SHAPES.iter() {
        if let Cow::Owned(changed) = pattern.replace_all(&text, *to) {
            text = changed;
        }
    }
    text = text.replace('$', "");
    if GROUPED.is_match(&text) { text.replace(',', "") } else { text }
}

fn is_word(text: &str) -> bool {
    text.chars().all(char::is_alphabetic)
}

/// Without `word` where it stands on its own and is no command.
fn without_words(text: &str, word: &str) -> String {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut kept = String::new();
    let mut from = 0;
    for (at, _) in text.match_indices(word) {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let alone = !before.is_some_and(|c| in_word(c) || c == '\\') && !after.is_some_and(in_word);
        if alone {
            kept += &text[from..at];
            from = at + word.len();
        }
    }
    kept + &text[from..]
}

/// Without `piece` everywhere but in the names of commands.
fn without_pieces(text: &str, piece: &str) -> String {
    let mut kept = String::new();
    let mut from = 0;
    for command in COMMAND.find_iter(text) {
        kept += &text[from..command.start()].replace(piece, "");
        kept += command.as_str();
        from = command.end();
    }
    kept + &text[from..].replace(piece, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        let cases = [
            ("x = 5", "5"),
            (r"\$32,\!348", "32348"),
            (r"2\pi \text{ cm}^2", r"2\pi"),
            (r"864 \mbox{ inches}^2", "864"),
            (r"90^\circ", "90"),
            (r"\frac12", r"\frac{1}{2}"),
            (r"11\sqrt2", r"11\sqrt{2}"),
            (r"\sqrt[3]8", r"\sqrt[3]{8}"),
            (r"\left[2,5\right)", r"\left[2,5\right)"),
            ("58,500", "58500"),
            ("0,1", "0,1"),
            (r"so $y$ is $7$.", "y"),
            (r"\text{Evelyn}", "Evelyn"),
            ("5 square units", "5"),
            ("12 degrees", "12"),
            ("", ""),
        ];
        for (answer, normal) in cases {
            assert_eq!(normalize(answer), normal, "{answer}");
        }
    }

    #[test]
    fn right_answers_are_accepted_and_wrong_ones_are_not() {
        let right = [
            (r"\frac{1}{2}", "0.5"),
            (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
            (r"3\sqrt{13}", r"\sqrt{117}"),
            ("x^2+2x+1", "(x+1)^2"),
            ("6-5i", "-5i+6"),
            ("2.0", "2"),
            ("1,000", "1000"),
            ("(1,2)", "(1,2)"),
        ];
        for (a, b) in right {
            assert!(is_equiv(a, b) && is_equiv(b, a), "{a} = {b}");
        }
        let wrong = [
            (r"\frac{1}{3}", "0.33"),
            ("5", "-5"),
            (r"\sqrt{2}", "1.414"),
            ("x^2", "x^3"),
            (r"3\pi", "9.42477796"),
            ("(1,2)", "(2,1)"),
            ("(1,2)", "(1, 2)"),
            ("", ""),
            (INVALID, "5"),
            (r"\infty", r"\infty+1"),
            ("1/0", "2/0"),
        ];
        for (a, b) in wrong {
            assert!(!is_equiv(a, b) && !is_equiv(b, a), "{a} = {b}");
        }
    }

    #[test]
    fn a_whole_response() {
        let said = r"Thus $\boxed{\frac{1}{2}}$. Final Answer: The final answer is $\frac12$. I hope it is correct.";
        assert_eq!(extract(said), r"\frac{1}{2}");
        assert_eq!(gold(said).as_deref(), Some(r"\frac{1}{2}"));
        assert_eq!(extract("It is 5."), INVALID);
    }
}
