//! The rows of a run.

use data::{Row, read};

use crate::recipe::{Data, HeldOut};
use crate::{Error, Result};

/// The rows of a run.
#[derive(Debug, Clone)]
pub struct RunRows {
    /// Trained on.
    pub train: Vec<Row>,
    /// Never trained on.
    pub held_out: Vec<Row>,
}

impl RunRows {
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use data::RowPrompt;

    use super::*;

    #[test]
    fn the_last_rows_are_held_out_before_the_limit_applies() {
        let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().expect("a temporary file");
        for n in 0..10 {
            writeln!(file, "{{\"prompt\": \"p{n}\"}}").expect("written");
        }
        let mut data = Data {
            paths: vec![file.path().to_owned()],
            format: None,
            context_column: None,
            system_prompt: None,
            chat: None,
            shuffle: true,
            seed: 0,
            limit: Some(3),
            held_out: Some(HeldOut::LastRows(2)),
        };
        let rows = RunRows::load(&data).expect("valid");
        assert_eq!((rows.train.len(), rows.held_out.len()), (3, 2));
        assert_eq!(rows.held_out[1].prompt, RowPrompt::Text("p9".to_owned()));
        data.held_out = Some(HeldOut::LastRows(10));
        assert!(RunRows::load(&data).expect_err("nothing left").to_string().contains("data.eval_rows"));
    }
}
