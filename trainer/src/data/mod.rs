//! Rows of prompts, from JSONL and Parquet files.

mod cursor;
mod jsonl;
pub(crate) mod parquet;
mod row;

use std::path::Path;

pub use cursor::Cursor;
pub use row::{Completion, Message, Origin, Prompt, Row};

use crate::recipe::{Data, HeldOut};
use crate::{Error, Result};

/// A data file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// The format of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "jsonl" => Some(Self::Jsonl),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        Self::from_name(if extension == "ndjson" { "jsonl" } else { &extension }).ok_or_else(|| Error::Data {
            path: path.to_owned(),
            line: None,
            what: "the name ends neither in .jsonl nor in .parquet; set `data.format`".to_owned(),
        })
    }
}

/// The rows of a run.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Trained on.
    pub train: Vec<Row>,
    /// Never trained on.
    pub held_out: Vec<Row>,
}

impl Rows {
    /// Reads what `[data]` names.
    ///
    /// # Errors
    /// A file that is missing, empty or malformed, by line.
    pub fn load(data: &Data) -> Result<Self> {
        let mut train = Vec::new();
        let column = data.context_column.as_deref();
        for path in &data.paths {
            train.extend(read(path, data.format, column)?);
        }
        let held_out = match &data.held_out {
            None => Vec::new(),
            Some(HeldOut::File(path)) => read(path, data.format, column)?,
            Some(HeldOut::LastRows(rows)) => {
                let left = train.len().checked_sub(*rows).filter(|&left| left > 0);
                let left = left.ok_or_else(|| {
                    Error::value("data.eval_rows", rows, format!("less than the {} rows of `data.path`", train.len()))
                })?;
                train.split_off(left)
            }
        };
        if let Some(limit) = data.limit {
            train.truncate(limit);
        }
        Ok(Self { train, held_out })
    }
}

/// All rows of one file, with `column` besides prompts and completions.
///
/// # Errors
/// When it is missing, empty or malformed.
pub fn read(path: &Path, format: Option<Format>, column: Option<&str>) -> Result<Vec<Row>> {
    let rows = match format.map_or_else(|| Format::of(path), Ok)? {
        Format::Jsonl => jsonl::read(path)?,
        Format::Parquet => {
            let wanted: Vec<&str> = row::KEYS.into_iter().chain(column).collect();
            parquet::read(path, &wanted)?
        }
    };
    if rows.is_empty() {
        return Err(Error::Data { path: path.to_owned(), line: None, what: "no rows".to_owned() });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
