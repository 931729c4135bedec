//! `adapter_config.json` in PEFT's format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use runtime::read;
use runtime::request::TrainState;
use runtime::source::ModelSource;
use serde_json::{Value, json};

use crate::recipe::{Lora, Recipe};
use crate::{Error, Result};

/// The file's description of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// The base by the name that PEFT and llama.cpp's converter look for, and its revision. `None` of a student with only
    /// some of a model's layers, which has no name that they know.
    base: Option<(String, Option<String>)>,
    lora: Lora,
}

impl AdapterConfig {
    /// The adapter of a run with `[lora]`.
    ///
    /// # Errors
    /// A `student.model` that is no source.
    pub fn new(recipe: &Recipe, lora: &Lora) -> Result<Self> {
        let base = ModelSource::parse(&recipe.student.model)?.base_name();
        Ok(Self { base: recipe.student.layers.is_none().then_some(base), lora: lora.clone() })
    }

    pub(super) fn write(&self, folder: &Path, state: &TrainState) -> Result<()> {
        let path = folder.join("adapter_config.json");
        let text = serde_json::to_string_pretty(&self.to_json(&self.targets(state))).expect("plain JSON");
        fs::write(&path, text).map_err(Error::io(&path))
    }

    /// The names that were asked for; for `all-linear`, the last part of every module that has a branch.
    fn targets(&self, state: &TrainState) -> BTreeSet<String> {
        let named = self.lora.target_modules.as_slice();
        if named.iter().any(|name| name == "all-linear") {
            let modules =
                state.weights.iter().filter_map(|tensor| tensor.name.split_once(".lora_A").map(|(module, _)| module));
            return modules.filter_map(|module| module.rsplit('.').next()).map(str::to_owned).collect();
        }
        named.iter().cloned().collect()
    }

    fn to_json(&self, targets: &BTreeSet<String>) -> Value {
        let lora = &self.lora;
        let fields: BTreeMap<&str, Value> = BTreeMap::from([
            ("alpha_pattern", json!(lora.alpha_pattern)),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base.as_ref().map(|(name, _)| name))),
            ("bias", json!("none")),
            ("corda_config", Value::Null),
            ("eva_config", Value::Null),
            ("exclude_modules", Value::Null),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layer_replication", Value::Null),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", Value::Null),
            ("loftq_config", json!({})),
            ("lora_alpha", whole_if_possible(lora.alpha)),
            ("lora_bias", json!(false)),
            ("lora_dropout", json!(lora.dropout)),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("modules_to_save", Value::Null),
            ("peft_type", json!("LORA")),
            ("r", json!(lora.r)),
            ("rank_pattern", json!(lora.rank_pattern)),
            ("revision", json!(self.base.as_ref().and_then(|(_, revision)| revision.as_ref()))),
            ("target_modules", json!(targets)),
            ("target_parameters", Value::Null),
            ("task_type", json!("CAUSAL_LM")),
            ("trainable_token_indices", Value::Null),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("use_rslora", json!(lora.rslora)),
        ]);
        json!(fields)
    }
}

/// PEFT types alpha as an integer; some loaders insist.
fn whole_if_possible(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e15 { json!(alpha as i64) } else { json!(alpha) }
}

/// Notes where the adapter in `folder` names another base than `source`. The shapes decide whether it fits, as in PEFT, and
/// a model may have several names, so this is no error; nor is what the loader will refuse.
pub(crate) fn note_other_base(folder: &Path, source: &str, note: &dyn Fn(&str)) {
    let Ok(config) = read::json::<Value>(&folder.join("adapter_config.json")) else { return };
    let Some(named) = config["base_model_name_or_path"].as_str().filter(|name| !name.is_empty()) else { return };
    let Ok((ours, _)) = ModelSource::parse(source).map(|source| source.base_name()) else { return };
    // Adapters of older versions have the source itself.
    let named = ModelSource::parse(named).map_or_else(|_| named.to_owned(), |source| source.base_name().0);
    let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or(name).to_lowercase();
    if last(&named) != last(&ours) {
        note(&format!("note: the adapter {} was made for {named}, and the model is {ours}", folder.display()));
    }
}
