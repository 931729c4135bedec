//! The sampling parameters of a request.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;

use super::SamplingError;

/// How tokens are chosen and when a generation ends. The default samples from the model's own distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Divisor of the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep this many of the most likely tokens.
    pub top_k: Option<usize>,
    /// Keep the fewest most likely tokens whose probabilities sum to at least this.
    pub top_p: f32,
    /// Drop tokens less likely than this times the most likely one.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens in prompt or generation.
    pub repetition_penalty: f32,
    /// Subtract this times the number of occurrences in the generation.
    pub frequency_penalty: f32,
    /// Subtract this from tokens that occur in the generation.
    pub presence_penalty: f32,
    /// Added to the logits of the given ids, before penalties.
    pub logit_bias: BTreeMap<u32, f32>,
    /// First part of the key of every random number.
    pub seed: u64,
    /// Ids that end the generation are impossible before this many tokens.
    pub min_tokens: usize,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the generation and, without `include_stop`, are not part of it.
    pub stop: Vec<String>,
    /// Ids that end the generation, besides the model's.
    pub stop_token_ids: Vec<u32>,
    /// The text that ended the generation is part of it.
    pub include_stop: bool,
    /// Special tokens have no text.
    pub skip_special_tokens: bool,
    /// Whether the model's own end-of-sequence ids are tokens like any other.
    pub ignore_eos: bool,
    /// Report this many of the most likely tokens.
    pub logprobs: Option<usize>,
    /// Report these tokens too.
    pub logprob_token_ids: Vec<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            min_tokens: 0,
            max_tokens: 256,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop: false,
            skip_special_tokens: true,
            ignore_eos: false,
            logprobs: None,
            logprob_token_ids: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Refuses what cannot be honoured for a model of `vocab_size` tokens.
    pub fn validate(&self, vocab_size: usize) -> Result<(), SamplingError> {
        self.check_numbers()?;
        self.check_counts(vocab_size)?;
        let in_vocab =
            |field, id: u32| check(field, id, (id as usize) < vocab_size, format!("a token id below {vocab_size}"));
        for (&id, &bias) in &self.logit_bias {
            in_vocab("logit_bias", id)?;
            check("logit_bias", bias, (-100.0..=100.0).contains(&bias), "from -100 to 100")?;
        }
        for &id in &self.stop_token_ids {
            in_vocab("stop_token_ids", id)?;
        }
        for &id in &self.logprob_token_ids {
            in_vocab("logprob_token_ids", id)?;
        }
        let empty = self.stop.iter().any(String::is_empty);
        check("stop", "\"\"", !empty, "texts of at least one character")
    }

    fn check_numbers(&self) -> Result<(), SamplingError> {
        let t = self.temperature;
        check("temperature", t, t.is_finite() && t >= 0.0, "0 (greedy) or a positive number")?;
        let p = self.top_p;
        check("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1")?;
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "a positive number")?;
        for (field, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            check(field, penalty, (-2.0..=2.0).contains(&penalty), "from -2 to 2")?;
        }
        Ok(())
    }

    fn check_counts(&self, vocab_size: usize) -> Result<(), SamplingError> {
        if let Some(k) = self.top_k {
            check("top_k", k, k > 0, "at least 1, or absent to keep all tokens")?;
        }
        check("max_tokens", self.max_tokens, self.max_tokens > 0, "at least 1")?;
        let allowed = format!("at most max_tokens = {}", self.max_tokens);
        check("min_tokens", self.min_tokens, self.min_tokens <= self.max_tokens, allowed)?;
        let n = self.logprobs.unwrap_or(0);
        check("logprobs", n, n <= vocab_size, format!("at most the {vocab_size} tokens there are"))
    }

    /// Ids that end the generation, of a model with these end-of-sequence ids.
    pub(crate) fn ending_ids<'a>(&'a self, eos: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let eos = if self.ignore_eos { &[] } else { eos };
        eos.iter().chain(&self.stop_token_ids).copied()
    }

    /// Whether the logits are changed before the temperature, for a generation of `generated` tokens.
    pub(crate) fn adjusts_logits(&self, generated: usize) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || !self.logit_bias.is_empty()
            || generated < self.min_tokens
    }
}

fn check(
    field: &'static str,
    value: impl Display,
    holds: bool,
    allowed: impl Into<String>,
) -> Result<(), SamplingError> {
    if holds {
        return Ok(());
    }
    Err(SamplingError::OutOfRange { field, value: value.to_string(), allowed: allowed.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(SamplingParams::default().validate(1), Ok(()));
    }

    #[test]
    fn every_field_is_checked_and_named() {
        type Spoil = fn(&mut SamplingParams);
        let cases: [(&str, Spoil); 18] = [
            ("temperature", |p| p.temperature = -0.1),
            ("temperature", |p| p.temperature = f32::NAN),
            ("top_k", |p| p.top_k = Some(0)),
            ("top_p", |p| p.top_p = 0.0),
            ("top_p", |p| p.top_p = 1.01),
            ("min_p", |p| p.min_p = 1.01),
            ("repetition_penalty", |p| p.repetition_penalty = 0.0),
            ("frequency_penalty", |p| p.frequency_penalty = 2.1),
            ("presence_penalty", |p| p.presence_penalty = f32::NAN),
            ("logit_bias", |p| p.logit_bias = [(50, 1.0)].into()),
            ("logit_bias", |p| p.logit_bias = [(49, 101.0)].into()),
            ("min_tokens", |p| p.min_tokens = 257),
            ("max_tokens", |p| p.max_tokens = 0),
            ("stop", |p| p.stop = vec!["a".into(), String::new()]),
            ("stop_token_ids", |p| p.stop_token_ids = vec![50]),
            ("logprobs", |p| p.logprobs = Some(51)),
            ("logprob_token_ids", |p| p.logprob_token_ids = vec![50]),
            ("temperature", |p| p.temperature = f32::INFINITY),
        ];
        for (name, spoil) in cases {
            let mut params = SamplingParams::default();
            spoil(&mut params);
            match params.validate(50) {
                Err(SamplingError::OutOfRange { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        let params = SamplingParams { top_p: 1.5, ..SamplingParams::default() };
        let message = params.validate(50).unwrap_err().to_string();
        assert_eq!(message, "top_p = 1.5: must be above 0 and at most 1");
    }
}
