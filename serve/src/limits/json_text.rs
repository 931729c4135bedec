//! How deep a JSON text is and what it takes when it is parsed, known before it is.

use serde_json::Value;

use crate::api_error::ApiError;

/// Lists and objects within one another; `serde_json` goes no deeper.
pub(crate) const MAX_DEPTH: usize = 127;
/// Bytes of a value: lists double while they grow, so half of one may be free.
const VALUE: u64 = 2 * size_of::<Value>() as u64;
/// Bytes of a member of an object besides its value: its name, its hash and its place in the table.
const MEMBER: u64 = 96;

/// What a JSON text takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outline {
    /// Bytes of its parsed form, at most.
    pub(crate) bytes: u64,
    /// Lists and objects within one another.
    pub(crate) depth: usize,
}

/// Looks at a text that may be JSON; what is none is left to the parser.
pub(crate) fn outline(text: &[u8]) -> Outline {
    let (mut values, mut members, mut depth, mut deepest) = (1, 0, 0_usize, 0);
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => {
                while let Some(byte) = rest.next() {
                    match byte {
                        b'\\' => drop(rest.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
                values += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            b':' => members += 1,
            _ => {}
        }
    }
    Outline { bytes: values * VALUE + members * MEMBER + text.len() as u64, depth: deepest }
}

/// Refuses a text that is nested too deep; `what` is what it is.
pub(crate) fn check_depth(outline: Outline, what: &str) -> Result<(), ApiError> {
    if outline.depth <= MAX_DEPTH {
        return Ok(());
    }
    let depth = outline.depth;
    Err(ApiError::invalid_json(format!("{what} nests lists and objects {depth} deep; at most {MAX_DEPTH} are read")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A JSON value and its text.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[\\[\\]{},:\"\\\\]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(8, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Lists, objects and all that is in them.
    fn count(value: &Value) -> u64 {
        1 + match value {
            Value::Array(elements) => elements.iter().map(count).sum(),
            Value::Object(members) => members.values().map(count).sum::<u64>(),
            _ => 0,
        }
    }

    /// Lists and objects within one another.
    fn nesting(value: &Value) -> usize {
        match value {
            Value::Array(elements) => 1 + elements.iter().map(nesting).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(nesting).max().unwrap_or(0),
            _ => 0,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is in strings: the depth is the value's, and no value is left out.
        #[test]
        fn an_outline_is_that_of_the_value(value in value()) {
            for text in [serde_json::to_string(&value), serde_json::to_string_pretty(&value)] {
                let text = text.expect("JSON");
                let outline = outline(text.as_bytes());
                prop_assert_eq!(outline.depth, nesting(&value));
                prop_assert!(outline.bytes >= count(&value) * size_of::<Value>() as u64);
            }
        }

        /// What is no JSON is looked at without harm.
        #[test]
        fn any_bytes_have_an_outline(bytes: Vec<u8>) {
            prop_assert!(outline(&bytes).depth <= bytes.len());
        }
    }

    #[test]
    fn a_deep_text_is_refused_before_it_is_parsed() {
        let text = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        for depth in [1, MAX_DEPTH] {
            check_depth(outline(text(depth).as_bytes()), "it").expect("not too deep");
            serde_json::from_str::<Value>(&text(depth)).expect("parsed");
        }
        let error = check_depth(outline(text(1_000_000).as_bytes()), "the body").expect_err("too deep");
        assert!(error.message.contains("1000000") && error.message.contains("127"), "{}", error.message);
    }
}
