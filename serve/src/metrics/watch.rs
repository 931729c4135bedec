//! One request's times and tokens, for its model's counters and for the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime::request::FinishReason;
use tokio::time::Instant;

use super::{ModelMetrics, Outcome};

/// Follows the sequences of a request. Dropping it counts those that have not ended as aborted.
pub(crate) struct Watch {
    model: Arc<ModelMetrics>,
    copies: usize,
    started: Instant,
    sequences: Vec<Sequence>,
    prompt_tokens: usize,
    failed: bool,
    span: tracing::Span,
}

#[derive(Clone, Default)]
struct Sequence {
    last: Option<Instant>,
    tokens: usize,
    outcome: Option<Outcome>,
}

impl Watch {
    /// Follows a request with `copies` sequences for each prompt.
    pub(crate) fn new(model: Arc<ModelMetrics>, copies: usize) -> Self {
        let span = tracing::Span::current();
        Self { model, copies, started: Instant::now(), sequences: vec![], prompt_tokens: 0, failed: false, span }
    }

    /// A prompt was submitted, with its copies.
    pub(crate) fn prompt(&mut self, tokens: usize) {
        self.sequences.resize(self.sequences.len() + self.copies, Sequence::default());
        self.prompt_tokens += tokens;
        self.model.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.model.prompt_length.observe(tokens as f64);
    }

    /// A token came at `at`.
    pub(crate) fn token(&mut self, sequence: usize, at: Instant) {
        let one = &mut self.sequences[sequence];
        match one.last.replace(at) {
            None => self.model.first_token.observe((at - self.started).as_secs_f64()),
            Some(last) => self.model.between.observe((at - last).as_secs_f64()),
        }
        one.tokens += 1;
        self.model.generated_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// A sequence ended at `at`, having waited `queued` seconds for its first step.
    pub(crate) fn end(
        &mut self,
        sequence: usize,
        at: Instant,
        reason: FinishReason,
        cached_tokens: usize,
        queued: f64,
    ) {
        self.model.queued.observe(queued);
        let one = &mut self.sequences[sequence];
        one.outcome = Some(reason.into());
        self.model.whole.observe((at - self.started).as_secs_f64());
        self.model.generated_length.observe(one.tokens as f64);
        // Copies share their prompt in any case; what the first one found counts.
        if sequence.is_multiple_of(self.copies) {
            self.model.cached_tokens.fetch_add(cached_tokens as u64, Ordering::Relaxed);
        }
    }

    /// Sequences that have not ended failed.
    pub(crate) fn failed(&mut self) {
        self.failed = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let left = if self.failed { Outcome::Error } else { Outcome::Abort };
        let outcomes: Vec<Outcome> = self.sequences.iter().map(|one| one.outcome.unwrap_or(left)).collect();
        for &outcome in &outcomes {
            self.model.end(outcome);
        }
        let outcomes = outcomes.into_iter().map(Outcome::name).collect::<Vec<_>>().join(",");
        let generated: usize = self.sequences.iter().map(|one| one.tokens).sum();
        let _entered = self.span.enter();
        tracing::info!(
            model = %self.model.name,
            prompt_tokens = self.prompt_tokens,
            generated_tokens = generated,
            seconds = self.started.elapsed().as_secs_f64(),
            outcome = outcomes,
            "generation ended"
        );
    }
}
