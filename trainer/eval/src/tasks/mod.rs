//! The table of tasks.

mod humaneval;
mod math;
mod mmlu;
mod wikitext;

use std::path::Path;

use runtime::read;

use crate::sandbox::Isolation;
use crate::task::Task;
use crate::task::definition::Definition;
use crate::{Error, Result};

/// Tasks that are described in TOML.
const DEFINED: [(&str, &str); 10] = [
    ("gsm8k", include_str!("gsm8k.toml")),
    ("gsm8k_cot", include_str!("gsm8k_cot.toml")),
    ("arc_easy", include_str!("arc_easy.toml")),
    ("arc_challenge", include_str!("arc_challenge.toml")),
    ("hellaswag", include_str!("hellaswag.toml")),
    ("piqa", include_str!("piqa.toml")),
    ("winogrande", include_str!("winogrande.toml")),
    ("boolq", include_str!("boolq.toml")),
    ("openbookqa", include_str!("openbookqa.toml")),
    ("lambada", include_str!("lambada.toml")),
];

/// A group that holds the groups of MMLU.
const MMLU: &str = "mmlu";

/// What tasks that run generated programs have to know.
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    /// How far they are from the host.
    pub isolation: Isolation,
    /// Answers to each question; pass@k is reported for the usual k up to them.
    pub answers: usize,
}

impl Default for Programs {
    fn default() -> Self {
        Self { isolation: Isolation::Namespaces, answers: 1 }
    }
}

/// Every built-in task.
#[must_use]
pub fn all(programs: Programs) -> Vec<Box<dyn Task>> {
    let mut tasks: Vec<Box<dyn Task>> = Vec::new();
    for (name, text) in DEFINED {
        tasks.push(Box::new(Definition::parse(text, name).expect("built-in definitions are checked by a test")));
    }
    tasks.push(Box::new(wikitext::WikiText::new()));
    for set in math::SETS {
        tasks.push(Box::new(math::Mathematics::new(set)));
    }
    tasks.push(Box::new(humaneval::HumanEval::new(programs)));
    for (group, subjects) in mmlu::GROUPS {
        for subject in subjects {
            tasks.push(Box::new(mmlu::Subject::new(subject, group)));
        }
    }
    tasks
}

/// Names of every built-in task.
fn names() -> Vec<String> {
    let defined = DEFINED.iter().map(|(name, _)| (*name).to_owned());
    let coded = ["wikitext", "minerva_math500", "math500", "aime24", "amc23", "humaneval"].map(str::to_owned);
    let subjects = mmlu::GROUPS.iter().flat_map(|(_, subjects)| subjects.iter().map(|s| format!("mmlu_{s}")));
    defined.chain(coded).chain(subjects).collect()
}

/// Groups with their members, which are tasks or groups; a group is never before one that it holds.
#[must_use]
pub fn groups() -> Vec<(String, Vec<String>)> {
    let member = |subject: &&str| format!("mmlu_{subject}");
    let mut groups: Vec<(String, Vec<String>)> = mmlu::GROUPS
        .iter()
        .map(|(group, subjects)| ((*group).to_owned(), subjects.iter().map(member).collect()))
        .collect();
    groups.push((MMLU.to_owned(), mmlu::GROUPS.iter().map(|(group, _)| (*group).to_owned()).collect()));
    groups
}

/// The tasks of these names: of tasks, of groups, or paths of TOML files. Each task once, in the order of the names.
///
/// # Errors
/// A name that nothing has, with the one that looks most like it; a definition that is none.
pub fn find(names: &[String], programs: Programs) -> Result<Vec<Box<dyn Task>>> {
    let mut known: Vec<Option<Box<dyn Task>>> = all(programs).into_iter().map(Some).collect();
    let mut found: Vec<Box<dyn Task>> = Vec::new();
    for name in names {
        if name.ends_with(".toml") {
            let text = read::text(Path::new(name), read::CONFIGURATION)?;
            let folder = Path::new(name).parent().unwrap_or(Path::new(""));
            let task = Definition::parse(&text, name)?.with_data_in(folder);
            check_new(&task, &found)?;
            found.push(Box::new(task));
            continue;
        }
        let wanted = members(name).ok_or_else(|| unknown(name))?;
        for task in &mut known {
            if task.as_ref().is_some_and(|task| wanted.contains(&task.info().name)) {
                found.extend(task.take());
            }
        }
    }
    Ok(found)
}

/// A definition of one's own must not be taken for another task.
fn check_new(task: &Definition, found: &[Box<dyn Task>]) -> Result<()> {
    let name = &task.info().name;
    let groups = groups().into_iter().map(|(group, _)| group);
    let mut built_in = names().into_iter().chain(groups);
    if built_in.any(|taken| taken == *name) || found.iter().any(|task| task.info().name == *name) {
        return Err(Error::value("name", name, "a name that no other task has"));
    }
    Ok(())
}

/// The groups all of whose tasks are among these.
#[must_use]
pub fn whole_groups(tasks: &[Box<dyn Task>]) -> Vec<String> {
    let asked = |member: &String| tasks.iter().any(|task| task.info().name == *member);
    let groups = groups().into_iter().map(|(group, _)| group);
    groups.filter(|group| members(group).is_some_and(|members| members.iter().all(asked))).collect()
}

/// Whether a group holds a task, itself or in one of its groups.
#[must_use]
pub fn holds(group: &str, task: &str) -> bool {
    members(group).is_some_and(|members| members.iter().any(|member| member == task))
}

/// Names of the tasks of a group, or of the task itself.
fn members(name: &str) -> Option<Vec<String>> {
    if let Some((_, members)) = groups().into_iter().find(|(group, _)| group == name) {
        return Some(members.iter().flat_map(|member| self::members(member).unwrap_or_default()).collect());
    }
    names().iter().any(|known| known == name).then(|| vec![name.to_owned()])
}

fn unknown(name: &str) -> Error {
    let names = names().into_iter().chain(groups().into_iter().map(|(group, _)| group));
    let nearest = names.max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let rule = format!(
        "tasks that `arle eval --list` shows, or paths of .toml files; did you mean `{}`?",
        nearest.unwrap_or_default()
    );
    Error::value("--tasks", name, rule)
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
