//! Ranks and scales by module, from a recipe or from an `adapter_config.json`.

use std::collections::BTreeMap;

use regex::Regex;

use crate::model::LoraConfig;
use crate::{Error, Result};

/// Ranks and scales by module.
#[derive(Debug, Clone)]
pub(super) struct AdapterInfo {
    pub(super) r: usize,
    pub(super) alpha: f64,
    pub(super) rslora: bool,
    /// The first one that matches a module decides.
    pub(super) rank_pattern: Vec<(Regex, usize)>,
    pub(super) alpha_pattern: Vec<(Regex, f64)>,
}

impl AdapterInfo {
    /// From a recipe.
    ///
    /// # Errors
    /// A rank of zero, or a pattern that is no regular expression.
    pub(super) fn new(lora: &LoraConfig) -> Result<Self> {
        let info = Self {
            r: lora.r,
            alpha: lora.alpha,
            rslora: lora.rslora,
            rank_pattern: compile_all(&lora.rank_pattern)?,
            alpha_pattern: compile_all(&lora.alpha_pattern)?,
        };
        let smallest = info.rank_pattern.iter().map(|(_, r)| *r).chain([info.r]).min();
        if smallest == Some(0) { Err(Error::Lora("a rank is 0; it must be at least 1".to_owned())) } else { Ok(info) }
    }

    pub(super) fn rank(&self, module: &str) -> usize {
        lookup(&self.rank_pattern, module).unwrap_or(self.r)
    }

    pub(super) fn scale(&self, module: &str, rank: usize) -> f32 {
        let alpha = lookup(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = rank as f64;
        (if self.rslora { alpha / rank.sqrt() } else { alpha / rank }) as f32
    }
}

/// PEFT matches `(.*\.)?KEY$` from the beginning of a module's name.
pub(super) fn compile(key: &str) -> Result<Regex> {
    Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).map_err(|e| Error::Lora(format!("pattern \"{key}\": {e}")))
}

fn compile_all<T: Copy>(patterns: &BTreeMap<String, T>) -> Result<Vec<(Regex, T)>> {
    patterns.iter().map(|(key, &value)| Ok((compile(key)?, value))).collect()
}

fn lookup<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
}
