//! Tokens of LaTeX mathematics.

/// One token. White space and spacing commands are no tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LatexToken {
    /// `0` to `9`.
    Digit(char),
    /// An ASCII letter.
    Letter(char),
    /// A command, without its backslash.
    Command(String),
    /// `\{` or `\}`.
    Escaped(char),
    /// `d` and the letter or command after it: sympy's differential, `dx`.
    Differential(String),
    /// One of `+ - * / ( ) { } [ ] | ^ _ : < > = ! , . '`.
    Sign(char),
    /// Anything else.
    Unknown,
}

const SIGNS: &str = "+-*/(){}[]|^_:<>=!,.'";
/// Commands that set space or size only.
const SILENT: [&str; 17] = [
    "thinspace",
    "medspace",
    "thickspace",
    "quad",
    "qquad",
    "negthinspace",
    "negmedspace",
    "negthickspace",
    "left",
    "right",
    "vrule",
    "vcenter",
    "vbox",
    "vskip",
    "vspace",
    "hfil",
    "displaystyle",
];
/// Characters that are silent after a backslash.
const SILENT_MARKS: &str = ",:;!*-./\"(=";

/// The tokens of `text`.
pub(super) fn tokens(text: &str, differentials: bool) -> Vec<LatexToken> {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        at = match chars[at] {
            ' ' | '\t' | '\r' | '\n' => at + 1,
            '\\' => command(&chars, at, &mut out),
            'd' if differentials => differential(&chars, at, &mut out),
            letter if letter.is_ascii_alphabetic() => push(&mut out, LatexToken::Letter(letter), at + 1),
            digit if digit.is_ascii_digit() => push(&mut out, LatexToken::Digit(digit), at + 1),
            sign if SIGNS.contains(sign) => push(&mut out, LatexToken::Sign(sign), at + 1),
            '−' => push(&mut out, LatexToken::Sign('-'), at + 1),
            _ => push(&mut out, LatexToken::Unknown, at + 1),
        };
    }
    out
}

fn push(out: &mut Vec<LatexToken>, token: LatexToken, next: usize) -> usize {
    out.push(token);
    next
}

fn name_end(chars: &[char], from: usize) -> usize {
    from + chars[from..].iter().take_while(|c| c.is_ascii_alphabetic()).count()
}

fn command(chars: &[char], at: usize, out: &mut Vec<LatexToken>) -> usize {
    let end = name_end(chars, at + 1);
    if end > at + 1 {
        let name: String = chars[at + 1..end].iter().collect();
        // `\left|` and `\right|` are brackets of their own to sympy, which no answer of a single value uses.
        let sized = name == "left" || name == "right";
        if sized && chars.get(end) == Some(&'|') {
            return push(out, LatexToken::Unknown, end + 1);
        }
        if !SILENT.contains(&name.as_str()) {
            out.push(LatexToken::Command(name));
        }
        return end;
    }
    match chars.get(at + 1) {
        Some(&brace @ ('{' | '}')) => push(out, LatexToken::Escaped(brace), at + 2),
        Some(&mark) if SILENT_MARKS.contains(mark) => at + 2,
        _ => push(out, LatexToken::Unknown, at + 1),
    }
}

/// `d`, white space, then a letter or a command: one token, as the longest match wins.
fn differential(chars: &[char], at: usize, out: &mut Vec<LatexToken>) -> usize {
    let next = at + 1 + chars[at + 1..].iter().take_while(|c| " \t\r\n".contains(**c)).count();
    let (start, end) = match chars.get(next) {
        Some(c) if c.is_ascii_alphabetic() => (next, next + 1),
        Some('\\') => (next + 1, name_end(chars, next + 1)),
        _ => (next, next),
    };
    if end == start {
        return push(out, LatexToken::Letter('d'), at + 1);
    }
    push(out, LatexToken::Differential(chars[start..end].iter().collect()), end)
}
