//! What is trained and by whom: `[student]`, `[teacher]`, `[lora]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::Message;

/// `[student]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawStudent {
    /// A folder, a GGUF file, `hf:org/name[@rev]` or `pypi:package==version`. Required.
    pub model: String,
    /// Keep only these layers of it, in this order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// A PEFT adapter to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
}

/// `[teacher]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTeacher {
    /// `model`, `self` or `checkpoint`; told from `model` / `path` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A model source, for `kind = "model"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A checkpoint folder (adapter or full weights), for `kind = "checkpoint"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Keep the teacher's layers in the host's memory; each forward pass moves them to the GPU one after another. Saves
    /// the card's memory, costs time, most of it where the teacher writes (`loss.seq_kd`, held-out samples). Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload: Option<bool>,
    /// A system prompt that only the teacher sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Messages that only the teacher sees, put before the row's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub few_shot: Vec<Message>,
    /// Column of the data with text that only the teacher sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_column: Option<String>,
    /// The text around it; `{context}` stands for the column's value. Default `{context}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_template: Option<String>,
}

/// One value, or a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// `key = value`
    One(T),
    /// `key = [value, ...]`
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values as a slice.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// `[lora]`, with PEFT's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale `alpha / r`.
    pub alpha: f64,
    /// Probability of zeroing an input of A during training.
    pub dropout: f64,
    /// Scale by `alpha / sqrt(r)`.
    pub rslora: bool,
    /// Module names, or `all-linear`.
    pub target_modules: OneOrMany<String>,
    /// Ranks of single modules.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single modules.
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            r: 32,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            target_modules: OneOrMany::One("all-linear".to_owned()),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}
