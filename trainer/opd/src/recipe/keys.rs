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
struct StopProbe;

impl fmt::Display for StopProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("probed")
    }
}

impl std::error::Error for StopProbe {}

impl serde::de::Error for StopProbe {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = StopProbe;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, StopProbe> {
        Err(StopProbe)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, StopProbe> {
        *self.fields = fields;
        Err(StopProbe)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Refuses the first key that no section has.
pub(crate) fn check(table: &toml::Table) -> Result<()> {
    let sections = sections();
    known(table, "", &sections)?;
    for (section, _) in sections.iter().filter(|(section, _)| !section.is_empty()) {
        let Some(value) = find(table, section) else { continue };
        let Some(table) = value.as_table() else {
            return Err(Error::value(section, value, format!("a table, as in [{section}]")));
        };
        known(table, section, &sections)?;
    }
    Ok(())
}

/// Refuses the first key of the table of `section` that it does not have.
fn known(table: &toml::Table, section: &str, sections: &[(&str, &[&str])]) -> Result<()> {
    let (_, known) = sections.iter().find(|(name, _)| *name == section).expect("a section of the list");
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let key = join(section, key);
            Err(Error::UnknownKey { nearest: nearest(&key, sections), key })
        }
    }
}

/// What stands under the dotted path of a section.
fn find<'a>(table: &'a toml::Table, section: &str) -> Option<&'a toml::Value> {
    let (first, rest) = section.split_once('.').map_or((section, None), |(first, rest)| (first, Some(rest)));
    let value = table.get(first)?;
    rest.map_or(Some(value), |rest| find(value.as_table()?, rest))
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
