//! In what two recipes differ.

use std::collections::{BTreeMap, BTreeSet};

use super::Recipe;

impl Recipe {
    /// Dotted keys whose values differ from `other`'s, with both values.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let (ours, theirs) = (self.flat(), other.flat());
        let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let show = |value: Option<&toml::Value>| value.map_or_else(|| "(absent)".to_owned(), ToString::to_string);
        keys.into_iter()
            .filter(|key| ours.get(*key) != theirs.get(*key))
            .map(|key| (key.clone(), show(ours.get(key)), show(theirs.get(key))))
            .collect()
    }

    fn flat(&self) -> BTreeMap<String, toml::Value> {
        fn walk(prefix: &str, table: &toml::Table, out: &mut BTreeMap<String, toml::Value>) {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                match value {
                    toml::Value::Table(inner) => walk(&key, inner, out),
                    _ => {
                        out.insert(key, value.clone());
                    }
                }
            }
        }
        let mut out = BTreeMap::new();
        let table = toml::Table::try_from(&self.filled).expect("a recipe holds only what TOML can write");
        walk("", &table, &mut out);
        out
    }
}
