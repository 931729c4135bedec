//! From a recipe to a running runtime: models, guards, data, memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::RuntimeHandle;
use runtime::config::ModelConfig;
use runtime::files::ModelFiles;
use runtime::request::{EngineConfig, RuntimeSpec, SlotSpec};
use runtime::source::ModelSource;

use crate::checkpoint::{ADAPTER_WEIGHTS, AdapterConfig, Export, ModelExport};
use crate::data::{Row, Rows};
use crate::memory::{self, Forecast, Plan};
use crate::progress::Progress;
use crate::prompt::{Encoder, Example};
use crate::recipe::{Recipe, Teacher, TeacherWeights};
use crate::{Error, Result, guard};

/// Requests that may wait; far more than a step has.
const MAX_WAITING: usize = 1 << 20;

/// A recipe, ready to run.
pub(super) struct Setup {
    /// The one door to the device.
    pub(super) runtime: RuntimeHandle,
    /// Rows into tokens.
    pub(super) encoder: Encoder,
    /// Training rows.
    pub(super) train: Vec<Example>,
    /// Held-out rows.
    pub(super) held_out: Vec<Example>,
    /// How weights are written.
    pub(super) export: Export,
}

/// Opens a model source, telling what takes time.
///
/// # Errors
/// A source that cannot be had, or files that are damaged.
pub(crate) fn open(source: &str, progress: Progress) -> Result<Arc<ModelFiles>> {
    Ok(Arc::new(ModelSource::parse(source)?.open(&|line| progress.line(line))?))
}

impl Setup {
    /// Loads everything.
    ///
    /// # Errors
    /// Models that cannot be compared, rows that do not fit, more memory than there is.
    pub(super) fn new(recipe: &Recipe, progress: Progress) -> Result<Self> {
        let device = recipe.runtime.device.device;
        recipe.runtime.device.start(progress)?;
        let rows = Rows::load(&recipe.data)?;
        let student = open(&recipe.student.model, progress)?;
        let student_slot = SlotSpec {
            files: Arc::clone(&student),
            layers: recipe.student.layers.clone(),
            adapter: recipe.student.adapter.clone(),
        };
        let teacher_slot =
            recipe.teacher.as_ref().map(|teacher| open_teacher(teacher, &student_slot, progress)).transpose()?;
        if let Some(teacher) = &teacher_slot {
            guard::compare(&student, &teacher.files)?;
        }
        let context = recipe.teacher.as_ref().and_then(|teacher| teacher.context.clone());
        warn_if_nothing_to_learn(recipe, progress);
        let encoder = Encoder::new(Arc::clone(&student), recipe.data.chat, recipe.data.system_prompt.clone(), context)?;
        let fits = Fits { recipe, context: student.config.max_position_embeddings };
        let train = fits.encode(&encoder, &rows.train, recipe.rollout.max_new_tokens)?;
        let held_out = match &recipe.eval {
            None => Vec::new(),
            Some(eval) => {
                let count = eval.prompts.unwrap_or(rows.held_out.len());
                let rows = rows.held_out.get(..count).ok_or_else(|| {
                    Error::value("eval.prompts", count, format!("at most the {} held-out rows", rows.held_out.len()))
                })?;
                fits.encode(&encoder, rows, eval.max_new_tokens)?
            }
        };
        let config = kept_layers(&student.config, recipe.student.layers.as_deref());
        let configs = std::iter::once(&config).chain(teacher_slot.as_ref().map(|teacher| &teacher.files.config));
        let kv_bytes = configs.map(|config| kv_bytes(recipe, config, train.iter().chain(&held_out))).max().unwrap_or(0);
        let teacher_config = teacher_slot
            .as_ref()
            .filter(|teacher| owns_weights(recipe, &student_slot, teacher))
            .map(|teacher| &teacher.files.config);
        let slots = 1 + u64::from(teacher_slot.is_some());
        let length = |example: &Example| {
            example.completion.as_ref().map_or(0, Vec::len).max(recipe.rollout.max_new_tokens) + example.prompt.len()
        };
        let longest = train.iter().map(length).max().unwrap_or(0);
        let forecast = Forecast::of(&Plan {
            recipe,
            device,
            student: &config,
            teacher: teacher_config,
            kv: (kv_bytes, slots),
            longest,
        });
        let available = memory::available(device)?;
        let room = available.map_or_else(String::new, |bytes| format!(" (available: {})", memory::Bytes(bytes)));
        progress.line(&format!("memory     {}: {forecast}{room}", memory::describe(device)?));
        forecast.check(device, available, recipe.runtime.gradient_checkpointing)?;
        let export = match &recipe.lora {
            Some(lora) => Export::Adapter(AdapterConfig::new(recipe, lora)),
            None => Export::Model(Box::new(ModelExport::new(student, recipe.student.layers.clone()))),
        };
        let spec = RuntimeSpec {
            device,
            deterministic: recipe.runtime.deterministic,
            student: student_slot,
            teacher: teacher_slot,
            training: Some(recipe.training()),
            engine: EngineConfig {
                token_budget: recipe.runtime.token_budget,
                max_running: recipe.runtime.max_running,
                max_waiting: MAX_WAITING,
                kv_bytes: usize::try_from(kv_bytes).unwrap_or(usize::MAX),
                prefix_cache: true,
                overlap: EngineConfig::usual_overlap(recipe.runtime.device.device),
            },
        };
        let runtime = start(&spec, progress)?;
        Ok(Self { runtime, encoder, train, held_out, export })
    }
}

/// Starts the runtime behind a bar over the tensors to load.
///
/// # Errors
/// What loading refuses.
pub(crate) fn start(spec: &RuntimeSpec, progress: Progress) -> Result<RuntimeHandle> {
    let bar = progress.bar("load", 1, "tensors");
    let runtime = RuntimeHandle::start(spec, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    Ok(runtime)
}

/// The teacher's files; one that is the student itself shares them, and so its weights.
fn open_teacher(teacher: &Teacher, student: &SlotSpec, progress: Progress) -> Result<SlotSpec> {
    let alone = |files| SlotSpec { files, layers: None, adapter: None };
    match &teacher.weights {
        TeacherWeights::Student => Ok(student.clone()),
        TeacherWeights::Model(source) => {
            let files = open(source, progress)?;
            let same = files.path == student.files.path;
            Ok(alone(if same { Arc::clone(&student.files) } else { files }))
        }
        TeacherWeights::Checkpoint(path) if path.join(ADAPTER_WEIGHTS).is_file() => {
            Ok(SlotSpec { adapter: Some(path.clone()), ..student.clone() })
        }
        TeacherWeights::Checkpoint(path) => open_checkpoint(path).map(alone),
    }
}

fn open_checkpoint(path: &Path) -> Result<Arc<ModelFiles>> {
    if !path.join("config.json").is_file() {
        let what = format!(
            "holds neither {ADAPTER_WEIGHTS} nor a model with config.json; name a folder like checkpoints/step_000100"
        );
        return Err(Error::RunFolder { path: PathBuf::from(path), what });
    }
    Ok(Arc::new(ModelFiles::open(path)?))
}

/// Whether the teacher's weights need memory of their own.
fn owns_weights(recipe: &Recipe, student: &SlotSpec, teacher: &SlotSpec) -> bool {
    let shares = Arc::ptr_eq(&student.files, &teacher.files) && student.layers == teacher.layers;
    !shares || recipe.lora.is_none()
}

fn warn_if_nothing_to_learn(recipe: &Recipe, progress: Progress) {
    let Some(teacher) = &recipe.teacher else { return };
    let same_model = match &teacher.weights {
        TeacherWeights::Student => true,
        TeacherWeights::Model(source) => {
            *source == recipe.student.model && recipe.student.layers.is_none() && recipe.student.adapter.is_none()
        }
        TeacherWeights::Checkpoint(_) => false,
    };
    if same_model && teacher.context.is_none() {
        progress.line("note: teacher and student are the same model with the same context; the loss starts at 0 and nothing can be learned");
    }
}

fn kept_layers(config: &ModelConfig, layers: Option<&[usize]>) -> ModelConfig {
    ModelConfig { num_layers: layers.map_or(config.num_layers, <[usize]>::len), ..config.clone() }
}

/// What the recipe says, or room for `max_running` sequences of the longest prompt of either model.
fn kv_bytes<'a>(recipe: &Recipe, config: &ModelConfig, examples: impl Iterator<Item = &'a Example>) -> u64 {
    if let Some(bytes) = recipe.runtime.kv_bytes {
        return bytes;
    }
    let prompt = examples.map(|e| e.prompt.len().max(e.teacher_prompt.as_ref().map_or(0, Vec::len))).max().unwrap_or(0);
    let new = recipe.eval.as_ref().map_or(0, |eval| eval.max_new_tokens).max(recipe.rollout.max_new_tokens);
    let running = std::iter::repeat_n(prompt + new, recipe.runtime.max_running);
    memory::kv_bytes(config, recipe.runtime.device.device, running)
}

/// Limits that every row has to keep.
struct Fits<'a> {
    recipe: &'a Recipe,
    /// Positions the model was made for.
    context: usize,
}

impl Fits<'_> {
    fn encode(&self, encoder: &Encoder, rows: &[Row], max_new_tokens: usize) -> Result<Vec<Example>> {
        rows.iter()
            .map(|row| {
                let example = encoder.encode(row)?;
                self.check(&example, row, max_new_tokens)?;
                Ok(example)
            })
            .collect()
    }

    fn check(&self, example: &Example, row: &Row, max_new_tokens: usize) -> Result<()> {
        let limit = self.recipe.rollout.max_prompt_tokens;
        if example.prompt.len() > limit {
            let what = format!("prompt of {} tokens, `rollout.max_prompt_tokens` is {limit}", example.prompt.len());
            return Err(row.origin.error(what));
        }
        let new = example.completion.as_ref().map_or(0, Vec::len).max(max_new_tokens);
        let longest = example.prompt.len().max(example.teacher_prompt.as_ref().map_or(0, Vec::len));
        if longest + new > self.context {
            let what =
                format!("{longest} prompt tokens + {new} new tokens exceed the model's context of {}", self.context);
            return Err(row.origin.error(what));
        }
        let budget = self.recipe.runtime.tokens_per_microbatch;
        if longest + new > budget {
            let what =
                format!("{longest} prompt tokens + {new} new tokens exceed `runtime.tokens_per_microbatch` ({budget})");
            return Err(row.origin.error(what));
        }
        let objective = &self.recipe.objective;
        if objective.lmbda < 1.0 && !objective.off_policy.from_teacher && example.completion.is_none() {
            return Err(row
                .origin
                .error("no completion; `loss.lmbda` below 1 needs one in every row (or `loss.seq_kd = true`)"));
        }
        Ok(())
    }
}
