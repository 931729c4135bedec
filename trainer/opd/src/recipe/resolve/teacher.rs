//! `[teacher]`: whose weights, and what only it sees.

use super::{idle, missing, remote};
use crate::recipe::raw::{RawRecipe, RawTeacher};
use crate::recipe::{LossKind, Objective, Teacher, TeacherContext, TeacherWeights};
use crate::{Error, Result};

pub(super) fn teacher(raw: &mut RawRecipe, objective: &Objective) -> Result<Option<Teacher>> {
    let sampling_temperature = raw.rollout.sampling.temperature;
    let needed = objective.loss != LossKind::CrossEntropy || objective.off_policy.from_teacher;
    let Some(teacher) = &mut raw.teacher else {
        return if needed {
            Err(missing(
                "teacher",
                "the loss compares with a teacher; [teacher] kind = \"self\" grades with the student's own starting weights",
            ))
        } else {
            Ok(None)
        };
    };
    if !needed {
        return Err(Error::from(command::Error::NoEffect {
            key: "teacher".to_owned(),
            because: "with `loss.kind = \"cross_entropy\"` on given completions".to_owned(),
        }));
    }
    let kind = match (&teacher.kind, &teacher.model, &teacher.path, &teacher.url) {
        (Some(kind), ..) => kind.clone(),
        (None, Some(_), ..) => "model".to_owned(),
        (None, None, Some(_), _) => "checkpoint".to_owned(),
        (None, None, None, Some(_)) => "remote".to_owned(),
        (None, None, None, None) => "self".to_owned(),
    };
    teacher.kind = Some(kind.clone());
    let because = format!("with `teacher.kind = \"{kind}\"`");
    if kind != "model" {
        idle("teacher.model", teacher.model.as_ref(), &because)?;
    }
    if kind != "checkpoint" {
        idle("teacher.path", teacher.path.as_ref(), &because)?;
    }
    if kind != "remote" {
        remote::none(teacher, &because)?;
    }
    let weights = match kind.as_str() {
        "remote" => TeacherWeights::Remote(remote::remote(teacher, objective, sampling_temperature)?),
        "model" => TeacherWeights::Model(
            teacher.model.clone().ok_or_else(|| missing("teacher.model", "`teacher.kind = \"model\"` needs it"))?,
        ),
        "self" => TeacherWeights::Student,
        "checkpoint" => TeacherWeights::Checkpoint(
            teacher.path.clone().ok_or_else(|| missing("teacher.path", "`teacher.kind = \"checkpoint\"` needs it"))?,
        ),
        other => {
            return Err(Error::value("teacher.kind", format!("{other:?}"), "one of model, self, checkpoint, remote"));
        }
    };
    Ok(Some(Teacher { weights, context: teacher_context(teacher)? }))
}

fn teacher_context(raw: &mut RawTeacher) -> Result<Option<TeacherContext>> {
    if raw.context_column.is_none() {
        idle("teacher.context_template", raw.context_template.as_ref(), "without `teacher.context_column`")?;
    }
    let column = match &raw.context_column {
        None => None,
        Some(column) => {
            let template = raw.context_template.get_or_insert_with(|| "{context}".to_owned()).clone();
            if !template.contains("{context}") {
                return Err(Error::value(
                    "teacher.context_template",
                    format!("{template:?}"),
                    "a text with `{context}` in it",
                ));
            }
            Some((column.clone(), template))
        }
    };
    let context = TeacherContext { system_prompt: raw.system_prompt.clone(), few_shot: raw.few_shot.clone(), column };
    Ok((context != TeacherContext::default()).then_some(context))
}
