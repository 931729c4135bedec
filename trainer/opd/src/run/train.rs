//! The loop of on-policy distillation.
//!
//! For prompts x of the data the student q generates completions, y ~ q(. | x). The teacher p scores every token of them, with a
//! prompt x' that may hold more than the student sees. The student is trained on
//!
//! ```text
//! L = 1/N  sum over y, t  of  D( p(. | x', y_<t),  q(. | x, y_<t) )         N: completion tokens of the step
//! ```
//!
//! where D is the recipe's divergence (reverse or forward KL, JSD) or its estimate by the sampled token (policy gradient). No gradient
//! flows through the sampling. With probability 1 - `lmbda` the completions of a prompt are the teacher's or the data's.

use super::{Run, StepReport, summary};
use crate::Result;
use crate::schedule::Schedule;
use telemetry::Scope;

/// Trains from the run's position to its end.
///
/// # Errors
/// Whatever stops the run; [`crate::Error::Interrupted`] where an operator did.
pub(super) fn train(run: &mut Run<'_>) -> Result<()> {
    run.eval_before_first_step()?;
    while !run.is_over() {
        run.follow_operator()?; // pause, save, learning rate, Ctrl-C
        let span = run.span("step", run.state.step + 1);
        let prompts = run.cursor.take(run.recipe.rollout.prompts_per_step); // x
        let lr = run.learning_rate();
        let mut step = run.steps.begin(run.state.step, &span);
        let rollouts = step.rollouts(&prompts).map_err(|e| run.keep_steps_before(e))?; // y ~ q(. | x)
        step.forward_backward(rollouts).map_err(|e| run.keep_steps_before(e))?; // teacher's scores, L, gradient
        let update = step.optim_step(lr)?; // clip, AdamW
        let report = step.publish(&update)?; // the next rollouts are those of the new weights
        run.finish_step(report, &span)?; // metrics, eval, best checkpoint
        run.save_periodically()?;
    }
    Ok(())
}

impl Run<'_> {
    fn learning_rate(&self) -> f64 {
        let schedule = Schedule { lr: self.state.lr.unwrap_or(self.recipe.schedule.lr), ..self.recipe.schedule };
        schedule.at(self.state.step, self.total)
    }

    /// Counts a step that is done, measures what is due and writes its numbers.
    fn finish_step(&mut self, report: StepReport, span: &Scope) -> Result<()> {
        let StepReport { mut metrics, timers, applied } = report;
        self.timers.merge(&timers);
        self.state.step += 1;
        self.state.rows_seen = self.cursor.seen();
        metrics.set("epoch", self.cursor.epoch());
        self.progress.line(&summary::step_line(&metrics, self.total));
        self.state.non_finite = if applied { 0 } else { self.state.non_finite + 1 };
        self.conclude(metrics, span)
    }
}
