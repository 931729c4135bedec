//! Messages of parsers without names of Rust's types: an author of a file reads them.

/// Names of Rust's types, and what they are in a file. Longer ones first.
const TYPES: &[(&str, &str)] = &[
    ("usize", "a whole number of at least 0"),
    ("u64", "a whole number of at least 0"),
    ("u32", "a whole number of at least 0"),
    ("u16", "a whole number of at least 0"),
    ("f64", "a number"),
    ("f32", "a number"),
    ("a sequence", "a list"),
    ("a map", "a table"),
];

/// A parser's message without the names of types.
pub fn plain(message: &str) -> String {
    let Some((what, expected)) = message.rsplit_once("expected ") else { return message.trim().to_owned() };
    let what = what
        .replace("invalid type: sequence", "invalid type: list")
        .replace("invalid type: map", "invalid type: table");
    let named = TYPES.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", expected.strip_prefix(theirs)?)));
    let expected = named.unwrap_or_else(|| match expected.strip_prefix("struct ") {
        Some(name) => format!("a table{}", name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_')),
        None => expected.to_owned(),
    });
    format!("{what}expected {expected}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn types_have_no_names_of_the_program() {
        for (said, told) in [
            (
                "invalid type: integer `3`, expected struct Lora\nin `lora`",
                "invalid type: integer `3`, expected a table\nin `lora`",
            ),
            (
                "invalid value: integer `-1`, expected u64\nin `schedule.max_steps`",
                "invalid value: integer `-1`, expected a whole number of at least 0\nin `schedule.max_steps`",
            ),
            ("invalid type: sequence, expected a map", "invalid type: list, expected a table"),
            ("missing field `content`", "missing field `content`"),
        ] {
            assert_eq!(plain(said), told);
        }
    }
}
