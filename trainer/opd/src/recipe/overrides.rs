//! `--set a.b=value`.

use std::fmt;
use std::path::Path;

use super::paths;
use crate::{Error, Result};

/// One override.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The dotted key, split.
    path: Vec<String>,
    value: toml::Value,
}

impl Override {
    /// Parses `a.b=value`: the value is TOML, or else a bare string.
    ///
    /// # Errors
    /// Without a `=`, or with an empty part in the key.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse =
            |what: &str| Error::from(command::Error::Syntax { origin: format!("--set {text}"), what: what.to_owned() });
        let (key, value) =
            text.split_once('=').ok_or_else(|| refuse("expected KEY=VALUE, as in --set optim.lr=1e-4"))?;
        let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(refuse("the key has an empty part"));
        }
        Ok(Self { path, value: parse_value(value.trim()) })
    }

    /// The same with a path that does not depend on where the program was started.
    ///
    /// # Errors
    /// A current folder that is gone.
    pub(super) fn absolute(&self) -> Result<Self> {
        let mut table = toml::Table::new();
        self.apply(&mut table)?;
        paths::make_absolute(&mut table, Path::new("."))?;
        let (last, sections) = self.path.split_last().expect("split gives at least one part");
        let section = sections.iter().try_fold(&table, |table, part| table.get(part)?.as_table());
        let value = section.and_then(|table| table.get(last)).unwrap_or(&self.value);
        Ok(Self { path: self.path.clone(), value: value.clone() })
    }

    /// The dotted key.
    #[must_use]
    pub fn key(&self) -> String {
        self.path.join(".")
    }

    /// Writes the value into `table`, making the sections on the way.
    ///
    /// # Errors
    /// When a part of the key is there already and is not a section.
    pub fn apply(&self, table: &mut toml::Table) -> Result<()> {
        let (last, sections) = self.path.split_last().expect("split gives at least one part");
        let mut table = table;
        for section in sections {
            let entry = table.entry(section.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            table = entry.as_table_mut().ok_or_else(|| {
                Error::from(command::Error::Syntax {
                    origin: format!("--set {}", self.key()),
                    what: format!("`{section}` is a value, not a section"),
                })
            })?;
        }
        table.insert(last.clone(), self.value.clone());
        Ok(())
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key(), self.value)
    }
}

fn parse_value(text: &str) -> toml::Value {
    let parsed = format!("value = {text}").parse::<toml::Table>();
    parsed.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> toml::Table {
        let mut table = "[optim]\nlr = 1.0".parse::<toml::Table>().expect("TOML");
        Override::parse(text).expect("an override").apply(&mut table).expect("applies");
        table
    }

    #[test]
    fn values_keep_their_type_and_a_bare_word_is_a_string() {
        assert_eq!(applied("optim.lr=1e-4")["optim"]["lr"].as_float(), Some(1e-4));
        assert_eq!(applied("schedule.max_steps = 5")["schedule"]["max_steps"].as_integer(), Some(5));
        assert_eq!(applied("student.model=hf:org/name")["student"]["model"].as_str(), Some("hf:org/name"));
        assert_eq!(applied("student.layers=[0, 2]")["student"]["layers"].as_array().map(Vec::len), Some(2));
        assert_eq!(applied("a.b.c=true")["a"]["b"]["c"].as_bool(), Some(true));
        assert_eq!(applied("teacher.system_prompt=a = b")["teacher"]["system_prompt"].as_str(), Some("a = b"));
    }

    #[test]
    fn what_is_not_an_override_is_refused() {
        assert!(Override::parse("optim.lr").is_err());
        assert!(Override::parse("optim..lr=1").is_err());
        let mut table = "optim = 3".parse::<toml::Table>().expect("TOML");
        assert!(Override::parse("optim.lr=1").expect("parses").apply(&mut table).is_err());
    }
}
