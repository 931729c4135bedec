//! Which tokens a sequence has, and what that does to its next logits.

use std::collections::BTreeMap;

use super::SamplingParams;

/// Tokens of one sequence, by id: in its prompt or not, and how often in its generation.
#[derive(Debug, Clone, Default)]
pub struct TokenHistory {
    /// Occurrences in the generation; 0 for tokens of the prompt alone.
    counts: BTreeMap<u32, u32>,
    generated: usize,
}

impl TokenHistory {
    /// The history of a sequence that has nothing generated yet.
    pub fn new(prompt: &[u32]) -> Self {
        Self { counts: prompt.iter().map(|&id| (id, 0)).collect(), generated: 0 }
    }

    /// Appends a generated token.
    pub fn push(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
        self.generated += 1;
    }

    /// Length of the generation.
    pub fn generated(&self) -> usize {
        self.generated
    }
}

/// Bias, `min_tokens` mask, then repetition (Hugging Face's definition, prompt and generation), frequency and
/// presence penalties (OpenAI's definition, generation only), then what is not `allowed`. Returns how many ids were
/// masked.
pub(super) fn adjust(
    logits: &mut [f32],
    params: &SamplingParams,
    eos: &[u32],
    history: &TokenHistory,
    allowed: Option<&[u32]>,
) -> usize {
    for (&id, bias) in &params.logit_bias {
        logits[id as usize] += bias;
    }
    let mut masked = 0;
    if history.generated < params.min_tokens {
        for id in params.ending_ids(eos) {
            logits[id as usize] = f32::NEG_INFINITY;
            masked += 1;
        }
    }
    for (&id, &count) in &history.counts {
        let logit = &mut logits[id as usize];
        match *logit > 0.0 {
            true => *logit /= params.repetition_penalty,
            false => *logit *= params.repetition_penalty,
        }
        if count > 0 {
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
    let forbidden = |id: &usize| allowed.is_some_and(|bits| bits[id / 32] >> (id % 32) & 1 == 0);
    for id in (0..logits.len()).filter(forbidden) {
        logits[id] = f32::NEG_INFINITY;
        masked += 1;
    }
    masked
}
