//! Sampling state of one generation, where its logits are.

use autograd::Device;
use autograd::ops::{LogitsProcessorSpec, LogitsProcessors, SampleArgs, SampleParams};

use crate::Result;
use crate::config::ModelConfig;
use crate::engine::order::BeginSequence;
use crate::sampler::{RngKey, Sampled, SamplingError, SamplingParams, Scratch, TokenHistory, sample};

/// How the tokens of a generation are sampled. It has the tokens of steps whose results are not processed yet.
pub(super) struct SequenceState {
    params: SamplingParams,
    index: u64,
    prompt_len: usize,
    sampler: Sampler,
    /// Bits of the tokens that are possible next; empty where all are.
    allowed: Vec<u32>,
}

enum Sampler {
    Host(TokenHistory),
    /// Logits processors besides temperature and truncation, if any.
    Gpu(Option<LogitsProcessors>),
}

/// Calls `f` with a request's logits processors for a GPU.
fn with_rules<T>(
    p: &SamplingParams,
    prompt: &[u32],
    config: &ModelConfig,
    f: impl FnOnce(&LogitsProcessorSpec<'_>) -> T,
) -> T {
    let bias: Vec<(u32, f32)> = p.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
    let masked: Vec<u32> = if p.min_tokens > 0 { p.ending_ids(&config.eos_token_ids).collect() } else { vec![] };
    f(&LogitsProcessorSpec {
        logit_bias: &bias,
        masked: &masked,
        repetition: p.repetition_penalty,
        frequency: p.frequency_penalty,
        presence: p.presence_penalty,
        prompt,
        top: p.logprobs.unwrap_or(0),
        given: &p.logprob_token_ids,
    })
}

/// Refuses parameters that the device's kernels do not have; before a request is queued.
pub(in crate::engine) fn check_params(params: &SamplingParams, config: &ModelConfig, device: Device) -> Result<()> {
    if device.capabilities().samples {
        with_rules(params, &[], config, |rules| rules.check())?;
    }
    Ok(())
}

impl SequenceState {
    /// # Errors
    /// A GPU that is out of memory.
    pub(super) fn new(begin: BeginSequence, config: &ModelConfig, device: Device) -> Result<Self> {
        let BeginSequence { params, index, prompt, .. } = begin;
        let sampler = match device.gpu()? {
            Some(gpu) if device.capabilities().samples => {
                let ordinal = gpu.info().ordinal;
                let make = |rules: &LogitsProcessorSpec<'_>| LogitsProcessors::new(ordinal, config.vocab_size, rules);
                Sampler::Gpu(with_rules(&params, &prompt, config, make)?)
            }
            _ => Sampler::Host(TokenHistory::new(&prompt)),
        };
        Ok(Self { params, index, prompt_len: prompt.len(), sampler, allowed: vec![] })
    }

    /// Makes all tokens impossible as the next one but those whose bits are set.
    pub(super) fn allow(&mut self, bits: Vec<u32>) {
        self.allowed = bits;
    }

    fn allowed(&self) -> Option<&[u32]> {
        (!self.allowed.is_empty()).then_some(&self.allowed[..])
    }

    /// Samples the token at `position` on the host.
    pub(super) fn sample(&self, logits: &[f32], position: usize, eos: &[u32]) -> Result<Sampled, SamplingError> {
        let Sampler::Host(history) = &self.sampler else { unreachable!("the logits are where tokens are sampled") };
        let key = RngKey { seed: self.params.seed, request: self.index, position: position as u64 };
        sample(logits, &self.params, eos, history, self.allowed(), key, &mut Scratch::default())
    }

    /// Adds a token that the host sampled to the history.
    pub(super) fn record_sampled(&mut self, token: u32) {
        if let Sampler::Host(history) = &mut self.sampler {
            history.push(token);
        }
    }

    /// How a GPU samples the token at `position`.
    pub(super) fn sample_args(&self, position: usize) -> SampleArgs<'_> {
        let p = &self.params;
        let params = SampleParams {
            temperature: p.temperature,
            top_k: p.top_k.unwrap_or(0),
            top_p: p.top_p,
            min_p: p.min_p,
            seed: p.seed,
            request: self.index,
            position: position as u64,
        };
        let processors = match &self.sampler {
            Sampler::Gpu(processors) => processors.as_ref(),
            Sampler::Host(_) => None,
        };
        SampleArgs { params, processors, masks: self.masks_endings(position), allowed: self.allowed() }
    }

    /// Whether the ids that end a generation are impossible at `position`.
    fn masks_endings(&self, position: usize) -> bool {
        position - self.prompt_len < self.params.min_tokens
    }

    /// How many ids are impossible at `position`.
    pub(super) fn masked(&self, position: usize, config: &ModelConfig) -> usize {
        let ending =
            if self.masks_endings(position) { self.params.ending_ids(&config.eos_token_ids).count() } else { 0 };
        let allowed = |bits: &[u32]| bits.iter().map(|word| word.count_ones() as usize).sum();
        ending + self.allowed().map_or(0, |bits| config.vocab_size.saturating_sub(allowed(bits)))
    }
}
