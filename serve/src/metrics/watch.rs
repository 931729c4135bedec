//! One request's times and tokens, for its model's counters and for the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::request::FinishReason;
use tokio::time::Instant;

use super::{ModelMetrics, Outcome};
use telemetry::{KeyValue, Scope, numbers, strings};

/// Follows the sequences of a request. Dropping it counts those that have not ended as aborted.
pub(crate) struct Watch {
    model: Arc<ModelMetrics>,
    copies: usize,
    started: Instant,
    sequences: Vec<Sequence>,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// Versions of the weights that computed its tokens.
    versions: BTreeSet<u64>,
    failed: bool,
    span: tracing::Span,
    scope: Scope,
}

#[derive(Clone, Default)]
struct Sequence {
    /// When its first step began.
    begun: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: usize,
    outcome: Option<Outcome>,
}

impl Watch {
    /// Follows a request with `copies` sequences for each prompt.
    pub(crate) fn new(model: Arc<ModelMetrics>, copies: usize) -> Self {
        Self {
            model,
            copies,
            started: Instant::now(),
            sequences: vec![],
            prompt_tokens: 0,
            cached_tokens: 0,
            versions: BTreeSet::new(),
            failed: false,
            span: tracing::Span::current(),
            scope: Scope::current(),
        }
    }

    /// A prompt was submitted, with its copies.
    pub(crate) fn prompt(&mut self, tokens: usize) {
        self.sequences.resize(self.sequences.len() + self.copies, Sequence::default());
        self.prompt_tokens += tokens;
        self.model.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.model.prompt_length.observe(tokens as f64);
    }

    /// No token is asked of a sequence: it is never submitted.
    pub(crate) fn nothing(&mut self, sequence: usize) {
        self.sequences[sequence].outcome = Some(Outcome::Length);
    }

    /// What lines of the log about this request are under.
    pub(crate) fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// The first step of a sequence began, `queued` seconds after its arrival.
    pub(crate) fn begin(&mut self, sequence: usize, queued: f64) {
        self.model.queued.observe(queued);
        self.sequences[sequence].begun = Duration::try_from_secs_f64(queued).ok().map(|queued| self.started + queued);
    }

    /// A token of weights `version` came at `at`.
    pub(crate) fn token(&mut self, sequence: usize, at: Instant, version: u64) {
        self.versions.insert(version);
        let one = &mut self.sequences[sequence];
        one.first.get_or_insert(at);
        match one.last.replace(at) {
            None => self.model.first_token.observe((at - self.started).as_secs_f64()),
            Some(last) => self.model.between.observe((at - last).as_secs_f64()),
        }
        one.tokens += 1;
        self.model.generated_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether any sequence has a token.
    pub(crate) fn has_tokens(&self) -> bool {
        self.sequences.iter().any(|one| one.tokens > 0)
    }

    /// A sequence ended at `at`.
    pub(crate) fn end(&mut self, sequence: usize, at: Instant, reason: FinishReason, cached_tokens: usize) {
        let one = &mut self.sequences[sequence];
        one.outcome = Some(reason.into());
        self.model.whole.observe((at - self.started).as_secs_f64());
        self.model.generated_length.observe(one.tokens as f64);
        // Copies share their prompt in any case; what the first one found counts.
        if sequence.is_multiple_of(self.copies) {
            self.cached_tokens += cached_tokens;
            self.model.cached_tokens.fetch_add(cached_tokens as u64, Ordering::Relaxed);
        }
    }

    /// Sequences that have not ended failed.
    pub(crate) fn failed(&mut self, why: &str) {
        self.failed = true;
        self.scope.fail(why.to_owned());
    }

    /// Tells the request's span what it took: of each sequence the time in the queue, to the first token, and to the last one,
    /// as far as it came.
    fn trace(&self, outcomes: &[Outcome], generated: usize) {
        if !self.scope.is_recorded() {
            return;
        }
        let now = Instant::now();
        for (number, one) in self.sequences.iter().enumerate() {
            let child = |name, from: Instant, to: Instant, more: Vec<KeyValue>| {
                let number = KeyValue::new("arle.sequence", number as i64);
                self.scope.child(name, [from.into_std(), to.into_std()], [vec![number], more].concat());
            };
            if one.begun.is_some() || one.outcome.is_none() {
                child("queue", self.started, one.begun.unwrap_or(now), vec![]);
            }
            if let Some(begun) = one.begun {
                child("prefill", begun, one.first.unwrap_or(now).max(begun), vec![]);
            }
            if let (Some(first), Some(last)) = (one.first, one.last) {
                child("decode", first, last, vec![KeyValue::new("gen_ai.usage.output_tokens", one.tokens as i64)]);
            }
        }
        self.scope.set(vec![
            KeyValue::new("gen_ai.response.model", self.model.name.clone()),
            KeyValue::new("gen_ai.request.choice.count", self.copies as i64),
            KeyValue::new("gen_ai.usage.input_tokens", self.prompt_tokens as i64),
            KeyValue::new("gen_ai.usage.output_tokens", generated as i64),
            KeyValue::new("gen_ai.usage.cache_read.input_tokens", self.cached_tokens as i64),
            KeyValue::new("gen_ai.response.finish_reasons", strings(outcomes.iter().map(|outcome| outcome.name()))),
            KeyValue::new("arle.weights_versions", numbers(self.versions.iter().copied())),
        ]);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let left = if self.failed { Outcome::Error } else { Outcome::Abort };
        let outcomes: Vec<Outcome> = self.sequences.iter().map(|one| one.outcome.unwrap_or(left)).collect();
        for &outcome in &outcomes {
            self.model.end(outcome);
        }
        let generated: usize = self.sequences.iter().map(|one| one.tokens).sum();
        self.trace(&outcomes, generated);
        let outcomes = outcomes.into_iter().map(Outcome::name).collect::<Vec<_>>().join(",");
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
