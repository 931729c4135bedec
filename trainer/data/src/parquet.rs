//! Parquet files, row by row, as the JSON objects they would be.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as ParquetRow};
use parquet::schema::types::Type;
use runtime::{caught, read};
use serde_json::{Map, Value};

use super::row::{Origin, Row};
use command::{Error, Result};

/// The rows of a file; columns other than `wanted` are not read.
pub(super) fn read(path: &Path, wanted: &[&str]) -> Result<Vec<Row>> {
    let shared = Arc::new(path.to_owned());
    let rows = objects(path, Some(wanted))?.into_iter().enumerate();
    rows.map(|(index, row)| Row::from_json(row, Origin { path: Arc::clone(&shared), line: index + 1 })).collect()
}

/// The rows of a file, with the columns that are `wanted`, or all those of types that JSON has.
///
/// # Errors
/// What is no Parquet file; a wanted column, or a value, of a type that JSON has not.
pub fn objects(path: &Path, wanted: Option<&[&str]>) -> Result<Vec<Map<String, Value>>> {
    // The library panics on some damaged files.
    caught(|| all_objects(path, wanted)).map_err(|panic| {
        let what = format!("the file is damaged: the parquet library fails on it: {panic}");
        Error::Data { path: path.to_owned(), line: None, what }
    })?
}

fn all_objects(path: &Path, wanted: Option<&[&str]>) -> Result<Vec<Map<String, Value>>> {
    let refuse = |line: Option<usize>, what: String| Error::Data { path: path.to_owned(), line, what };
    let file = read::open(path)?;
    let reader = SerializedFileReader::new(file).map_err(|e| refuse(None, e.to_string()))?;
    let schema = reader.metadata().file_metadata().schema();
    let columns = columns(schema, wanted).map_err(|what| refuse(None, what))?;
    let rows = reader.get_row_iter(Some(columns)).map_err(|e| refuse(None, e.to_string()))?.enumerate();
    rows.map(|(index, row)| {
        let row = row.map_err(|e| e.to_string()).and_then(|row| object(&row));
        row.map_err(|what| refuse(Some(index + 1), what))
    })
    .collect()
}

/// The part of a schema that is read.
fn columns(schema: &Type, wanted: Option<&[&str]>) -> Result<Type, String> {
    let mut kept = Vec::new();
    for column in schema.get_fields() {
        let usable = is_usable(column);
        match wanted {
            Some(wanted) if !wanted.contains(&column.name()) => {}
            Some(_) if !usable => return Err(unusable(column)),
            Some(_) | None => kept.extend(usable.then(|| Arc::clone(column))),
        }
    }
    if kept.is_empty() {
        let names: Vec<&str> = schema.get_fields().iter().map(|column| column.name()).collect();
        return Err(match wanted {
            Some(wanted) => format!("has none of the columns {}; it has {}", wanted.join(", "), names.join(", ")),
            None => format!("has no column of texts, numbers, lists or groups; it has {}", names.join(", ")),
        });
    }
    let part = Type::group_type_builder(schema.name()).with_fields(kept).build();
    part.map_err(|e| e.to_string())
}

fn unusable(column: &Type) -> String {
    let is = match column {
        Type::PrimitiveType { physical_type, .. } => {
            let logical = column.get_basic_info().logical_type_ref();
            logical.map_or_else(|| format!("{physical_type:?}"), |logical| format!("{logical:?} in {physical_type:?}"))
        }
        Type::GroupType { .. } => "a map, or a group with such values".to_owned(),
    };
    format!(
        "column `{}` is of the type {is}; a column that is used must hold texts, booleans, numbers, or lists or groups of \
         them",
        column.name()
    )
}

/// Whether JSON has the values of a column.
fn is_usable(column: &Type) -> bool {
    let info = column.get_basic_info();
    match column {
        Type::GroupType { fields, .. } => {
            let map = matches!(info.converted_type(), ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE)
                || matches!(info.logical_type_ref(), Some(LogicalType::Map));
            !map && fields.iter().all(|field| is_usable(field))
        }
        Type::PrimitiveType { physical_type, .. } => match physical_type {
            Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
            Physical::INT32 | Physical::INT64 => {
                matches!(
                    info.converted_type(),
                    ConvertedType::NONE
                        | ConvertedType::INT_8
                        | ConvertedType::INT_16
                        | ConvertedType::INT_32
                        | ConvertedType::INT_64
                        | ConvertedType::UINT_8
                        | ConvertedType::UINT_16
                        | ConvertedType::UINT_32
                        | ConvertedType::UINT_64
                ) && matches!(info.logical_type_ref(), None | Some(LogicalType::Integer { .. }))
            }
            Physical::BYTE_ARRAY => {
                matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON)
            }
            Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
        },
    }
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
