//! The models that a server answers for, and the names that select them.

use std::sync::{Arc, PoisonError, RwLock};

use runtime::files::ModelFiles;
use runtime::request::{ModelId, ModelSnapshot, Snapshot};
use runtime::text::{ChatTemplate, Tokenizer};

use crate::api_error::ApiError;
use crate::metrics::ModelMetrics;
use crate::structured::grammar::Grammars;
use crate::{Error, Result};
use telemetry::{KeyValue, Scope};

/// One model, or one adapter on a model, under its names.
#[derive(Clone)]
pub struct ServedModel {
    /// What requests may call it; the first is what answers call it.
    pub names: Vec<String>,
    /// Where the runtime holds it.
    pub id: ModelId,
    /// The model that an adapter stands on; `None` for a base model.
    pub base: Option<ModelId>,
    /// Its configuration, tokenizer and chat template.
    pub files: Arc<ModelFiles>,
}

/// A served model with what is kept about it.
pub(crate) struct Model {
    served: ServedModel,
    pub(crate) metrics: Arc<ModelMetrics>,
    pub(crate) grammars: Grammars,
}

impl Model {
    pub(crate) fn new(served: ServedModel) -> Self {
        let metrics = Arc::new(ModelMetrics::new(&served.names[0]));
        Self { served, metrics, grammars: Grammars::default() }
    }

    pub(crate) fn id(&self) -> ModelId {
        self.served.id
    }

    pub(crate) fn is_adapter(&self) -> bool {
        self.served.base.is_some()
    }

    pub(crate) fn files(&self) -> &ModelFiles {
        &self.served.files
    }

    pub(crate) fn shared_files(&self) -> &Arc<ModelFiles> {
        &self.served.files
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.served.names
    }

    pub(crate) fn name(&self) -> &str {
        &self.served.names[0]
    }

    /// Longest sequence, prompt and completion together.
    pub(crate) fn context(&self) -> usize {
        self.served.files.config.max_position_embeddings
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.served.files.config.vocab_size
    }

    pub(crate) fn tokenizer(&self) -> Result<&Arc<Tokenizer>, ApiError> {
        let missing = || ApiError::invalid("model", format!("{} has no tokenizer: send token ids", self.name()));
        self.served.files.tokenizer.as_ref().ok_or_else(missing)
    }

    pub(crate) fn chat_template(&self) -> Result<&ChatTemplate, ApiError> {
        let missing =
            || ApiError::invalid("model", format!("{} has no chat template: use /v1/completions", self.name()));
        self.served.files.chat_template.as_ref().ok_or_else(missing)
    }

    /// This model's part of the runtime's state.
    pub(crate) fn of(&self, snapshot: &Snapshot) -> ModelSnapshot {
        // A served id is there from the beginning.
        let loaded = snapshot.models.get(&self.served.id).or_else(|| snapshot.models.values().next());
        *loaded.expect("a runtime has a model")
    }

    /// What names a model with these weights.
    pub(crate) fn fingerprint(&self, version: u64) -> String {
        format!("{}@{version}", self.name())
    }
}

/// All of them; the first answers requests that name none. Adapters come and go.
pub(crate) struct Models(RwLock<Vec<Arc<Model>>>);

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
        Ok(Self(RwLock::new(models.into_iter().map(|model| Arc::new(Model::new(model))).collect())))
    }

    /// The model of this name; the first one for none.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let models = self.list();
        let Some(name) = name else { return Ok(Arc::clone(&models[0])) };
        Scope::current().set(vec![KeyValue::new("gen_ai.request.model", name.to_owned())]);
        let found = models.iter().find(|model| model.names().iter().any(|known| known == name));
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = models.iter().flat_map(|model| model.names()).map(String::as_str).collect();
            ApiError::model_not_found(name, &known.join(", "))
        })
    }

    /// All models of now, in the order in which they came.
    pub(crate) fn list(&self) -> Vec<Arc<Model>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a model whose names are free.
    pub(crate) fn add(&self, model: Arc<Model>) -> Result<(), ApiError> {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let taken = |name: &String| models.iter().any(|other| other.names().contains(name));
        if let Some(name) = model.names().iter().find(|name| taken(name)) {
            return Err(ApiError::invalid("lora_name", format!("a model is called \"{name}\" already")));
        }
        models.push(model);
        Ok(())
    }

    /// Where the adapter of this name is.
    pub(crate) fn adapter(&self, name: &str) -> Option<ModelId> {
        let adapters = self.list().into_iter().filter(|model| model.is_adapter());
        adapters.filter(|model| model.name() == name).map(|model| model.id()).next()
    }

    /// Takes the adapter of this name away, so that no new request finds it.
    pub(crate) fn take_adapter(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_adapter = |model: &Arc<Model>| model.is_adapter();
        let place = models.iter().position(|model| is_adapter(model) && model.name() == name);
        let known = || models.iter().filter(|m| is_adapter(m)).map(|m| m.name()).collect::<Vec<_>>().join(", ");
        let place = place.ok_or_else(|| ApiError::model_not_found(name, &known()).about("lora_name"))?;
        Ok(models.remove(place))
    }
}
