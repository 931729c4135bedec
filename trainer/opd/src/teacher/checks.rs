//! Checks of a remote teacher's log-probabilities: those that no distribution has would be trained on in silence.

use std::collections::BTreeSet;

use autograd::ops::Precision;

/// What rounding may add to a log-probability, and to the sum of probabilities.
const ROUNDING: f32 = 1e-3;

/// Log-probabilities of given tokens.
pub(super) fn own(logprobs: &[f32]) -> Result<(), String> {
    match logprobs.iter().position(|&logprob| !is_logprob(logprob)) {
        None => Ok(()),
        Some(place) => Err(format!("the log-probability of token {place} is {}, which none is", logprobs[place])),
    }
}

/// The likeliest tokens of one position with the mass of all others, beside the position's own token.
pub(super) fn listed(own: (u32, f32), ids: &[u32], logprobs: &[f32], tail: f32, vocab: usize) -> Result<(), String> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(format!("token {id} is outside the vocabulary of {vocab}"));
    }
    if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
        return Err("a token is listed twice at one position".to_owned());
    }
    if let Some(value) = logprobs.iter().chain([&tail]).find(|&&value| !is_logprob(value)) {
        return Err(format!("{value} is given as a log-probability, which none is"));
    }
    if let Some(pair) = logprobs.windows(2).find(|pair| pair[0] < pair[1] - ROUNDING) {
        return Err(format!("{} is listed before {}, but the likeliest tokens come first", pair[0], pair[1]));
    }
    let sum: f64 = logprobs.iter().chain([&tail]).map(|&logprob| f64::from(logprob).exp()).sum();
    if (sum - 1.0).abs() > f64::from(ROUNDING) {
        return Err(format!("the probabilities of one position add up to {sum:.4}"));
    }
    let (token, logprob) = own;
    // One that is not listed is no likelier than the last that is, and part of the others' mass.
    let last = logprobs.last().copied().unwrap_or(0.0);
    let holds = match ids.iter().position(|&id| id == token) {
        Some(place) => (logprobs[place] - logprob).abs() <= ROUNDING * logprob.abs().max(1.0),
        None => logprob <= last + ROUNDING && logprob <= tail + ROUNDING,
    };
    if holds { Ok(()) } else { Err(format!("the log-probability {logprob} of token {token} contradicts the list")) }
}

/// Whole rows of logits.
pub(super) fn logits(bytes: &[u8], precision: Precision) -> Result<(), String> {
    // The exponent of a number that is none, or infinite, has all bits set.
    let finite = match precision {
        Precision::Bf16 => bytes.chunks_exact(2).all(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 != 0x7f80),
        Precision::F32 => bytes.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
    };
    if finite { Ok(()) } else { Err("there are logits that are not finite numbers".to_owned()) }
}

/// A completion.
pub(super) fn completion(tokens: &[u32], most: usize, vocab: usize) -> Result<(), String> {
    if tokens.is_empty() || tokens.len() > most {
        return Err(format!("{} tokens were generated, 1 to {most} were asked for", tokens.len()));
    }
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(format!("token {id} is outside the vocabulary of {vocab}")),
    }
}

fn is_logprob(value: f32) -> bool {
    value.is_finite() && value <= ROUNDING
}
