//! Rows of prompts and completions, from JSONL and Parquet files.
//!
//! ```
//! use data::{Cursor, RowPrompt};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("prompts.jsonl");
//! std::fs::write(&path, "{\"prompt\": \"Why is the sky blue?\"}\n{\"prompt\": \"What is a volcano?\"}\n")?;
//! let rows = data::read(&path, None, None)?;
//! assert_eq!(rows[1].prompt, RowPrompt::Text("What is a volcano?".to_owned()));
//! // The order of an epoch depends on the seed alone.
//! let mut cursor = Cursor::new(rows.len(), Some(7), 0);
//! assert_eq!(cursor.take(2), Cursor::new(rows.len(), Some(7), 0).take(2));
//! # Ok(())
//! # }
//! ```

mod cursor;
mod jsonl;
pub mod parquet;
mod row;

use std::path::Path;

pub use cursor::Cursor;
pub use row::{Completion, Message, Origin, Row, RowPrompt};

use command::{Error, Result};

/// A data file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

impl FileFormat {
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

/// All rows of one file, with `column` besides prompts and completions.
///
/// # Errors
/// When it is missing, empty or malformed.
pub fn read(path: &Path, format: Option<FileFormat>, column: Option<&str>) -> Result<Vec<Row>> {
    let rows = match format.map_or_else(|| FileFormat::of(path), Ok)? {
        FileFormat::Jsonl => jsonl::read(path)?,
        FileFormat::Parquet => {
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
