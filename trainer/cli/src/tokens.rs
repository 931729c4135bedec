//! Token ids on the command line and in files.

use crate::{Error, Result};

/// Ids separated by commas or white space, or a JSON list.
pub(super) fn parse(text: &str, origin: &str) -> Result<Vec<u32>> {
    let refuse = |what: &str| Error::value(origin, format!("{what:?}"), "token ids: 1,2,3 or \"1 2 3\" or [1, 2, 3]");
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(inner);
    let ids: Vec<u32> = inner
        .split([',', ' ', '\n', '\t', '\r'])
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_err(|_| refuse(part)))
        .collect::<Result<_>>()?;
    if ids.is_empty() { Err(refuse(text)) } else { Ok(ids) }
}

/// One list of ids, or a JSON list of such lists.
pub(super) fn parse_many(text: &str, origin: &str) -> Result<Vec<Vec<u32>>> {
    let nested = text.trim().strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('['));
    if !nested {
        return Ok(vec![parse(text, origin)?]);
    }
    serde_json::from_str(text).map_err(|e| Error::value(origin, e, "a JSON list of lists of token ids"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_in_three_spellings() {
        for text in ["1,2,3", "1 2 3", "[1, 2, 3]", " 1, 2\n3 "] {
            assert_eq!(parse(text, "--tokens").expect("ids"), [1, 2, 3], "{text:?}");
        }
        for text in ["", "[]", "1,x", "-1", "4294967296"] {
            assert_eq!(parse(text, "--tokens").expect_err("no ids").exit_code(), 2, "{text:?}");
        }
        assert_eq!(parse_many("[[1, 2], [3]]", "f").expect("lists"), [vec![1, 2], vec![3]]);
        assert_eq!(parse_many("4 5", "f").expect("one list"), [vec![4, 5]]);
    }
}
