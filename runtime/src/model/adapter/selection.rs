//! Which modules an `adapter_config.json` selects, by PEFT's rules.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Names, one regular expression for whole names, or every projection.
enum Names {
    Listed(Vec<String>),
    Pattern(Regex),
    All,
}

impl Names {
    fn read(path: &Path, map: &Map<String, Value>, key: &str) -> Result<Option<Self>> {
        let bad = |value: &Value| Error::bad_key(path, key, value, "a list of module names or one pattern is needed");
        match map.get(key).unwrap_or(&Value::Null) {
            Value::Null => Ok(None),
            Value::String(pattern) => {
                let regex = Regex::new(&format!("^(?:{pattern})$"));
                let regex = regex.map_err(|e| Error::bad_key(path, key, pattern, format!("no pattern: {e}")))?;
                Ok(Some(Self::Pattern(regex)))
            }
            value @ Value::Array(names) => {
                let name = |name: &Value| name.as_str().map(str::to_owned).ok_or_else(|| bad(value));
                Ok(Some(Self::Listed(names.iter().map(name).collect::<Result<_>>()?)))
            }
            other => Err(bad(other)),
        }
    }

    fn hold(&self, module: &str) -> bool {
        match self {
            Self::All => true,
            Self::Pattern(regex) => regex.is_match(module),
            Self::Listed(names) => names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

/// The modules that an adapter has.
pub(super) struct Selection {
    targets: Names,
    excluded: Option<Names>,
    /// `None` is every layer.
    layers: Option<Vec<usize>>,
}

impl Selection {
    /// From the keys `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` of the file `path`.
    ///
    /// # Errors
    /// A value of another kind.
    pub(super) fn read(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let targets = match map.get("target_modules").unwrap_or(&Value::Null) {
            // PEFT's default for these families.
            Value::Null => Names::Listed(["q_proj", "v_proj"].map(str::to_owned).into()),
            Value::String(all) if all == "all-linear" => Names::All,
            _ => Names::read(path, map, "target_modules")?.unwrap_or(Names::Listed(vec![])),
        };
        let layers = layers(path, map.get("layers_to_transform").unwrap_or(&Value::Null))?;
        if layers.is_some() && matches!(targets, Names::Pattern(_)) {
            let want = "PEFT allows it only with a list of target_modules";
            return Err(Error::bad_key(path, "layers_to_transform", &map["layers_to_transform"], want));
        }
        let named = Names::read(path, map, "layers_pattern")?;
        let layers_of_the_model = |pattern: &str| pattern == "layers" || pattern.is_empty();
        let every = match &named {
            None => true,
            Some(Names::Listed(patterns)) => patterns.iter().all(|pattern| layers_of_the_model(pattern)),
            Some(Names::Pattern(_) | Names::All) => {
                layers_of_the_model(map["layers_pattern"].as_str().unwrap_or_default())
            }
        };
        if named.is_some() && layers.is_none() {
            let want = "PEFT allows it only with layers_to_transform";
            return Err(Error::bad_key(path, "layers_pattern", &map["layers_pattern"], want));
        }
        if !every {
            let want = "the layers of these models are called \"layers\"";
            return Err(Error::bad_key(path, "layers_pattern", &map["layers_pattern"], want));
        }
        Ok(Self { targets, excluded: Names::read(path, map, "exclude_modules")?, layers })
    }

    /// Whether the module `name` of `layer` is adapted.
    pub(super) fn holds(&self, layer: usize, name: &str) -> bool {
        self.targets.hold(name)
            && !self.excluded.as_ref().is_some_and(|excluded| excluded.hold(name))
            && self.layers.as_ref().is_none_or(|layers| layers.contains(&layer))
    }
}

/// One layer or a list of them; an empty list is every layer.
fn layers(path: &Path, value: &Value) -> Result<Option<Vec<usize>>> {
    let bad = || Error::bad_key(path, "layers_to_transform", value, "a layer or a list of layers is needed");
    let layer = |value: &Value| value.as_u64().and_then(|l| usize::try_from(l).ok()).ok_or_else(bad);
    match value {
        Value::Null => Ok(None),
        Value::Array(layers) if layers.is_empty() => Ok(None),
        Value::Array(layers) => layers.iter().map(layer).collect::<Result<_>>().map(Some),
        one => Ok(Some(vec![layer(one)?])),
    }
}
