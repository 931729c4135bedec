//! Parquet files, row by row, as the JSON objects they would be.

use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as ParquetRow};
use runtime::{caught, read};
use serde_json::{Map, Value};

use super::row::{Origin, Row};
use crate::{Error, Result};

pub(super) fn read(path: &Path) -> Result<Vec<Row>> {
    let shared = Arc::new(path.to_owned());
    let rows = objects(path)?.into_iter().enumerate();
    rows.map(|(index, row)| Row::from_json(row, Origin { path: Arc::clone(&shared), line: index + 1 })).collect()
}

/// The rows of a file.
///
/// # Errors
/// What is no Parquet file; values that JSON has not, by row.
pub(crate) fn objects(path: &Path) -> Result<Vec<Map<String, Value>>> {
    // The library panics on some damaged files.
    caught(|| all_objects(path)).map_err(|panic| {
        let what = format!("the file is damaged: the parquet library fails on it: {panic}");
        Error::Data { path: path.to_owned(), line: None, what }
    })?
}

fn all_objects(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let refuse = |line: Option<usize>, what: String| Error::Data { path: path.to_owned(), line, what };
    let file = read::open(path)?;
    let reader = SerializedFileReader::new(file).map_err(|e| refuse(None, e.to_string()))?;
    let rows = reader.get_row_iter(None).map_err(|e| refuse(None, e.to_string()))?.enumerate();
    rows.map(|(index, row)| {
        let row = row.map_err(|e| e.to_string()).and_then(|row| object(&row));
        row.map_err(|what| refuse(Some(index + 1), what))
    })
    .collect()
}

fn object(row: &ParquetRow) -> Result<Map<String, Value>, String> {
    row.get_column_iter()
        .map(|(name, field)| Ok((name.clone(), value(field).map_err(|what| format!("column `{name}`: {what}"))?)))
        .collect()
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(v) => Value::from(*v),
        Field::Byte(v) => Value::from(*v),
        Field::Short(v) => Value::from(*v),
        Field::Int(v) => Value::from(*v),
        Field::Long(v) => Value::from(*v),
        Field::UByte(v) => Value::from(*v),
        Field::UShort(v) => Value::from(*v),
        Field::UInt(v) => Value::from(*v),
        Field::ULong(v) => Value::from(*v),
        Field::Float(v) => Value::from(*v),
        Field::Double(v) => Value::from(*v),
        Field::Str(v) => Value::from(v.as_str()),
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect::<Result<_, _>>()?),
        other => return Err(format!("cannot use a value of this type: {other}")),
    })
}
