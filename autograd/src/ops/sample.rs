//! Drawing tokens on a GPU, where the logits are.

use std::sync::Arc;

use crate::cuda::{Arg, Array, DType, Gpu};
use crate::index::Part;
use crate::{Error, Result, Tensor};

/// How one row's token is drawn. The meaning of the fields is the sampler's of the runtime, which draws on the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Divisor of the logits; 0 takes the most likely token, the lowest id of equals.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities sum to at least this.
    pub top_p: f32,
    /// Drop tokens less likely than this times the most likely one.
    pub min_p: f32,
    /// The user's seed.
    pub seed: u64,
    /// Which of the requests under that seed.
    pub request: u64,
    /// Position of the token that is drawn.
    pub position: u64,
}

/// What a row gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Drawn {
    /// A token, and its natural log-probability at temperature 1 and at the draw's temperature.
    Token {
        /// Its id.
        token: u32,
        /// At temperature 1.
        logprob: f32,
        /// At the draw's temperature; for temperature 0, at 1.
        sampling_logprob: f32,
    },
    /// A logit is NaN or +infinity.
    NotFinite,
    /// Every logit is -infinity.
    Impossible,
}

/// Logits that a block of the first pass looks at; the kernel's CHUNK.
const CHUNK: usize = 2048;
/// Bytes of what such a block leaves; the kernel's `Partial`.
const PARTIAL_BYTES: usize = 56;

/// Draws a token for every row of f32 logits `[B, V]` on a GPU.
///
/// # Errors
/// Logits that are not on a GPU, another number of draws than rows, a device that is lost.
pub fn draw(logits: &Tensor, draws: &[Draw]) -> Result<Vec<Drawn>> {
    let [rows, _] = logits.shape();
    super::ensure(draws.len() == rows, "draw", "one draw for every row", &[logits])?;
    if !matches!(logits.device(), crate::Device::Cuda(_)) {
        let right = logits.device().to_string();
        return Err(Error::DeviceMismatch { op: "draw", left: "cuda".to_owned(), right });
    }
    let arrays = DrawArrays::upload(logits.array().gpu(), draws)?;
    let results = launch(logits, &arrays)?;
    Ok(collect(&results.read()?, rows))
}

/// Parameters of rows on a GPU, `[rows]` each; addresses within one buffer.
pub(crate) struct DrawArrays {
    part: Part,
    rows: usize,
}

impl DrawArrays {
    /// Words of four bytes that a row's parameters take.
    pub(crate) const WORDS: usize = 11;

    fn upload(gpu: &'static Gpu, draws: &[Draw]) -> Result<Self> {
        let buffer = Arc::new(gpu.upload(&Self::words(draws, draws.len()))?);
        Ok(Self { part: Part { buffer, offset: 0 }, rows: draws.len() })
    }

    /// Parameters that are written to `part` before every launch.
    pub(crate) fn on_device(part: Part, rows: usize) -> Self {
        Self { part, rows }
    }

    /// The words of `draws` and, up to `rows`, of rows that are left out: seeds, requests and positions of eight bytes,
    /// then whether a row is active, top-k, temperature, top-p and min-p.
    pub(crate) fn words(draws: &[Draw], rows: usize) -> Vec<u32> {
        let mut words = vec![0; rows * Self::WORDS];
        for (row, d) in draws.iter().enumerate() {
            for (i, long) in [d.seed, d.request, d.position].into_iter().enumerate() {
                let at = 2 * (i * rows + row);
                (words[at], words[at + 1]) = (long as u32, (long >> 32) as u32);
            }
            let short = [1, d.top_k as u32, d.temperature.to_bits(), d.top_p.to_bits(), d.min_p.to_bits()];
            for (i, word) in short.into_iter().enumerate() {
                words[(6 + i) * rows + row] = word;
            }
        }
        words
    }

    /// Address of the parameter whose words begin at `word` times the number of rows.
    fn arg(&self, word: usize) -> Arg {
        Arg::Ptr(self.part.ptr() + (4 * word * self.rows) as u64)
    }
}

/// Tokens, then both log-probabilities, `[3 B]`.
pub(crate) fn launch(logits: &Tensor, draws: &DrawArrays) -> Result<Array> {
    let [rows, vocab] = logits.shape();
    let (z, gpu) = (logits.array(), logits.array().gpu());
    let chunks = vocab.div_ceil(CHUNK);
    let partials = gpu.alloc(rows * chunks * PARTIAL_BYTES)?;
    let stride = Arg::U64(vocab as u64);
    let none = Arg::Ptr(0);
    let [active, top_k, temperature, top_p, min_p] = [6, 7, 8, 9, 10].map(|word| draws.arg(word));
    let head = [z.arg(), stride, none, stride, Arg::I32(vocab as i32), active, none, temperature];
    let args: Vec<Arg> = head.iter().copied().chain([Arg::from(&partials)]).collect();
    gpu.launch("sample_partials", [chunks as u32, rows as u32, 1], [128, 1, 1], 0, &args)?;
    let results = Array::uninit(gpu, 3 * rows, DType::F32)?;
    let [seed, request, position] = [0, 2, 4].map(|word| draws.arg(word));
    let rest = [top_k, top_p, min_p, seed, request, position, Arg::from(&partials)];
    let outputs = [0, 1, 2].map(|i| results.part(i * rows, rows).arg());
    let args: Vec<Arg> = head.into_iter().chain(rest).chain(outputs).collect();
    gpu.launch("sample_rows", [rows as u32, 1, 1], [512, 1, 1], 0, &args)?;
    if gpu.is_deterministic() {
        // Those of the losses' kernels, bit for bit.
        let args = [z.arg(), stride, Arg::I32(vocab as i32), active, temperature];
        let args: Vec<Arg> = args.into_iter().chain(outputs).collect();
        gpu.launch("drawn_log_probs", [rows as u32, 1, 1], [512, 1, 1], 0, &args)?;
    }
    Ok(results)
}

/// The first `count` rows of what [`launch`] wrote.
pub(crate) fn collect(results: &[f32], count: usize) -> Vec<Drawn> {
    let rows = results.len() / 3;
    let drawn = |row: usize| match results[row].to_bits() as i32 {
        -1 => Drawn::NotFinite,
        -2 => Drawn::Impossible,
        token => Drawn::Token {
            token: token as u32,
            logprob: results[rows + row],
            sampling_logprob: results[2 * rows + row],
        },
    };
    (0..count).map(drawn).collect()
}
