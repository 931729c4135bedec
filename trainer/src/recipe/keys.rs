//! Which keys exist, asked of the types themselves, and the nearest one to a key that does not.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::names::SYNONYMS;
use super::raw::sections;
use crate::{Error, Result};

/// The keys that `T`, a struct, accepts.
pub(crate) fn fields_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // The probe always stops with an error once it has seen the names.
    let _stopped = T::deserialize(Probe { fields: &mut fields });
    fields
}

struct Probe<'a> {
    fields: &'a mut &'static [&'static str],
}

#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("probed")
    }
}

impl std::error::Error for Stop {}

impl serde::de::Error for Stop {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        Err(Stop)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Stop> {
        *self.fields = fields;
        Err(Stop)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Refuses the first key that no section knows.
pub(crate) fn check(table: &toml::Table) -> Result<()> {
    let sections = sections();
    for (section, known) in &sections {
        let Some(table) = find(table, section) else { continue };
        for key in table.keys() {
            if !known.contains(&key.as_str()) {
                let key = join(section, key);
                return Err(Error::UnknownKey { nearest: nearest(&key, &sections), key });
            }
        }
    }
    Ok(())
}

fn find<'a>(table: &'a toml::Table, section: &str) -> Option<&'a toml::Table> {
    section.split('.').filter(|part| !part.is_empty()).try_fold(table, |table, part| table.get(part)?.as_table())
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// The known dotted key that `key` stands for: what another program calls by this name, else the one most like it, first
/// among its own section's, then anywhere by the last part of the name.
fn nearest(key: &str, sections: &[(&str, &[&str])]) -> Option<String> {
    let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
    if let Some((_, ours)) = SYNONYMS.iter().find(|(theirs, ours)| *theirs == last && *ours != key) {
        return Some((*ours).to_owned());
    }
    let known = sections.iter().flat_map(|(section, keys)| keys.iter().map(|key| (*section, *key)));
    known
        .map(|(in_section, name)| {
            let away = if in_section == section { 0.0 } else { 0.1 };
            (strsim::jaro_winkler(last, name) - away, join(in_section, name))
        })
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(&a.1)))
        .map(|(_, name)| name)
}
