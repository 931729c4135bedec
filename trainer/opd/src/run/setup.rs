//! From a recipe to a running runtime: models, guards, data, memory.

use std::sync::Arc;

use runtime::RuntimeHandle;
use runtime::files::ModelFiles;
use runtime::memory::{KvWish, MemoryPlan, Workload};
use runtime::request::{ModelSpec, RuntimeSpec, Training};

use super::benchmark;
use super::models::OpenedModels;
use crate::checkpoint::{AdapterConfig, Export, ModelExport, note_other_base};
use data::Row;

use crate::memory::{self, Purpose};
use crate::prompt::{Example, PromptEncoder};
use crate::recipe::{Recipe, TeacherWeights};
use crate::rows::RunRows;
use crate::teacher::RemoteTeacher;
use crate::{Error, Result, loss};
use command::interrupt::Interrupt;
use command::progress::Progress;

/// Requests that may wait; far more than a step has.
const MAX_WAITING: usize = 1 << 20;

/// A recipe, ready to run.
pub(super) struct Setup {
    /// The one entrypoint to the device.
    pub(super) runtime: RuntimeHandle,
    /// Rows into tokens.
    pub(super) encoder: PromptEncoder,
    /// Training rows.
    pub(super) train: Vec<Example>,
    /// Held-out rows.
    pub(super) held_out: Vec<Example>,
    /// How weights are written.
    pub(super) export: Export,
    /// The student's files.
    pub(super) student: Arc<ModelFiles>,
    /// The teacher's, when the runtime holds it.
    pub(super) teacher: Option<Arc<ModelFiles>>,
    /// A remote teacher.
    pub(super) remote: Option<RemoteTeacher>,
    /// The memory that was planned.
    pub(super) plan: MemoryPlan,
}

/// All of a [`Setup`] but what is loaded onto the device.
pub(super) struct Prepared {
    pub(super) spec: RuntimeSpec,
    pub(super) workload: Workload,
    pub(super) purpose: Purpose,
    encoder: PromptEncoder,
    pub(super) train: Vec<Example>,
    pub(super) held_out: Vec<Example>,
    export: Export,
    student: Arc<ModelFiles>,
    teacher: Option<Arc<ModelFiles>>,
    remote: Option<RemoteTeacher>,
}

/// What a recipe is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Steps; `served`: the teacher answers requests too.
    Training { served: bool },
    /// Its held-out rows are measured, nothing is trained; `verbose`: the memory plan is printed.
    Measuring { verbose: bool },
}

impl Setup {
    /// Loads everything. Waiting for a remote teacher ends with `interrupt`.
    ///
    /// # Errors
    /// Models that cannot be compared, rows that do not fit, more memory than there is.
    pub(super) fn new(recipe: &Recipe, kind: RunKind, interrupt: &Interrupt, progress: Progress) -> Result<Self> {
        recipe.runtime.device.start(recipe.runtime.deterministic, progress)?;
        let mut prepared = Prepared::new(recipe, kind, Some(interrupt), progress)?;
        let told = match kind {
            RunKind::Training { .. } => progress,
            RunKind::Measuring { verbose } => progress.only_if(verbose),
        };
        let (runtime, plan) = start(&mut prepared.spec, &prepared.workload, prepared.purpose, told)?;
        let Prepared { encoder, train, held_out, export, student, teacher, remote, .. } = prepared;
        Ok(Self { runtime, encoder, train, held_out, export, student, teacher, remote, plan })
    }
}

impl Prepared {
    /// Opens and compares the models, encodes the rows, and says what will be asked of the runtime. A remote teacher is
    /// connected to where an `interrupt` can end the waiting.
    ///
    /// # Errors
    /// Models that cannot be compared, rows that do not fit.
    pub(super) fn new(
        recipe: &Recipe,
        kind: RunKind,
        interrupt: Option<&Interrupt>,
        progress: Progress,
    ) -> Result<Self> {
        let rows = RunRows::load(&recipe.data)?;
        let OpenedModels { student: student_spec, teacher: teacher_spec, remote } =
            OpenedModels::open(recipe, interrupt, progress)?;
        let student = Arc::clone(&student_spec.files);
        let context = recipe.teacher.as_ref().and_then(|teacher| teacher.context.clone());
        if matches!(kind, RunKind::Training { .. }) {
            refuse_dropout(&student)?;
            warn_if_nothing_to_learn(recipe, progress);
            note_generation_config(&student, progress);
        }
        if let Some(adapter) = &recipe.student.adapter {
            note_other_base(adapter, &recipe.student.model, &|note| progress.line(note));
        }
        let encoder =
            PromptEncoder::new(Arc::clone(&student), recipe.data.chat, recipe.data.system_prompt.clone(), context)?;
        let fits = RowLimits { recipe, student: &student };
        let train = match kind {
            RunKind::Training { .. } => fits.encode(&encoder, &rows.train, recipe.rollout.max_new_tokens)?,
            RunKind::Measuring { .. } => Vec::new(),
        };
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
        let benchmark = recipe.eval.as_ref().and_then(|eval| eval.benchmark.as_ref());
        let asked = benchmark.map_or(Ok(0), |benchmark| benchmark::max_length(benchmark, &student))?;
        let longest = longest(recipe, &train, &held_out);
        if let Some(context) = remote.as_ref().and_then(RemoteTeacher::context).filter(|&context| context < longest) {
            return Err(Error::TeacherContext { longest, context });
        }
        let vocab = student.config.vocab_size;
        let workload =
            Workload { given_bytes: given_bytes(recipe, vocab), ..workload(recipe, &train, &held_out, asked) };
        let export = match &recipe.lora {
            Some(lora) => Export::Adapter(AdapterConfig::new(recipe, lora)?),
            None => {
                let layers = recipe.student.layers.clone();
                Export::Model(Box::new(ModelExport::new(Arc::clone(&student), layers, recipe.checkpoint.dtype)))
            }
        };
        let teacher = teacher_spec.as_ref().map(|model| Arc::clone(&model.files));
        let (training, purpose) = match kind {
            RunKind::Training { served } => {
                let training = recipe.training();
                let teacher_generates = training.teacher_generates || served;
                (Some(Training { teacher_generates, ..training }), Purpose::Training)
            }
            RunKind::Measuring { .. } => (None, Purpose::Command),
        };
        let mut spec = runtime_spec(recipe, student_spec, teacher_spec, training);
        spec.engine.max_waiting = MAX_WAITING;
        Ok(Self { spec, workload, purpose, encoder, train, held_out, export, student, teacher, remote })
    }
}

/// On-policy means the student's own distribution, so nothing of `generation_config.json` changes a rollout.
fn note_generation_config(student: &ModelFiles, progress: Progress) {
    let left_out = student.generation.changes();
    if !left_out.is_empty() {
        let keys = left_out.join(", ");
        progress.line(&format!(
            "generation_config.json of the student: {keys} not applied to rollouts, which are samples of the student itself; \
             tasks are answered with it"
        ));
    }
}

/// A runtime with the recipe's device, limits and losses, for these models.
pub fn runtime_spec(
    recipe: &Recipe,
    student: ModelSpec,
    teacher: Option<ModelSpec>,
    training: Option<Training>,
) -> RuntimeSpec {
    let mut spec = RuntimeSpec::for_device(recipe.runtime.device.device, student);
    spec.models.extend(teacher);
    (spec.deterministic, spec.training, spec.decode_loss) = (recipe.runtime.deterministic, training, loss::decode);
    (spec.engine.token_budget, spec.engine.max_running) = (recipe.runtime.token_budget, recipe.runtime.max_running);
    spec
}

/// Plans the memory and starts the runtime within it, behind a bar over the tensors to load.
///
/// # Errors
/// More memory than there is; what loading refuses.
pub fn start(
    spec: &mut RuntimeSpec,
    workload: &Workload,
    purpose: Purpose,
    progress: Progress,
) -> Result<(RuntimeHandle, MemoryPlan)> {
    let plan = memory::plan(spec, workload, purpose, progress)?;
    let bar = progress.bar("load", 1, "tensors");
    let runtime = RuntimeHandle::start(spec, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    Ok((runtime, plan))
}

/// The trainer has dropout in adapters only (`lora.dropout`).
fn refuse_dropout(student: &ModelFiles) -> Result<()> {
    match student.config.attention_dropout {
        0.0 => Ok(()),
        dropout => Err(Error::AttentionDropout { dropout }),
    }
}

fn warn_if_nothing_to_learn(recipe: &Recipe, progress: Progress) {
    let Some(teacher) = &recipe.teacher else { return };
    let same_model = match &teacher.weights {
        TeacherWeights::Student => true,
        TeacherWeights::Model(source) => {
            *source == recipe.student.model && recipe.student.layers.is_none() && recipe.student.adapter.is_none()
        }
        TeacherWeights::Checkpoint(_) | TeacherWeights::Remote(_) => false,
    };
    if same_model && teacher.context.is_none() {
        progress.line("note: teacher and student are the same model with the same context; the loss starts at 0 and nothing can be learned");
    }
}

/// Tokens of the longer of an example's two prompts.
fn prompt(example: &Example) -> usize {
    example.prompt.len().max(example.teacher_prompt.as_ref().map_or(0, Vec::len))
}

/// Tokens of a completion, at most.
fn longest_completion(recipe: &Recipe) -> usize {
    recipe.eval.as_ref().map_or(0, |eval| eval.max_new_tokens).max(recipe.rollout.max_new_tokens)
}

/// Tokens of the longest sequence of the run.
fn longest(recipe: &Recipe, train: &[Example], held_out: &[Example]) -> usize {
    train.iter().chain(held_out).map(prompt).max().unwrap_or(0) + longest_completion(recipe)
}

/// Bytes of a remote teacher's scores of one token.
fn given_bytes(recipe: &Recipe, vocab: usize) -> usize {
    match recipe.teacher.as_ref().map(|teacher| &teacher.weights) {
        Some(TeacherWeights::Remote(remote)) => remote.rows.map_or(size_of::<f32>(), |rows| rows.bytes(vocab)),
        _ => 0,
    }
}

/// What the run will ask of the runtime: room for `max_running` sequences of the longest prompt of either model unless the
/// recipe says otherwise, and micro-batches up to the limit, or a whole step when that is less.
///
/// Tasks are asked prompts of up to `asked` tokens: one of them fits at least, and as many as the room of training holds.
fn workload(recipe: &Recipe, train: &[Example], held_out: &[Example], asked: usize) -> Workload {
    let (new, longest) = (longest_completion(recipe), longest(recipe, train, held_out));
    let given = |e: &Example| e.completion.as_ref().map_or(0, Vec::len);
    let trained = |e: &Example| prompt(e) + given(e).max(recipe.rollout.max_new_tokens);
    let step = recipe.sequences_per_step().saturating_mul(train.iter().map(trained).max().unwrap_or(0));
    let measured = held_out.iter().map(|e| prompt(e) + given(e).max(new)).sum::<usize>();
    let kv = match recipe.runtime.kv_bytes {
        Some(size) => KvWish::Size(size),
        None if longest * recipe.runtime.max_running < asked => KvWish::Sequences(vec![asked]),
        None => KvWish::Sequences(vec![longest; recipe.runtime.max_running]),
    };
    Workload {
        kv,
        longest: longest.max(asked),
        micro_batch: recipe.runtime.tokens_per_microbatch.min(step.max(measured)),
        checkpointing: recipe.runtime.gradient_checkpointing,
        given_bytes: 0,
        adapters: vec![],
    }
}

/// Limits that every row has to keep.
struct RowLimits<'a> {
    recipe: &'a Recipe,
    student: &'a ModelFiles,
}

impl RowLimits<'_> {
    fn encode(&self, encoder: &PromptEncoder, rows: &[Row], max_new_tokens: usize) -> Result<Vec<Example>> {
        rows.iter()
            .map(|row| {
                let example = encoder.encode(row)?;
                self.check(&example, row, max_new_tokens)?;
                Ok(example)
            })
            .collect()
    }

    fn check(&self, example: &Example, row: &Row, max_new_tokens: usize) -> Result<()> {
        let prompts = [Some(&example.prompt), example.teacher_prompt.as_ref(), example.completion.as_ref()];
        let known = self.student.config.token_ids;
        if let Some(&id) = prompts.into_iter().flatten().flatten().find(|&&id| id as usize >= known) {
            let spelled = self.student.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token(id)).unwrap_or_default();
            let what =
                format!("has token {id} ({spelled:?}), which is not among the {known} that student and teacher share");
            return Err(Error::row(&row.origin, what));
        }
        let limit = self.recipe.rollout.max_prompt_tokens;
        if example.prompt.len() > limit {
            let what = format!("prompt of {} tokens, `rollout.max_prompt_tokens` is {limit}", example.prompt.len());
            return Err(Error::row(&row.origin, what));
        }
        let new = example.completion.as_ref().map_or(0, Vec::len).max(max_new_tokens);
        let longest = example.prompt.len().max(example.teacher_prompt.as_ref().map_or(0, Vec::len));
        let context = self.student.config.max_position_embeddings;
        if longest + new > context {
            let what = format!("{longest} prompt tokens + {new} new tokens exceed the model's context of {context}");
            return Err(Error::row(&row.origin, what));
        }
        let budget = self.recipe.runtime.tokens_per_microbatch;
        if longest + new > budget {
            let what =
                format!("{longest} prompt tokens + {new} new tokens exceed `runtime.tokens_per_microbatch` ({budget})");
            return Err(Error::row(&row.origin, what));
        }
        let objective = &self.recipe.objective;
        if objective.lmbda < 1.0 && !objective.off_policy.from_teacher && example.completion.is_none() {
            return Err(Error::row(
                &row.origin,
                "no completion; `loss.lmbda` below 1 needs one in every row (or `loss.seq_kd = true`)",
            ));
        }
        Ok(())
    }
}
