//! The arguments of a call that was cut, as an object: the values that are complete.

use serde_json::Value;

/// What the beginning of a JSON object says: members and elements up to the last that is complete.
pub(super) fn object(text: &str) -> Value {
    if let Ok(whole) = serde_json::from_str(text) {
        return whole;
    }
    let mut open = Vec::new();
    let (mut in_string, mut escaped) = (false, false);
    // Where the text can be cut, and what closes it there.
    let mut cuts: Vec<(usize, String)> = Vec::new();
    let closing = |open: &[char]| open.iter().rev().collect::<String>();
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '{' | '[' => {
                open.push(if letter == '{' { '}' } else { ']' });
                cuts.push((at + 1, closing(&open)));
            }
            '}' | ']' => {
                open.pop();
                cuts.push((at + 1, closing(&open)));
            }
            // What comes before it is complete.
            ',' => cuts.push((at, closing(&open))),
            _ => {}
        }
    }
    // A string at the end is complete where it is a value; that of a name is not, which the reading tells. A number may go on.
    if !in_string && !text.ends_with(|letter: char| letter.is_ascii_digit()) {
        cuts.push((text.len(), closing(&open)));
    }
    // Of the two newest places one is right: the last of all may be in the middle of a member.
    let read = |(at, closing): &(usize, String)| serde_json::from_str(&format!("{}{closing}", &text[..*at])).ok();
    cuts.iter().rev().take(2).find_map(read).unwrap_or_else(|| Value::Object(serde_json::Map::new()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_complete_is_kept() {
        let text = r#"{"a": "x}\"", "b": [1, {"c": true}, 22], "d": null}"#;
        for (until, want) in [
            ("", json!({})),
            ("{", json!({})),
            (r#"{"a"#, json!({})),
            (r#"{"a": "x}\""#, json!({})),
            (r#"{"a": "x}\"""#, json!({"a": "x}\""})),
            (r#"{"a": "x}\"", "b"#, json!({"a": "x}\""})),
            (r#"{"a": "x}\"", "b": ["#, json!({"a": "x}\"", "b": []})),
            (r#"{"a": "x}\"", "b": [1, {"c": tr"#, json!({"a": "x}\"", "b": [1, {}]})),
            (r#"{"a": "x}\"", "b": [1, {"c": true"#, json!({"a": "x}\"", "b": [1, {"c": true}]})),
            (r#"{"a": "x}\"", "b": [1, {"c": true}, "#, json!({"a": "x}\"", "b": [1, {"c": true}]})),
            (r#"{"a": "x}\"", "b": [1, {"c": true}, 2"#, json!({"a": "x}\"", "b": [1, {"c": true}]})),
            (text, json!({"a": "x}\"", "b": [1, {"c": true}, 22], "d": null})),
        ] {
            assert!(text.starts_with(until));
            assert_eq!(object(until), want, "{until}");
        }
        // However it is cut, it can be read.
        for end in 0..text.len() {
            assert!(object(&text[..end]).is_object(), "{}", &text[..end]);
        }
    }
}
