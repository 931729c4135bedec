//! The shape of an answer: one value, or several in brackets, lists, unions and matrices.

use super::super::latex::{self, Dialect, Expr};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 6;

/// An answer's shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum AnswerShape {
    Value(Expr),
    /// Plus (true) or minus infinity.
    Infinite(bool),
    /// A name, or a function of names, and what it equals.
    Named(String, Box<AnswerShape>),
    Equation(Expr, Expr),
    Compared(Box<Compared>),
    /// Brackets and items: a tuple or an interval.
    Ordered(char, char, Vec<AnswerShape>),
    Set(Vec<AnswerShape>),
    List(Vec<AnswerShape>),
    Union(Vec<AnswerShape>),
    Matrix(Vec<Vec<AnswerShape>>),
    /// Digits and base.
    InBase(String, String),
    /// What cannot be read, without white space.
    Unread(String),
}

/// An inequality in one name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Compared {
    pub(super) name: String,
    pub(super) interval: AnswerShape,
}

impl AnswerShape {
    /// Of an equation, the left side without the right side.
    pub(super) fn difference(&self) -> Option<Expr> {
        let minus = |left: Expr, right: Expr| Some(Expr::Sum(vec![left, Expr::Negative(Box::new(right))]));
        match self {
            Self::Equation(left, right) => minus(left.clone(), right.clone()),
            Self::Named(name, value) => match (latex::parse(name, Dialect::Answer), value.as_ref()) {
                (Some(left), Self::Value(right)) => minus(left, right.clone()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Reads an answer that was cleaned.
pub(super) fn read(text: &str) -> AnswerShape {
    within(text.trim(), MAX_DEPTH)
}

fn within(text: &str, depth: usize) -> AnswerShape {
    let unread = || AnswerShape::Unread(text.split_whitespace().collect());
    let Some(depth) = depth.checked_sub(1) else { return unread() };
    let items = |parts: Vec<&str>| parts.into_iter().map(|part| within(part.trim(), depth)).collect::<Vec<_>>();
    if let Some(shape) = infinite(text).or_else(|| in_base(text)).or_else(|| matrix(text, depth)) {
        return shape;
    }
    for joint in ["\\cup", "\\cap"] {
        let parts = split(text, joint);
        if parts.len() > 1 {
            return if joint == "\\cup" { AnswerShape::Union(items(parts)) } else { unread() };
        }
    }
    // A number with grouped thousands is no list of numbers.
    if let Some(value) = latex::parse(text, Dialect::Answer).filter(|_| !text.contains("\\pm")) {
        return AnswerShape::Value(value);
    }
    let parts = split(text, ",");
    if parts.len() > 1 {
        return AnswerShape::List(expanded(items(parts)));
    }
    if let Some(shape) = compared(text, depth).or_else(|| equation(text, depth)).or_else(|| bracketed(text, depth)) {
        return shape;
    }
    match plus_minus(text) {
        Some(both) => AnswerShape::List(both),
        None => unread(),
    }
}

/// The parts of `text` between the `joint`s that stand in no bracket.
fn split<'a>(text: &'a str, joint: &str) -> Vec<&'a str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0i32);
    let command = joint.starts_with('\\');
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        let goes_on = || text[at + joint.len()..].starts_with(|c: char| c.is_ascii_alphabetic());
        if depth == 0 && at >= from && text[at..].starts_with(joint) && !(command && goes_on()) {
            parts.push(&text[from..at]);
            from = at + joint.len();
        }
    }
    parts.push(&text[from..]);
    parts
}

/// Lists in a list are its items: `1, 2 \pm 3` has three.
fn expanded(items: Vec<AnswerShape>) -> Vec<AnswerShape> {
    let open = |item| match item {
        AnswerShape::List(inner) => inner,
        other => vec![other],
    };
    items.into_iter().flat_map(open).collect()
}

fn infinite(text: &str) -> Option<AnswerShape> {
    let bare: String = text.split_whitespace().collect();
    match bare.as_str() {
        "\\infty" | "+\\infty" => Some(AnswerShape::Infinite(true)),
        "-\\infty" => Some(AnswerShape::Infinite(false)),
        _ => None,
    }
}

/// `52_8`, `4210_{5}`, `1A_{16}`.
fn in_base(text: &str) -> Option<AnswerShape> {
    let bare: String = text.split_whitespace().collect();
    let (digits, base) = bare.split_once('_')?;
    let base = base.strip_prefix('{').map_or(Some(base), |rest| rest.strip_suffix('}'))?;
    let digits = digits.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(digits);
    let plain = |text: &str, hex: bool| {
        let digit = |b: u8| b.is_ascii_digit() || (hex && b.is_ascii_uppercase());
        !text.is_empty() && text.bytes().all(digit)
    };
    let number = plain(digits, true) && digits.starts_with(|c: char| c.is_ascii_digit()) && plain(base, false);
    number.then(|| AnswerShape::InBase(digits.to_owned(), base.to_owned()))
}

fn matrix(text: &str, depth: usize) -> Option<AnswerShape> {
    let inner = text.strip_prefix("\\begin{pmatrix}")?.strip_suffix("\\end{pmatrix}")?;
    let inner = inner.trim().strip_suffix("\\\\").unwrap_or(inner);
    let row = |row: &str| row.split('&').map(|cell| within(cell.trim(), depth)).collect();
    Some(AnswerShape::Matrix(inner.split("\\\\").map(row).collect()))
}

/// `(a,b)`, `[a,b)`, `\{a,b\}`.
fn bracketed(text: &str, depth: usize) -> Option<AnswerShape> {
    let items = |inner: &str| split(inner, ",").into_iter().map(|part| within(part.trim(), depth)).collect::<Vec<_>>();
    if let Some(inner) = text.strip_prefix("\\{").and_then(|rest| rest.strip_suffix("\\}")) {
        return Some(AnswerShape::Set(expanded(items(inner))));
    }
    let (open, close) = (text.chars().next()?, text.chars().next_back()?);
    let brackets = "([".contains(open) && ")]".contains(close) && text.len() > 2;
    if !brackets {
        return None;
    }
    let mut items = items(&text[1..text.len() - 1]);
    match items.len() {
        // Brackets around one thing say nothing.
        1 if open == '(' && close == ')' => items.pop(),
        1 => None,
        _ => Some(AnswerShape::Ordered(open, close, items)),
    }
}

/// `a \pm b` as `a + b` and `a - b`.
fn plus_minus(text: &str) -> Option<Vec<AnswerShape>> {
    let parts = split(text, "\\pm");
    let [left, right] = parts[..] else { return None };
    let signed = |sign: char| latex::parse(&format!("{left}{sign}{right}"), Dialect::Answer).map(AnswerShape::Value);
    Some(vec![signed('+')?, signed('-')?])
}

fn equation(text: &str, depth: usize) -> Option<AnswerShape> {
    let parts = split(text, "=");
    if parts.len() < 2 {
        return None;
    }
    let (first, last) = (parts[0].trim(), parts[parts.len() - 1].trim());
    if is_name(first) {
        return Some(AnswerShape::Named(first.split_whitespace().collect(), Box::new(within(last, depth))));
    }
    let side = |text: &str| latex::parse(text, Dialect::Answer);
    match (parts.len(), side(first), side(last)) {
        (2, Some(left), Some(right)) if left.integer().is_none() || right.integer().is_none() => {
            Some(AnswerShape::Equation(left, right))
        }
        // `2 + 3 = 5`: the last one is the answer.
        _ => Some(within(last, depth)),
    }
}

/// A letter or command, with an index; `f(x)`.
fn is_name(text: &str) -> bool {
    let bare = text.split('_').next().unwrap_or(text).trim();
    let bare = bare.split('(').next().unwrap_or(bare).trim();
    let letters = bare.strip_prefix('\\').unwrap_or(bare);
    !letters.is_empty()
        && (letters.len() == 1 || bare.starts_with('\\'))
        && letters.bytes().all(|b| b.is_ascii_alphabetic())
}

/// `x > 2`, `-3 \le x < 5`: as the interval that it names.
fn compared(text: &str, depth: usize) -> Option<AnswerShape> {
    let (mut sides, mut signs) = (vec![""], Vec::new());
    let mut rest = text;
    while let Some((at, sign, length)) = first_sign(rest) {
        sides.pop();
        sides.push(rest[..at].trim());
        signs.push(sign);
        rest = &rest[at + length..];
        sides.push("");
    }
    sides.pop();
    sides.push(rest.trim());
    let low = |sign: &str| if sign.len() == 2 { '[' } else { '(' };
    let high = |sign: &str| if sign.len() == 2 { ']' } else { ')' };
    let less = |sign: &str| sign.starts_with('<');
    let (name, open, close, ends) = match (&sides[..], &signs[..]) {
        ([name, value], [sign]) if is_name(name) && less(sign) => (name, '(', high(sign), [None, Some(value)]),
        ([name, value], [sign]) if is_name(name) => (name, low(sign), ')', [Some(value), None]),
        ([value, name], [sign]) if is_name(name) && less(sign) => (name, low(sign), ')', [Some(value), None]),
        ([value, name], [sign]) if is_name(name) => (name, '(', high(sign), [None, Some(value)]),
        ([a, name, b], [s, t]) if is_name(name) && less(s) && less(t) => (name, low(s), high(t), [Some(a), Some(b)]),
        ([a, name, b], [s, t]) if is_name(name) && !less(s) && !less(t) => (name, low(t), high(s), [Some(b), Some(a)]),
        _ => return None,
    };
    let end = |at: usize| ends[at].map_or(AnswerShape::Infinite(at == 1), |text| within(text, depth));
    let interval = AnswerShape::Ordered(open, close, vec![end(0), end(1)]);
    Some(AnswerShape::Compared(Box::new(Compared { name: (*name).to_owned(), interval })))
}

/// The first sign of order: place, `<`, `<=`, `>` or `>=`, length.
fn first_sign(text: &str) -> Option<(usize, &'static str, usize)> {
    let kinds = [
        ("\\le", "<="),
        ("\\ge", ">="),
        ("\\lt", "<"),
        ("\\gt", ">"),
        ("<=", "<="),
        (">=", ">="),
        ("<", "<"),
        (">", ">"),
    ];
    let found = kinds.iter().filter_map(|(written, sign)| {
        let at = text.find(written)?;
        let goes_on =
            written.starts_with('\\') && text[at + written.len()..].starts_with(|c: char| c.is_ascii_alphabetic());
        (!goes_on).then_some((at, *sign, written.len()))
    });
    found.min_by_key(|(at, _, length)| (*at, usize::MAX - length))
}
