//! One JSON object a line; blank lines are skipped.

use std::path::Path;
use std::sync::Arc;

use runtime::read;
use serde_json::Value;

use super::row::{Origin, Row};
use crate::Result;

pub(super) fn read(path: &Path) -> Result<Vec<Row>> {
    let shared = Arc::new(path.to_owned());
    let mut rows = Vec::new();
    for (index, line) in read::lines(path)?.enumerate() {
        let origin = Origin { path: Arc::clone(&shared), line: index + 1 };
        let line = line?;
        let text = if index == 0 { line.trim_start_matches('\u{feff}') } else { &line };
        if text.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|e| origin.error(format!("not JSON: {e}")))?;
        let Value::Object(object) = value else { return Err(origin.error("not a JSON object")) };
        rows.push(Row::from_json(object, origin)?);
    }
    Ok(rows)
}
