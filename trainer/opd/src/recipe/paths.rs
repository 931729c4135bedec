//! Relative paths in a recipe mean files next to it.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Keys that hold a file or a folder.
const FILES: [&str; 6] =
    ["student.adapter", "teacher.path", "teacher.api_key_file", "teacher.ca_file", "data.path", "data.held_out"];
/// Keys that hold a model source or a data set, which is a path when it has no scheme.
const SOURCES: [&str; 3] = ["student.model", "teacher.model", "eval.data"];

/// Joins every relative path in `table` to `folder`.
pub(super) fn make_absolute(table: &mut toml::Table, folder: &Path) -> Result<()> {
    let folder = std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .map_err(Error::io(folder))?;
    for key in FILES {
        change(table, key, &|text| join(&folder, text));
    }
    for key in SOURCES {
        change(table, key, &|text| match text.strip_prefix("random:") {
            Some(config) if !config.is_empty() => format!("random:{}", join(&folder, config)),
            _ if text.is_empty() || has_scheme(text) => text.to_owned(),
            _ => join(&folder, text),
        });
    }
    change(table, "eval.tasks", &|text| if text.ends_with(".toml") { join(&folder, text) } else { text.to_owned() });
    Ok(())
}

fn join(folder: &Path, text: &str) -> String {
    let joined: PathBuf = folder.join(text).components().collect();
    joined.to_string_lossy().into_owned()
}

fn has_scheme(source: &str) -> bool {
    source
        .split_once(':')
        .is_some_and(|(scheme, _)| scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

fn change(table: &mut toml::Table, key: &str, f: &dyn Fn(&str) -> String) {
    let (section, key) = key.split_once('.').expect("listed keys are dotted");
    let value = table.get_mut(section).and_then(toml::Value::as_table_mut).and_then(|table| table.get_mut(key));
    match value {
        Some(toml::Value::String(text)) => *text = f(text),
        Some(toml::Value::Array(items)) => {
            for item in items {
                if let toml::Value::String(text) = item {
                    *text = f(text);
                }
            }
        }
        _ => {}
    }
}
