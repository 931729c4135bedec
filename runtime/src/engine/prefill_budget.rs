//! How many tokens of prompts a step takes beside running generations, each of which waits for the step's end: so many that
//! it takes a given multiple of the time of a step without them. Both times are measured all along.

use std::time::Duration;

/// A step with tokens of prompts takes this many times one without them.
const STRETCH: f64 = 1.7;
/// Weight of a new measurement.
const NEWS: f64 = 0.3;
/// After so many steps with tokens of prompts one goes without, to be measured.
const ALONE_AFTER: u32 = 24;
/// No prompt goes on more slowly.
const LEAST: f64 = 4.0;
/// Where it starts; it grows by half from step to step.
const FIRST: f64 = 16.0;

/// What a round of steps computes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepLoad {
    /// Running generations wait for it.
    pub(super) streams: bool,
    /// Tokens of prompts in it.
    pub(super) prefill: usize,
}

/// Bounds the rounds of an engine.
#[derive(Debug)]
pub(super) struct PrefillBudget {
    /// Tokens beside running generations.
    tokens: f64,
    /// Seconds of a round of generations alone.
    alone: Option<f64>,
    since_alone: u32,
    /// What the device computes while the host plans the next round, where it does.
    ahead: Option<StepLoad>,
    async_scheduling: bool,
}

impl PrefillBudget {
    /// `async_scheduling`: the device is one step ahead of the host, so the time of a step is measured in the next.
    pub(super) fn new(async_scheduling: bool) -> Self {
        Self { tokens: FIRST, alone: None, since_alone: 0, ahead: None, async_scheduling }
    }

    /// Most tokens of prompts in the next round.
    pub(super) fn prefill(&self, streams: bool) -> usize {
        match (streams, self.alone) {
            (false, _) => usize::MAX,
            (true, None) => 0,
            (true, Some(_)) if self.since_alone >= ALONE_AFTER => 0,
            (true, Some(_)) => self.tokens as usize,
        }
    }

    /// Nothing is in flight.
    pub(super) fn drained(&mut self) {
        self.ahead = None;
    }

    /// A round was launched, and so much time has passed since the one before.
    pub(super) fn took(&mut self, time: Duration, launched: StepLoad) {
        self.since_alone = if launched.prefill > 0 { self.since_alone + 1 } else { 0 };
        let round = if self.async_scheduling { self.ahead.replace(launched) } else { Some(launched) };
        let Some(StepLoad { streams: true, prefill }) = round else { return };
        let time = time.as_secs_f64();
        let Some(alone) = &mut self.alone else {
            self.alone = (prefill == 0).then_some(time);
            return;
        };
        if prefill == 0 {
            *alone += NEWS * (time - *alone);
            return;
        }
        let fits = (STRETCH - 1.0) * *alone / (time - *alone).max(1e-9) * prefill as f64;
        // The time of a step that was not full is no measure of a full one, unless it took too long.
        if fits < self.tokens || prefill as f64 > 0.5 * self.tokens {
            self.tokens = fits.clamp(0.25 * self.tokens, 1.5 * self.tokens).clamp(LEAST, 1e6);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_beside_generations_come_to_take_the_multiple() {
        for (async_scheduling, token_ms, alone_ms) in
            [(false, 1.0, 20.0), (false, 0.002, 3.0), (true, 0.01, 2.0), (false, 30.0, 20.0)]
        {
            let mut prefill_budget = PrefillBudget::new(async_scheduling);
            let mut last = StepLoad::default();
            for round in 0..400 {
                // More generations from the middle on.
                let alone = if round < 200 { alone_ms } else { 3.0 * alone_ms };
                let prefill = prefill_budget.prefill(true).min(100_000);
                let launched = StepLoad { streams: true, prefill };
                let runs = if async_scheduling { std::mem::replace(&mut last, launched) } else { launched };
                let ms = alone + token_ms * runs.prefill as f64;
                let slowest = (alone + LEAST * token_ms).max(2.0 * alone);
                let settled = (100..200).contains(&round) || round >= 300;
                assert!(!settled || ms <= slowest, "round {round}: {ms} ms beside {alone}");
                let few = runs.prefill > 0 && ms < 1.2 * alone;
                assert!(!settled || !few, "round {round}: {} tokens are too few", runs.prefill);
                prefill_budget.took(Duration::from_secs_f64(ms / 1000.0), launched);
            }
        }
        assert_eq!(PrefillBudget::new(false).prefill(false), usize::MAX);
    }
}
