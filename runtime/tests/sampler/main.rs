//! The sampler against distributions, supports and penalties worked out by hand.

use runtime::sampler::{RngKey, Sampled, SamplingError, SamplingParams, Scratch, TokenHistory, sample};

mod distributions;
mod values;

const EOS: [u32; 1] = [0];

fn key(position: u64) -> RngKey {
    RngKey { seed: 11, request: 3, position }
}

fn try_draw(logits: &[f32], params: &SamplingParams, history: &TokenHistory) -> Result<Sampled, SamplingError> {
    sample(logits, params, &EOS, history, None, key(0), &mut Scratch::default())
}

fn draw_after(logits: &[f32], params: &SamplingParams, history: &TokenHistory) -> Sampled {
    try_draw(logits, params, history).unwrap()
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}
