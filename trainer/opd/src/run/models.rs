//! The models of a recipe, opened and compared.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::files::ModelFiles;
use runtime::request::ModelSpec;
use runtime::source::ModelSource;

use crate::checkpoint::ADAPTER_WEIGHTS;
use crate::recipe::{Recipe, TeacherWeights};
use crate::teacher::RemoteTeacher;
use crate::{Error, Result, compatibility, turn_end};
use command::interrupt::Interrupt;
use command::progress::Progress;

/// Student and teacher, which can be compared token by token.
pub(super) struct OpenedModels {
    /// The student.
    pub(super) student: ModelSpec,
    /// A teacher that the runtime holds; one that is the student itself shares its files, and so its weights.
    pub(super) teacher: Option<ModelSpec>,
    /// A remote teacher.
    pub(super) remote: Option<RemoteTeacher>,
}

/// Opens a model source, printing what takes time.
///
/// # Errors
/// A source that cannot be had, or files that are damaged.
pub fn open(source: &str, progress: Progress) -> Result<Arc<ModelFiles>> {
    Ok(Arc::new(open_alone(source, progress)?))
}

fn open_alone(source: &str, progress: Progress) -> Result<ModelFiles> {
    Ok(ModelSource::parse(source)?.open(&|line| progress.line(line))?)
}

impl OpenedModels {
    /// Opens the models of a recipe. Waiting for a remote teacher ends with `interrupt`; without one it is not connected to.
    ///
    /// # Errors
    /// Models that cannot be had, or that read or end texts differently.
    pub(super) fn open(recipe: &Recipe, interrupt: Option<&Interrupt>, progress: Progress) -> Result<Self> {
        let mut student = open_alone(&recipe.student.model, progress)?;
        let chosen = &recipe.student.eos_tokens;
        student
            .set_end_tokens(chosen)
            .map_err(|e| Error::value("student.eos_token", format!("{chosen:?}"), e.to_string()))?;
        check_turn_end(recipe, &student)?;
        let (mut other, mut remote, mut shared) = (None, None, None);
        match recipe.teacher.as_ref().map(|teacher| &teacher.weights) {
            None => {}
            Some(TeacherWeights::Student) => shared = Some(recipe.student.adapter.clone()),
            Some(TeacherWeights::Checkpoint(path)) if path.join(ADAPTER_WEIGHTS).is_file() => {
                shared = Some(Some(path.clone()));
            }
            Some(TeacherWeights::Checkpoint(path)) => other = Some(open_checkpoint(path)?),
            Some(TeacherWeights::Model(source)) => other = Some(open_alone(source, progress)?),
            Some(TeacherWeights::Remote(to)) => {
                let Some(interrupt) = interrupt else {
                    progress.line(&format!("note       the teacher at {} is not contacted now", to.url));
                    return Ok(Self {
                        student: ModelSpec {
                            files: Arc::new(student),
                            layers: recipe.student.layers.clone(),
                            adapter: recipe.student.adapter.clone(),
                        },
                        teacher: None,
                        remote: None,
                    });
                };
                remote = Some(RemoteTeacher::connect(to, &student, !chosen.is_empty(), interrupt, progress)?);
            }
        }
        student.config.token_ids = match (&other, &remote, &shared) {
            (Some(teacher), ..) => compatibility::compare(&student, teacher, !chosen.is_empty())?,
            (_, Some(remote), _) => remote.token_ids(),
            (_, _, Some(_)) => compatibility::own_ids(&student)?,
            // Nothing is compared: the loss is that of all rows.
            (None, None, None) => student.config.token_ids,
        };
        if let Some(teacher) = &mut other {
            teacher.config.token_ids = student.config.token_ids;
            if !chosen.is_empty() {
                teacher.config.eos_token_ids.extend(&student.config.eos_token_ids);
            }
        }
        let (layers, adapter) = (recipe.student.layers.clone(), recipe.student.adapter.clone());
        let student = ModelSpec { files: Arc::new(student), layers, adapter };
        let same = other.as_ref().is_some_and(|teacher| teacher.path == student.files.path);
        let alone = |files| ModelSpec { files, layers: None, adapter: None };
        let teacher = match (other, shared) {
            (_, Some(adapter)) => Some(ModelSpec { adapter, ..student.clone() }),
            (Some(_), None) if same => Some(alone(Arc::clone(&student.files))),
            (other, None) => other.map(|files| alone(Arc::new(files))),
        };
        Ok(Self { student, teacher, remote })
    }
}

/// A model of the recipe that would have to be fetched.
///
/// # Errors
/// A source that is none.
pub(super) fn not_here(recipe: &Recipe) -> Result<Option<ModelSource>> {
    let teacher = match recipe.teacher.as_ref().map(|teacher| &teacher.weights) {
        Some(TeacherWeights::Model(source)) => Some(source),
        _ => None,
    };
    for source in [Some(&recipe.student.model), teacher].into_iter().flatten() {
        let source = ModelSource::parse(source)?;
        if !source.is_here() {
            return Ok(Some(source));
        }
    }
    Ok(None)
}

/// Refuses a student whose answers would run on behind the end of their turn.
fn check_turn_end(recipe: &Recipe, student: &ModelFiles) -> Result<()> {
    let in_turns =
        recipe.data.chat != Some(false) && !recipe.rollout.ignore_eos && recipe.student.eos_tokens.is_empty();
    let Some(token) = turn_end::missing_eos(student).filter(|_| in_turns) else { return Ok(()) };
    let hint = format!(
        "set `student.eos_token = {token:?}` (or to the token that is to end a completion), or `data.chat = false` for \
         prompts without the template"
    );
    Err(turn_end::error(student, token, hint))
}

fn open_checkpoint(path: &Path) -> Result<ModelFiles> {
    if !path.join("config.json").is_file() {
        let what = format!(
            "holds neither {ADAPTER_WEIGHTS} nor a model with config.json; name a folder like checkpoints/step_000100"
        );
        return Err(Error::from(command::Error::RunFolder { path: PathBuf::from(path), what }));
    }
    Ok(ModelFiles::open(path)?)
}
