//! The models that a server answers for, and the names that select them.

use std::sync::Arc;

use runtime::files::ModelFiles;
use runtime::request::{Slot, SlotSnapshot, Snapshot};
use runtime::text::{ChatTemplate, Tokenizer};

use crate::api_error::ApiError;
use crate::{Error, Result};

/// One model, or one adapter on a model, under its names.
#[derive(Clone)]
pub struct ServedModel {
    /// What requests may call it; the first is what answers call it.
    pub names: Vec<String>,
    /// Where the runtime holds it.
    pub slot: Slot,
    /// Its configuration, tokenizer and chat template.
    pub files: Arc<ModelFiles>,
}

impl ServedModel {
    pub(crate) fn name(&self) -> &str {
        &self.names[0]
    }

    /// Longest sequence, prompt and completion together.
    pub(crate) fn context(&self) -> usize {
        self.files.config.max_position_embeddings
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.files.config.vocab_size
    }

    pub(crate) fn tokenizer(&self) -> Result<&Arc<Tokenizer>, ApiError> {
        let missing = || ApiError::invalid("model", format!("{} has no tokenizer: send token ids", self.name()));
        self.files.tokenizer.as_ref().ok_or_else(missing)
    }

    pub(crate) fn chat_template(&self) -> Result<&ChatTemplate, ApiError> {
        let missing =
            || ApiError::invalid("model", format!("{} has no chat template: use /v1/completions", self.name()));
        self.files.chat_template.as_ref().ok_or_else(missing)
    }

    /// This model's part of the runtime's state.
    pub(crate) fn of(&self, snapshot: &Snapshot) -> SlotSnapshot {
        // A served slot is there from the beginning.
        snapshot.of(self.slot).unwrap_or(snapshot.student)
    }

    /// What names a model with these weights.
    pub(crate) fn fingerprint(&self, version: u64) -> String {
        format!("{}@{version}", self.name())
    }
}

/// All of them; the first answers requests that name none.
pub(crate) struct Models(Vec<Arc<ServedModel>>);

impl Models {
    /// # Errors
    /// No model, or two under one name.
    pub(crate) fn new(models: Vec<ServedModel>) -> Result<Self> {
        if models.is_empty() || models.iter().any(|model| model.names.is_empty()) {
            return Err(Error::Models("there is no model to serve, or one without a name".to_owned()));
        }
        let mut names: Vec<&String> = models.iter().flat_map(|model| &model.names).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Models(format!("two models are called \"{}\"; give one another name", pair[0])));
        }
        Ok(Self(models.into_iter().map(Arc::new).collect()))
    }

    /// The model of this name; the first one for none. Also its place in the list.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<(usize, &Arc<ServedModel>), ApiError> {
        let Some(name) = name else { return Ok((0, &self.0[0])) };
        let found = self.0.iter().enumerate().find(|(_, model)| model.names.iter().any(|known| known == name));
        found.ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().flat_map(|model| &model.names).map(String::as_str).collect();
            ApiError::model_not_found(name, &known.join(", "))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ServedModel>> {
        self.0.iter()
    }
}
