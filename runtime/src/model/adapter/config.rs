//! `adapter_config.json` of PEFT: every key of its 0.21 is honoured here, known to change nothing, or refused by name.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use super::info::{AdapterInfo, compile};
use super::selection::Selection;
use crate::{Error, Result, read};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// It is read below.
    Read,
    /// It changes nothing in a loaded adapter on linear layers.
    Harmless,
    /// It switches on what is not implemented, unless it is absent, null, false, "none" or empty.
    Off,
    /// It switches on what is not implemented, also when it is empty, unless it is absent or null.
    Null,
}

use Rule::{Harmless, Null, Off, Read};

/// The keys of PEFT 0.21's `LoraConfig`, and of older ones.
const KEYS: [(&str, Rule); 45] = [
    ("peft_type", Read),
    ("task_type", Read),
    ("r", Read),
    ("lora_alpha", Read),
    ("use_rslora", Read),
    ("rank_pattern", Read),
    ("alpha_pattern", Read),
    ("init_lora_weights", Read),
    ("target_modules", Read),
    ("exclude_modules", Read),
    ("layers_to_transform", Read),
    ("layers_pattern", Read),
    ("auto_mapping", Harmless),
    ("peft_version", Harmless),
    // Whose adapter this is. The shapes decide whether it fits, as in PEFT.
    ("base_model_name_or_path", Harmless),
    ("revision", Harmless),
    ("inference_mode", Harmless),
    // Of training. A run that continues the adapter has `lora.dropout`.
    ("lora_dropout", Harmless),
    // PEFT sets it to false for linear layers.
    ("fan_in_fan_out", Harmless),
    // These belong to initializations and variants, which other keys select.
    ("megatron_core", Harmless),
    ("loftq_config", Harmless),
    ("eva_config", Harmless),
    ("corda_config", Harmless),
    ("lora_ga_config", Harmless),
    ("qalora_group_size", Harmless),
    // How PEFT moves tensors between devices.
    ("runtime_config", Harmless),
    // About embeddings, whose tensors are refused.
    ("ensure_weight_tying", Harmless),
    ("bias", Off),
    ("modules_to_save", Off),
    ("megatron_config", Null),
    ("trainable_token_indices", Off),
    ("use_dora", Off),
    ("velora_config", Null),
    ("alora_invocation_tokens", Null),
    ("use_qalora", Off),
    ("monteclora_config", Null),
    ("layer_replication", Off),
    ("lora_bias", Off),
    ("target_parameters", Off),
    ("use_bdlora", Null),
    ("arrow_config", Null),
    ("kasa_config", Null),
    // Of PEFT before 0.3.
    ("enable_lora", Off),
    ("merge_weights", Harmless),
    ("modules_mapping", Off),
];

/// Initializations that leave the base weights as they are.
const INITIALIZATIONS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// A configuration's description of an adapter's tensors.
pub(super) struct FileConfig {
    pub(super) info: AdapterInfo,
    /// The modules that an adapter has.
    pub(super) selection: Selection,
}

/// Reads the configuration in the folder `dir`.
///
/// # Errors
/// A file that is missing or malformed; a key that selects what is not implemented.
pub(super) fn read(dir: &Path) -> Result<FileConfig> {
    let path = dir.join("adapter_config.json");
    let json: Value = read::json(&path)?;
    let Value::Object(map) = json else { return Err(Error::bad_file(&path, "a JSON object is needed")) };
    let config = AdapterKeys { dir, path: &path, map: &map };
    config.check_all()?;
    config.check_initialization()?;
    let info = AdapterInfo {
        r: config.rank("r", map.get("r"), 8)?,
        alpha: config.number("lora_alpha", map.get("lora_alpha"), 8.0)?,
        rslora: config.flag("use_rslora")?,
        rank_pattern: config.pattern("rank_pattern", |value| config.rank("rank_pattern", Some(value), 0))?,
        alpha_pattern: config.pattern("alpha_pattern", |value| config.number("alpha_pattern", Some(value), 0.0))?,
    };
    Ok(FileConfig { info, selection: Selection::read(&path, &map)? })
}

/// The keys of one file.
struct AdapterKeys<'a> {
    dir: &'a Path,
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl AdapterKeys<'_> {
    /// Refuses what would change the result and is not implemented.
    fn check_all(&self) -> Result<()> {
        match self.map.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            other => {
                let got = other.unwrap_or(&Value::Null);
                return Err(self.refuse(format!("peft_type is {got}, only LORA is supported")));
            }
        }
        match self.map.get("task_type").unwrap_or(&Value::Null) {
            Value::Null => {}
            Value::String(task) if task == "CAUSAL_LM" => {}
            other => return Err(self.refuse(format!("task_type is {other}, only CAUSAL_LM is supported"))),
        }
        for (key, value) in self.map.iter().filter(|(_, value)| !value.is_null()) {
            match KEYS.iter().find(|(known, _)| known == key) {
                Some((_, Read | Harmless)) => {}
                Some((_, Off)) | None if is_off(value) => {}
                Some((_, Off | Null)) => return Err(self.refuse(format!("{key} = {value} is not supported"))),
                None => {
                    let what = format!("{key} = {value} is not a key of PEFT 0.21, so what it changes is not known");
                    return Err(self.refuse(what));
                }
            }
        }
        Ok(())
    }

    /// Some initializations move a part of the base weights into A and B: the adapter is the difference to a base
    /// that the file does not hold.
    fn check_initialization(&self) -> Result<()> {
        let value = self.map.get("init_lora_weights").unwrap_or(&Value::Null);
        match value {
            Value::Null | Value::Bool(_) => Ok(()),
            Value::String(name) if INITIALIZATIONS.contains(&name.to_lowercase().as_str()) => Ok(()),
            other => Err(self.refuse(format!(
                "init_lora_weights = {other} changed the base weights that this adapter belongs to; save it again with PEFT's \
                 save_pretrained(.., path_initial_model_for_weight_conversion=..), which makes a plain adapter of it"
            ))),
        }
    }

    fn rank(&self, key: &str, value: Option<&Value>, default: usize) -> Result<usize> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(default) };
        let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|&rank| rank > 0);
        rank.ok_or_else(|| Error::bad_key(self.path, key, value, "a rank of at least 1 is needed"))
    }

    fn number(&self, key: &str, value: Option<&Value>, default: f64) -> Result<f64> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(default) };
        value.as_f64().ok_or_else(|| Error::bad_key(self.path, key, value, "a number is needed"))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.map.get(key).unwrap_or(&Value::Null) {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            other => Err(Error::bad_key(self.path, key, other, "true or false is needed")),
        }
    }

    /// A map from patterns to values, in the file's order, which decides where several match.
    fn pattern<T>(&self, key: &str, read: impl Fn(&Value) -> Result<T>) -> Result<Vec<(Regex, T)>> {
        match self.map.get(key).unwrap_or(&Value::Null) {
            Value::Null => Ok(vec![]),
            Value::Object(patterns) => {
                let compile = |pattern: &String| compile(pattern).map_err(|e| self.refuse(format!("{key}: {e}")));
                patterns.iter().map(|(pattern, value)| Ok((compile(pattern)?, read(value)?))).collect()
            }
            other => Err(Error::bad_key(self.path, key, other, "an object of module names and values is needed")),
        }
    }

    fn refuse(&self, detail: String) -> Error {
        Error::Adapter { path: self.dir.to_owned(), detail }
    }
}

/// Whether a value leaves a feature off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none" || text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PEFT's own list of keys with their defaults, see `scripts/fixtures/make_key.py`.
    #[test]
    fn every_key_of_peft_is_known_and_its_default_is_accepted() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/keys.json");
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let defaults = fixture["peft"].as_object().unwrap();
        assert!(defaults.len() > 40);
        let known = |key: &String| KEYS.iter().any(|(known, _)| known == key);
        assert_eq!(defaults.keys().find(|key| !known(key)), None, "a key of PEFT without a rule");
        let mut map = defaults.clone();
        map.insert("peft_type".into(), "LORA".into());
        let dir = Path::new("adapter");
        let keys = AdapterKeys { dir, path: dir, map: &map };
        keys.check_all().unwrap();
        keys.check_initialization().unwrap();
        for (key, rule) in KEYS {
            let mut map = map.clone();
            map.insert(key.into(), serde_json::json!({"on": 1}));
            let refused = AdapterKeys { dir, path: dir, map: &map }.check_all().err().map(|e| e.to_string());
            match rule {
                Off | Null => assert!(refused.unwrap().contains(key)),
                Harmless => assert_eq!(refused, None),
                Read => {}
            }
        }
    }
}
