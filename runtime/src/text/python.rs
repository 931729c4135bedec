//! Values in Python's spelling: `json.dumps`, `str` and `repr`. Chat templates are rendered by Python
//! where models are trained, so every byte of this counts.

use serde_json::Value;

/// The options of `json.dumps` that templates use.
#[derive(Default)]
pub(super) struct JsonStyle {
    /// One level of indentation; `None` puts everything on one line.
    pub(super) indent: Option<String>,
    /// Between items and between a key and its value; `None` takes Python's defaults.
    pub(super) separators: Option<(String, String)>,
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
}

/// `json.dumps(value, ...)`.
pub(super) fn json_dumps(value: &Value, style: &JsonStyle) -> String {
    let mut out = String::new();
    write_json(&mut out, value, style, 0);
    out
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) {
    let (item, key_end) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    let between = |out: &mut String, index: usize| {
        if index > 0 {
            out.push_str(item);
        }
        new_line(out, depth + 1);
    };
    match value {
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (index, value) in items.iter().enumerate() {
                between(out, index);
                write_json(out, value, style, depth + 1);
            }
            new_line(out, depth);
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            for (index, (key, value)) in entries.into_iter().enumerate() {
                between(out, index);
                write_json_string(out, key, style.ensure_ascii);
                out.push_str(key_end);
                write_json(out, value, style, depth + 1);
            }
            new_line(out, depth);
            out.push('}');
        }
        Value::String(text) => write_json_string(out, text, style.ensure_ascii),
        Value::Number(number) => out.push_str(&number_text(number)),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Null => out.push_str("null"),
    }
}

fn write_json_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number_text(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => float_repr(value),
        _ => number.to_string(),
    }
}

/// `repr(float)`: shortest digits, an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "nan".into() } else { format!("{}inf", if value < 0.0 { "-" } else { "" }) };
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(e) if value != 0.0 && !(-4..16).contains(&e) => {
            format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
        }
        _ => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number_text(number),
        Value::String(text) => string_repr(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries: Vec<_> = map.iter().map(|(k, v)| format!("{}: {}", string_repr(k), repr(v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

fn string_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `str.title()`: a letter that follows no letter is a capital, also behind an apostrophe.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn as_python_writes_them() {
        let value = json!({"b": [1, 1.0, 1e-5, 1e16, 0.1, -2.5e22, []], "a": {"é\u{1}": null, "q": "it's", "t": true, "e": {}}});
        let style = |indent: Option<&str>, ensure_ascii, sort_keys| JsonStyle {
            indent: indent.map(Into::into),
            separators: None,
            ensure_ascii,
            sort_keys,
        };
        assert_eq!(
            json_dumps(&value, &style(None, false, false)),
            r#"{"b": [1, 1.0, 1e-05, 1e+16, 0.1, -2.5e+22, []], "a": {"é\u0001": null, "q": "it's", "t": true, "e": {}}}"#
        );
        assert_eq!(
            json_dumps(&json!({"b": [1, "😀"], "a": {}}), &style(Some("  "), true, true)),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    \"\\ud83d\\ude00\"\n  ]\n}"
        );
        assert_eq!(
            repr(&value),
            r#"{'b': [1, 1.0, 1e-05, 1e+16, 0.1, -2.5e+22, []], 'a': {'é\x01': None, 'q': "it's", 't': True, 'e': {}}}"#
        );
        assert_eq!(
            (float_repr(0.0), float_repr(-0.0), float_repr(1e-4)),
            ("0.0".into(), "-0.0".into(), "0.0001".into())
        );
    }
}
