//! What other people's files, servers and models say may hold control characters, which a terminal obeys. All that the
//! programs write to stdout and stderr passes through here and shows them instead.

use std::borrow::Cow;

/// The text with control characters, and marks that change the direction of writing, as `\u{..}`. Line ends and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    replaced(text, |c| c.escape_unicode().to_string())
}

/// [`visible`] of a line of JSON: the same value, since JSON has these characters within strings alone.
pub fn visible_json(json: &str) -> Cow<'_, str> {
    replaced(json, |c| format!("\\u{:04x}", u32::from(c)))
}

fn replaced(text: &str, shown: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut all = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) { all += &shown(c) } else { all.push(c) }
    }
    Cow::Owned(all)
}

fn is_obeyed(c: char) -> bool {
    let directs = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    directs || (c.is_control() && c != '\n' && c != '\t')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_a_terminal_obeys_becomes_visible() {
        assert!(matches!(visible("a table\tof\nlines, \u{e9}\u{1f600}"), Cow::Borrowed(_)));
        assert_eq!(visible("\u{1b}]0;title\u{7}x\r\u{9b}2J\u{7f}"), r"\u{1b}]0;title\u{7}x\u{d}\u{9b}2J\u{7f}");
        assert_eq!(visible("a\u{202e}b\u{2066}"), r"a\u{202e}b\u{2066}");
    }

    #[test]
    fn json_keeps_its_value() {
        let value = json!({ "text\u{9b}": "\u{1b}[2J\u{7f}\u{202e}\n\u{e9}" });
        let (written, line) = (value.to_string(), visible_json(&value.to_string()).into_owned());
        assert!(written.contains('\u{9b}') && !line.contains(is_obeyed));
        assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON"), value);
    }
}
