//! Held-out measurements: how far the student is from the teacher on prompts that it is never trained on.
//!
//! | name | on | is |
//! |---|---|---|
//! | `kl` | the student's own completions | KL(student ‖ teacher), mean per token |
//! | `kl_forward` | the same | KL(teacher ‖ student) |
//! | `agreement` | the same | how often both prefer the same token |
//! | `teacher_nll` | the same | -ln p_teacher of the student's tokens |
//! | `kl_teacher_samples` | completions of the teacher's | KL(teacher ‖ student) |
//! | `perplexity` | the same | exp of the student's mean -ln q |
//!
//! Where a remote teacher only scores given tokens, `kl` is the estimate by the student's samples, and what needs
//! its distributions or its own completions is left out.

use std::sync::Arc;

use runtime::request::{ModelId, TrainRequest, TrainSequence};
use runtime::train::Loss;

use super::micro_batch::{Completion, CompletionSource, split};
use super::rollout::{RngStream, generate, params, request};
use super::scored::{self, BatchTeacher};
use super::setup::{RunKind, Setup};
use super::step_metrics::LossSums;
use crate::loss::HeldOut;
use crate::prompt::Example;
use crate::recipe::Recipe;
use crate::teacher::RemoteTeacher;
use crate::{Error, Result};
use command::interrupt::Interrupt;
use command::progress::Progress;

/// What is measured, by name.
pub(crate) type Measurements = Vec<(&'static str, f64)>;

/// Measurements of which one value is better than another, and whether more is.
pub const BETTER: [(&str, bool); 7] = [
    ("agreement", true),
    ("agreement_teacher_samples", true),
    ("kl", false),
    ("kl_forward", false),
    ("kl_teacher_samples", false),
    ("perplexity", false),
    ("teacher_nll", false),
];

/// Measures the models of `setup` on its held-out rows.
pub(super) struct EvalKl<'a> {
    recipe: &'a Recipe,
    setup: &'a Setup,
    /// New tokens of a completion, at most.
    max_new_tokens: usize,
    /// Ends a measurement.
    interrupt: &'a Interrupt,
    progress: Progress,
}

impl<'a> EvalKl<'a> {
    pub(super) fn new(
        recipe: &'a Recipe,
        setup: &'a Setup,
        max_new_tokens: usize,
        interrupt: &'a Interrupt,
        progress: Progress,
    ) -> Self {
        Self { recipe, setup, max_new_tokens, interrupt, progress }
    }

    /// Whether the teacher can generate completions.
    pub(super) fn teacher_generates(&self) -> bool {
        self.setup.remote.as_ref().is_none_or(RemoteTeacher::generates)
    }

    /// The teacher's completion of every row.
    ///
    /// # Errors
    /// What the runtime, or the teacher's server, refuses.
    pub(super) fn of_teacher(&self) -> Result<Vec<Vec<u32>>> {
        let completions = self.complete(ModelId::TEACHER)?;
        Ok(completions.iter().map(|c| c.sequence.tokens[c.sequence.prompt_len..].to_vec()).collect())
    }

    /// All measurements; those on the teacher's completions where there are any.
    ///
    /// # Errors
    /// What the runtime refuses.
    pub(super) fn measure(&self, teachers: &[Vec<u32>]) -> Result<Measurements> {
        let own = self.complete(ModelId::STUDENT)?;
        let count = own.len() as f64;
        let mean_length = own.iter().map(Completion::len).sum::<usize>() as f64 / count;
        let truncated = own.iter().filter(|c| c.truncated).count() as f64 / count;
        let own = self.forward(own)?;
        let teacher_nll = own.mean("teacher_logprob").map(|mean| -mean);
        let estimate = own.mean("student_logprob").zip(teacher_nll).map(|(student, nll)| student + nll);
        let mut measured = vec![
            ("mean_length", Some(mean_length)),
            ("truncated_fraction", Some(truncated)),
            ("kl", own.mean("reverse_kl").or(estimate)),
            ("kl_forward", own.mean("forward_kl")),
            ("agreement", own.mean("agreement")),
            ("entropy", own.mean("entropy")),
            ("teacher_nll", teacher_nll),
        ];
        if !teachers.is_empty() {
            let given = self.setup.held_out.iter().zip(teachers);
            let given = self.forward(given.map(|(example, tokens)| Completion::given(example, tokens)).collect())?;
            let perplexity = |name: &str| given.mean(name).map(|mean| (-mean).exp());
            measured.extend([
                ("kl_teacher_samples", given.mean("forward_kl")),
                ("agreement_teacher_samples", given.mean("agreement")),
                ("perplexity", perplexity("student_logprob")),
                ("teacher_perplexity", perplexity("teacher_logprob")),
            ]);
        }
        Ok(measured.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }

    /// One completion of every held-out row. The same random numbers every time, so that only the weights differ.
    fn complete(&self, model: ModelId) -> Result<Vec<Completion>> {
        let stream = if model == ModelId::STUDENT { RngStream::HeldOut } else { RngStream::HeldOutTeacher };
        let sampling = params(&self.recipe.rollout.sampling, self.max_new_tokens, self.recipe.runtime.seed);
        let rows = &self.setup.held_out;
        if let (ModelId::TEACHER, Some(remote)) = (model, &self.setup.remote) {
            let prompt = |(row, example)| (prompt_of(example, model), stream.index(row as u64));
            let generated = remote.generate(&rows.iter().enumerate().map(prompt).collect::<Vec<_>>(), &sampling)?;
            return Ok(rows
                .iter()
                .zip(&generated)
                .map(|(row, generated)| Completion::remote(row, generated))
                .collect());
        }
        let requests = rows.iter().enumerate().map(|(row, example)| {
            request(model, prompt_of(example, model), sampling.clone(), stream.index(row as u64))
        });
        let bar = self.progress.bar("eval", (rows.len() * self.max_new_tokens) as u64, "tokens");
        let generated = generate(&self.setup.runtime, requests, &bar, Some(self.interrupt))?;
        Ok(rows
            .iter()
            .zip(&generated)
            .map(|(row, generated)| Completion::sampled(row, generated, CompletionSource::Other))
            .collect())
    }

    fn forward(&self, completions: Vec<Completion>) -> Result<LossSums> {
        let mut sums = LossSums::default();
        let bar = self.progress.bar("eval", completions.iter().map(Completion::len).sum::<usize>() as u64, "tokens");
        let most = self.recipe.runtime.device.device.capabilities().defaults.interruptible_tokens;
        let batches = split(completions, self.recipe.runtime.tokens_per_microbatch.min(most));
        let run = |_, sequences: &[TrainSequence], teacher: BatchTeacher| {
            if self.interrupt.is_requested() {
                return Err(Error::MeasurementInterrupted);
            }
            let report = self.setup.runtime.forward_backward(TrainRequest {
                sequences: sequences.to_vec(),
                loss: Arc::new(HeldOut),
                normalizer: 1.0,
                backward: false,
                dropout_key: 0,
                teacher: teacher.source,
            })?;
            bar.inc(report.tokens as u64);
            sums.add(&report);
            Ok(())
        };
        scored::each(self.setup.remote.as_ref(), &batches, |_| HeldOut.needs(), run)?;
        bar.finish_and_clear();
        Ok(sums)
    }
}

/// The prompt of `model`.
pub(super) fn prompt_of(example: &Example, model: ModelId) -> Vec<u32> {
    match model {
        ModelId::TEACHER => example.teacher_prompt.as_ref().unwrap_or(&example.prompt).clone(),
        _ => example.prompt.clone(),
    }
}

/// Measures a recipe's models without training them, printing the memory plan where `verbose`.
///
/// # Errors
/// What the recipe's data, models or teacher refuse; more memory than there is.
pub fn measure(
    recipe: &Recipe,
    verbose: bool,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<(usize, Measurements)> {
    let setup = Setup::new(recipe, RunKind::Measuring { verbose }, interrupt, progress)?;
    let max_new_tokens = recipe.eval.as_ref().map_or(recipe.rollout.max_new_tokens, |eval| eval.max_new_tokens);
    let eval_kl = EvalKl::new(recipe, &setup, max_new_tokens, interrupt, progress);
    let teachers = if eval_kl.teacher_generates() { eval_kl.of_teacher()? } else { Vec::new() };
    Ok((setup.held_out.len(), eval_kl.measure(&teachers)?))
}
