//! What a run is going to do, printed before it begins.

use super::setup::{Prepared, RunKind};
use crate::memory;
use crate::recipe::{Length, Recipe};
use crate::{Result, run};
use command::progress::Progress;

/// Sizes that are not in the recipe.
pub(super) struct Sizes {
    /// Values that are trained, and all of the student's.
    pub(super) parameters: [u64; 2],
    /// Training rows.
    pub(super) rows: usize,
    /// Held-out rows.
    pub(super) held_out: usize,
}

/// Tells what is trained, on what, for how long and where.
///
/// # Errors
/// A GPU that cannot be used.
pub(super) fn print(recipe: &Recipe, sizes: &Sizes, progress: Progress) -> Result<()> {
    let Sizes { parameters: [trained, all], rows, held_out } = *sizes;
    let what = match &recipe.lora {
        None => format!("every weight of the student, {} (there is no [lora] table)", count(all)),
        Some(lora) => format!(
            "LoRA of rank {} on {}, {} parameters beside {} that stay",
            lora.r,
            lora.target_modules.as_slice().join(", "),
            count(trained),
            count(all)
        ),
    };
    progress.line(&format!("train      {what}"));
    progress.line(&format!("method     {}", method(recipe)));
    let steps = recipe.length.steps(rows, recipe.rollout.prompts_per_step);
    let prompts = recipe.rollout.prompts_per_step;
    let passes = (steps * prompts as u64) as f64 / rows as f64;
    let group = if recipe.rollout.group_size > 1 { format!(" x {}", recipe.rollout.group_size) } else { String::new() };
    let most = recipe.sequences_per_step() * recipe.rollout.max_new_tokens;
    let seconds = recipe.max_seconds.map_or_else(String::new, |seconds| format!(" or {seconds} s"));
    let length = match recipe.length {
        Length::Steps(_) => format!("{steps} steps{seconds}, {passes:.1} epochs"),
        Length::Epochs(epochs) => format!("{steps} steps{seconds}, {epochs} epochs"),
    };
    progress.line(&format!(
        "data       {rows} rows{}; {length}; a step has {prompts}{group} prompts and at most {} new tokens",
        if held_out > 0 { format!(" and {held_out} held-out ones") } else { String::new() },
        grouped(most as u64)
    ));
    progress.line(&format!("device     {}", memory::describe(recipe.runtime.device.device)?));
    Ok(())
}

fn method(recipe: &Recipe) -> String {
    let objective = &recipe.objective;
    let others = match (objective.off_policy.from_teacher, objective.off_policy.cross_entropy) {
        (true, true) => "the teacher's completions by cross-entropy",
        (true, false) => "the teacher's completions",
        (false, true) => "given completions by cross-entropy",
        (false, false) => "given completions",
    };
    let on = match objective.lmbda {
        1.0 => "the student's own completions".to_owned(),
        0.0 => others.to_owned(),
        share => format!("the student's own completions ({:.0} %) and {others}", 100.0 * share),
    };
    format!("{} on {on}", recipe.loss())
}

/// `134.5M`
fn count(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2}B", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.0}K", n / 1e3),
        n => format!("{n}"),
    }
}

/// `12,288`
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Checks all of a recipe that needs no weights, and tells what a run would do.
///
/// # Errors
/// Whatever a run would refuse before it loads weights.
pub fn dry_run(recipe: &Recipe, progress: Progress) -> Result<()> {
    run::check_measurements(recipe)?;
    recipe.notes.iter().for_each(|note| progress.line(note));
    if let Some(source) = run::models::not_here(recipe)? {
        crate::rows::RunRows::load(&recipe.data)?;
        progress.line(&format!(
            "note       {source} is not on this machine yet, a run fetches it; until then recipe and rows are checked alone"
        ));
        return Ok(());
    }
    let prepared = Prepared::new(recipe, RunKind::Training { served: false }, None, progress)?;
    let device = recipe.runtime.device.device;
    if memory::available(device).is_err() {
        progress.line(&format!("note       {device} cannot be used here, so that its memory is not planned"));
        return Ok(());
    }
    let plan = memory::show(&prepared.spec, &prepared.workload, prepared.purpose, progress)?;
    let (rows, held_out) = (prepared.train.len(), prepared.held_out.len());
    print(recipe, &Sizes { parameters: plan.parameters, rows, held_out }, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 999, 12_288, 1_000_000].map(grouped), ["0", "999", "12,288", "1,000,000"]);
        assert_eq!([9_216, 49_152, 134_515_008, 1_700_000_000].map(count), ["9216", "49K", "134.5M", "1.70B"]);
    }
}
