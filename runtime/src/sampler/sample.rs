//! Sampling one token: adjust, temperature, top-k, top-p, min-p, inverse CDF.

use autograd::ops::SampleResult;

use super::candidates::{Ranked, nucleus, rank_all, sort_head};
use super::history::adjust;
use super::softmax::{Softmax, checked_max};
use super::{RngKey, SamplingError, SamplingParams, TokenHistory};

/// A sampled token and its log-probabilities. They are natural logs.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Under the model's own distribution: temperature 1, before bias and penalties.
    pub logprob: f32,
    /// Under `softmax(logits / temperature)`, before bias, penalties and truncation; for greedy, `logprob`.
    pub sampling_logprob: f32,
    /// The most likely tokens under the model's own distribution, ties by rising id: `logprobs` of them.
    pub top: Vec<(u32, f32)>,
    /// Log-probabilities of `logprob_token_ids` under the model's own distribution.
    pub given: Vec<f32>,
}

/// Buffers of [`sample`], kept to spare allocations. They carry nothing from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    ranked: Vec<Ranked>,
}

/// What sampling on a GPU gave, for `vocab_size` logits of which `masked` were made impossible.
pub(crate) fn from_device(result: SampleResult, vocab_size: usize, masked: usize) -> Result<Sampled, SamplingError> {
    match result {
        SampleResult::Token { token, logprob, sampling_logprob, top, given } => {
            Ok(Sampled { token, logprob, sampling_logprob, top, given })
        }
        SampleResult::NotFinite => Err(SamplingError::NonFiniteLogits),
        SampleResult::Impossible => Err(SamplingError::NoCandidate { vocab_size, masked }),
    }
}

/// Samples the token that follows, given the `logits` of the whole vocabulary.
///
/// `eos` are the model's end-of-sequence ids, which `min_tokens` masks. Of `allowed`, a bit for each token from the
/// lowest of the first word on, those that are 0 make tokens impossible. Top-k and top-p break ties towards
/// the lowest id.
///
/// # Panics
/// If an id of `params` (see [`SamplingParams::validate`]), `eos` or `history` is not below `logits.len()`.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    eos: &[u32],
    history: &TokenHistory,
    allowed: Option<&[u32]>,
    key: RngKey,
    scratch: &mut Scratch,
) -> Result<Sampled, SamplingError> {
    let Scratch { adjusted, weights, ranked } = scratch;
    let no_candidate = |masked| SamplingError::NoCandidate { vocab_size: logits.len(), masked };
    let max = checked_max(logits)?;
    if max == f32::NEG_INFINITY {
        return Err(no_candidate(0));
    }
    let changed = allowed.is_some() || params.adjusts_logits(history.generated());
    let (mut choice, mut choice_max) = (logits, max);
    if changed {
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        let masked = adjust(adjusted, params, eos, history, allowed);
        choice_max = checked_max(adjusted)?;
        if choice_max == f32::NEG_INFINITY {
            return Err(no_candidate(masked));
        }
        choice = adjusted;
    }
    let temperature = params.temperature;
    let mut sampled_from = None;
    let token = if temperature == 0.0 {
        choice.iter().position(|&logit| logit == choice_max).expect("the maximum is there") as u32
    } else {
        let softmax = Softmax::fill(weights, choice, choice_max, temperature);
        sampled_from = Some(softmax).filter(|_| !changed);
        sample_token(choice, weights, softmax.sum, params, key.uniform(), ranked)
    };
    // A pass is saved where the token was sampled from the very distribution that is reported.
    let mut model_at = |t: f32| match sampled_from {
        Some(softmax) if t == temperature => softmax,
        _ => Softmax::fill(weights, logits, max, t),
    };
    let model = model_at(1.0);
    let sampling = if temperature == 0.0 || temperature == 1.0 { model } else { model_at(temperature) };
    Ok(Sampled {
        token,
        logprob: model.log_prob(logits[token as usize]),
        sampling_logprob: sampling.log_prob(logits[token as usize]),
        top: top(logits, params.logprobs.unwrap_or(0), model, ranked),
        given: (params.logprob_token_ids.iter()).map(|&id| model.log_prob(logits[id as usize])).collect(),
    })
}

fn top(logits: &[f32], count: usize, model: Softmax, ranked: &mut Vec<Ranked>) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    rank_all(ranked, logits);
    sort_head(ranked, count);
    let head = ranked.iter().take(count).map(|token| token.id());
    head.map(|id| (id, model.log_prob(logits[id as usize]))).collect()
}

/// Truncates, then inverts the cumulative distribution in id order at `uniform`. `weights` are the
/// probabilities of all tokens times one factor, 1 for the most likely; `sum` is their sum.
fn sample_token(
    logits: &[f32],
    weights: &[f32],
    sum: f64,
    params: &SamplingParams,
    uniform: f64,
    ranked: &mut Vec<Ranked>,
) -> u32 {
    let weight_of = |id: u32| f64::from(weights[id as usize]);
    let likely = |id: &u32| weights[*id as usize] >= params.min_p;
    let all = 0..weights.len() as u32;
    if params.top_k.is_none() && params.top_p >= 1.0 {
        if params.min_p == 0.0 {
            return invert(all, weight_of, uniform * sum);
        }
        return sample_among(all.filter(likely), weight_of, uniform);
    }
    rank_all(ranked, logits);
    let mut sum = sum;
    if let Some(k) = params.top_k.filter(|&k| k < logits.len()) {
        ranked.select_nth_unstable(k - 1);
        ranked.truncate(k);
        sum = ranked.iter().map(|token| weight_of(token.id())).sum();
    }
    if params.top_p < 1.0 {
        let target = f64::from(params.top_p) * sum;
        let kept = nucleus(ranked, target, |token| weight_of(token.id()));
        ranked.truncate(kept);
    }
    ranked.sort_unstable_by_key(|token| token.id());
    sample_among(ranked.iter().map(|token| token.id()).filter(likely), weight_of, uniform)
}

/// Inverts the distribution that is left when only `ids` are possible.
fn sample_among(ids: impl Iterator<Item = u32> + Clone, weight_of: impl Fn(u32) -> f64, uniform: f64) -> u32 {
    let total: f64 = ids.clone().map(&weight_of).sum();
    invert(ids, weight_of, uniform * total)
}

/// The first id at which the cumulative weight exceeds `target`. Ids of weight 0 are never it.
fn invert(ids: impl Iterator<Item = u32>, weight_of: impl Fn(u32) -> f64, target: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for id in ids {
        let weight = weight_of(id);
        sum += weight;
        if weight > 0.0 {
            last = id;
        }
        if sum > target {
            return id;
        }
    }
    // Rounding left the target a hair above the sum.
    last
}
