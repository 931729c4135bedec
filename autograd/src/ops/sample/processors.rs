//! Logits processors besides temperature and truncation, on the GPU.

use crate::cuda::{Arg, Buffer, Gpu};
use crate::{Error, Result};

/// The most of a request's most likely and given tokens that can be listed; the kernel's MOST_LISTED.
pub const LISTED: usize = 256;

/// The logits processors of a request. They mean what they mean to the runtime's sampler.
#[derive(Debug, Clone, Copy)]
pub struct LogitsProcessorSpec<'a> {
    /// Added to the logits of these ids.
    pub logit_bias: &'a [(u32, f32)],
    /// Ids that can be made impossible from sample to sample.
    pub masked: &'a [u32],
    /// Divides positive and multiplies negative logits of tokens in prompt or generation.
    pub repetition: f32,
    /// Subtracted for each occurrence in the generation.
    pub frequency: f32,
    /// Subtracted where a token occurs in the generation.
    pub presence: f32,
    /// The prompt; looked at only where there is a penalty.
    pub prompt: &'a [u32],
    /// How many of the most likely tokens are listed.
    pub top: usize,
    /// Tokens that are listed too.
    pub given: &'a [u32],
}

impl LogitsProcessorSpec<'_> {
    fn penalizes(&self) -> bool {
        self.repetition != 1.0 || self.frequency != 0.0 || self.presence != 0.0
    }

    /// Refuses what a GPU cannot list.
    ///
    /// # Errors
    /// More than [`LISTED`] tokens to list.
    pub fn check(&self) -> Result<()> {
        let listed = self.top + self.given.len();
        if listed <= LISTED {
            return Ok(());
        }
        let what = "the number of tokens whose log-probabilities are listed";
        Err(Error::Domain { op: "sample", what, value: listed as f64, expected: "at most 256 on a GPU" })
    }

    fn is_empty(&self) -> bool {
        let lists = self.logit_bias.len() + self.masked.len() + self.given.len() + self.top;
        lists == 0 && !self.penalizes()
    }
}

/// A request's [`LogitsProcessorSpec`] on a GPU, with the history of its tokens where a penalty needs it. Sampling adds to the history.
#[derive(Debug)]
pub struct LogitsProcessors {
    /// Bias ids, biases, given ids, masked ids.
    lists: Buffer,
    /// u16 `[V]` and u8 `[V]`, as `kernels/history.cu` has them.
    history: Option<Buffer>,
    biases: usize,
    masked: usize,
    given: usize,
    top: usize,
    /// Repetition, frequency, presence.
    penalties: [f32; 3],
}

impl LogitsProcessors {
    /// Words of four bytes that a row takes: the kernels' `Extras`.
    pub(super) const WORDS: usize = 14;

    /// Puts them on a GPU, for a vocabulary of `vocab` tokens that all ids are in; `None` if there are none.
    ///
    /// # Errors
    /// More than [`LISTED`] tokens to list; a device that is out of memory.
    pub fn new(ordinal: usize, vocab: usize, rules: &LogitsProcessorSpec<'_>) -> Result<Option<Self>> {
        if rules.is_empty() {
            return Ok(None);
        }
        rules.check()?;
        let gpu = Gpu::get(ordinal)?;
        let ids = rules.logit_bias.iter().map(|(id, _)| *id);
        let biases = rules.logit_bias.iter().map(|(_, bias)| bias.to_bits());
        let lists: Vec<u32> =
            ids.chain(biases).chain(rules.given.iter().copied()).chain(rules.masked.iter().copied()).collect();
        Ok(Some(Self {
            lists: gpu.upload(&lists)?,
            history: rules.penalizes().then(|| history(gpu, vocab, rules.prompt)).transpose()?,
            biases: rules.logit_bias.len(),
            masked: rules.masked.len(),
            given: rules.given.len(),
            top: rules.top,
            penalties: [rules.repetition, rules.frequency, rules.presence],
        }))
    }

    /// How many of the most likely and of the given tokens are listed.
    pub(super) fn listed(&self) -> [usize; 2] {
        [self.top, self.given]
    }

    /// Whether the logits are changed.
    pub(super) fn changes(&self, masks: bool) -> bool {
        self.biases > 0 || self.history.is_some() || (masks && self.masked > 0)
    }

    /// The words of a row with these rules, if any, and the bits of the allowed tokens at an address or 0; what it lists
    /// begins at place `listed`.
    pub(super) fn words(rules: Option<&Self>, masks: bool, allowed: u64, listed: usize) -> [u32; Self::WORDS] {
        let halves = |address: u64| [address as u32, (address >> 32) as u32];
        let mut words = [0; Self::WORDS];
        words[4..6].copy_from_slice(&halves(allowed));
        let Some(rules) = rules else { return words };
        words[..2].copy_from_slice(&halves(rules.history.as_ref().map_or(0, Buffer::ptr)));
        words[2..4].copy_from_slice(&halves(rules.lists.ptr()));
        let masked = if masks { rules.masked } else { 0 };
        let counts = [rules.biases, masked, rules.given, rules.top].map(|count| count as u32);
        words[6..10].copy_from_slice(&counts);
        words[10..13].copy_from_slice(&rules.penalties.map(f32::to_bits));
        words[13] = listed as u32;
        words
    }
}

/// The history of a sequence that has generated nothing.
fn history(gpu: &'static Gpu, vocab: usize, prompt: &[u32]) -> Result<Buffer> {
    let history = gpu.alloc(3 * vocab)?;
    gpu.fill_zero(&history)?;
    let (ids, count) = (gpu.upload(prompt)?, prompt.len());
    let args = [Arg::from(&ids), Arg::I32(count as i32), Arg::from(&history), Arg::I32(vocab as i32)];
    gpu.launch("mark_prompt", [count.div_ceil(256).max(1) as u32, 1, 1], [256, 1, 1], 0, &args)?;
    Ok(history)
}
