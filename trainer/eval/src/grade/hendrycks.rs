//! hendrycks_math's equality: two strings after a fixed list of edits, as lm-evaluation-harness has it.
//!
//! Where the original's edits raise, it compares the strings as they are; [`normalize`] gives `None` there.

use super::boxed::last_boxed;

/// hendrycks_math's extraction: between the first and the last dollar sign where there are two, else all of it.
#[must_use]
pub fn between_dollars(response: &str) -> &str {
    match (response.find('$'), response.rfind('$')) {
        (Some(first), Some(last)) if first < last => &response[first + 1..last],
        _ => response,
    }
}

/// aime's extraction: the last `\boxed` where there is one (`\fbox` does not count), else as [`between_dollars`].
#[must_use]
pub fn boxed_or_dollars(response: &str) -> &str {
    let boxed = if response.contains(r"\boxed") { last_boxed(response) } else { None };
    boxed.unwrap_or_else(|| between_dollars(response))
}

/// Whether two answers are equal.
#[must_use]
pub fn is_equiv(a: &str, b: &str) -> bool {
    match (normalize(a), normalize(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The normal form, or nothing where the original's edits raise.
#[must_use]
pub fn normalize(text: &str) -> Option<String> {
    let mut text = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    for (from, to) in [
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(from, to);
    }
    text = without_units(text)?;
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    text = without_name(text);
    text = braced_roots(&text)?.replace(' ', "");
    text = braced_fractions(text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    slash_as_fraction(text)
}

/// All before `\text{ `, which names a unit; the original raises where there are two.
fn without_units(text: String) -> Option<String> {
    let mut parts = text.split("\\text{ ");
    let first = parts.next().unwrap_or_default().to_owned();
    match parts.count() {
        0 | 1 => Some(first),
        _ => None,
    }
}

/// `k=5` is `5`, for names of at most two characters.
fn without_name(text: String) -> String {
    let parts: Vec<&str> = text.split('=').collect();
    match parts[..] {
        [name, value] if name.chars().count() <= 2 => value.to_owned(),
        _ => text,
    }
}

/// `\sqrt3` is `\sqrt{3}`; the original raises on one that ends the text.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let first = part.chars().next()?;
        out += "\\sqrt";
        if first == '{' {
            out += part;
        } else {
            out += &format!("{{{first}}}{}", &part[first.len_utf8()..]);
        }
    }
    Some(out)
}

/// `\frac12` is `\frac{1}{2}`, `\frac1{72}` is `\frac{1}{72}`; the text stays as it is where one character follows
/// `\frac`, and the original raises where none does.
fn braced_fractions(text: String) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut chars = part.chars();
        let top = chars.next()?;
        out += "\\frac";
        if top == '{' {
            out += part;
            continue;
        }
        let Some(bottom) = chars.next() else { return Some(text.clone()) };
        let rest = chars.as_str();
        out += &match bottom {
            '{' => format!("{{{top}}}{{{rest}"),
            _ => format!("{{{top}}}{{{bottom}}}{rest}"),
        };
    }
    Some(out)
}

/// `3/4` is `\frac{3}{4}`. With one slash between what are no whole numbers the original raises.
fn slash_as_fraction(text: String) -> Option<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let [top, bottom] = parts[..] else { return Some(text) };
    let (top, bottom) = (whole_number(top)?, whole_number(bottom)?);
    if format!("{top}/{bottom}") == text { Some(format!("\\frac{{{top}}}{{{bottom}}}")) } else { Some(text) }
}

/// The canonical form of what Python's `int` reads: a sign, digits, single underscores between them.
fn whole_number(text: &str) -> Option<String> {
    let text = text.trim();
    let (minus, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let groups = digits.split('_');
    let well_formed = groups.clone().all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()));
    let joined: String = groups.collect();
    let canonical = joined.trim_start_matches('0');
    let canonical = if canonical.is_empty() { "0" } else { canonical };
    well_formed.then(|| format!("{}{canonical}", if minus && canonical != "0" { "-" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_answers_are_accepted_and_wrong_ones_are_not() {
        let right = [
            (r"\frac12", "1/2"),
            ("0.5", r"\dfrac{1}{2}"),
            (r"k = 5", "5"),
            (r"\sqrt2", r"\sqrt{2}"),
            (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
            (r"90^\circ", "90"),
            (r"15\text{ cm}^2", "15"),
            (r"50\%", "50"),
            (".5", "0.5"),
            (r"\$32,\!348", "32,348"),
            (r"\frac1{72}", r"\frac{1}{72}"),
            ("x/2", "x/2"),
        ];
        for (a, b) in right {
            assert!(is_equiv(a, b) && is_equiv(b, a), "{a} = {b}");
        }
        let wrong = [
            ("1/2", "0.50"),
            ("5", "5.0"),
            ("x/2", r"\frac{x}{2}"),
            ("32,348", "32348"),
            (r"\frac{2}{4}", r"\frac{1}{2}"),
            (r"3\text{ cm}\text{ or so}", "3"),
            ("01/2", r"\frac{1}{2}"),
            ("-5", "5"),
        ];
        for (a, b) in wrong {
            assert!(!is_equiv(a, b) && !is_equiv(b, a), "{a} = {b}");
        }
        for raises in [r"\sqrt", r"1+\frac", "x/2", r"\text{ a}\text{ b}"] {
            assert_eq!(normalize(raises), None, "{raises}");
        }
    }

    #[test]
    fn extraction() {
        assert_eq!(between_dollars("so $x$ is $5$."), "x$ is $5");
        assert_eq!(between_dollars("costs $5"), "costs $5");
        assert_eq!(boxed_or_dollars(r"$\boxed{5}$ or $6$"), "5");
        assert_eq!(boxed_or_dollars("$6$"), "6");
    }
}
