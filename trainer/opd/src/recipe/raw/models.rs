//! What is trained and by whom: `[student]`, `[teacher]`, `[lora]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use data::Message;

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
    /// The token that ends a completion, such as `"<|im_end|>"`, or a list of them; for base models, whose files name another
    /// one than the chat template ends a turn with. Default: those of the model's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<OneOrMany<String>>,
}

/// `[teacher]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTeacher {
    /// `model`, `self`, `checkpoint` or `remote`; inferred from `model` / `path` / `url` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A model source, for `kind = "model"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A checkpoint folder (adapter or full weights), for `kind = "checkpoint"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A server that answers for the teacher, for `kind = "remote"`: `http://HOST:PORT` or `https://...`, with
    /// or without `/v1`, and without a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `remote`: `arle` (`arle serve`; every loss) or `openai` (any server that echoes prompts with log-probabilities;
    /// `policy_gradient` only). Default `arle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// `remote`: which of the server's models. Default: its first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_model: Option<String>,
    /// `remote`: file whose first line is the server's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// `remote`: file with the certificates (PEM) of the authority that signed an https server's. Default: those of the file
    /// that the environment names as SSL_CERT_FILE, else Mozilla's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// `remote`: seconds that one request may take. Default 300.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// `remote`: how often a request is repeated after a lost connection, a timeout, 429 or 5xx, with pauses of 0.5, 1, 2 ...
    /// 30 s, or those of `Retry-After`. Default 8: about a minute and a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// `remote`: requests at a time. Default 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// `remote`: whole rows of logits, as `bf16` (half the bytes) or `f32` (on a CPU the bits of a teacher in the run).
    /// Default `bf16`; not with `top_k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
    /// `remote`: only so many of the likeliest tokens of every position, and one bucket for all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Keep the teacher's layers in the host's memory; each forward pass moves them to the GPU one after another. Saves
    /// the GPU's memory, costs time, most of it where the teacher generates (`loss.seq_kd`, held-out samples). Default false.
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
#[serde(untagged, expecting = "expected a value or a list of values, all of one type")]
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
