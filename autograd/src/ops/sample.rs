//! Drawing tokens on a GPU, where the logits are.

use crate::cuda::{Arg, Array, DType};
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
    let [rows, vocab] = logits.shape();
    super::ensure(draws.len() == rows, "draw", "one draw for every row", &[logits])?;
    if !matches!(logits.device(), crate::Device::Cuda(_)) {
        let right = logits.device().to_string();
        return Err(Error::DeviceMismatch { op: "draw", left: "cuda".to_owned(), right });
    }
    let (z, gpu) = (logits.array(), logits.array().gpu());
    let ints = |f: fn(&Draw) -> u32| gpu.upload(&draws.iter().map(f).collect::<Vec<_>>());
    let floats = |f: fn(&Draw) -> f32| gpu.upload(&draws.iter().map(f).collect::<Vec<_>>());
    let longs = |f: fn(&Draw) -> u64| gpu.upload(&draws.iter().map(f).collect::<Vec<_>>());
    let (active, changed) = (ints(|_| 1)?, ints(|_| 0)?);
    let temperature = floats(|d| d.temperature)?;
    let (top_k, top_p, min_p) = (ints(|d| d.top_k as u32)?, floats(|d| d.top_p)?, floats(|d| d.min_p)?);
    let (seed, request, position) = (longs(|d| d.seed)?, longs(|d| d.request)?, longs(|d| d.position)?);
    let chunks = vocab.div_ceil(CHUNK);
    let partials = gpu.alloc(rows * chunks * PARTIAL_BYTES)?;
    let stride = Arg::U64(vocab as u64);
    let head = [
        z.arg(),
        stride,
        Arg::Ptr(0),
        stride,
        Arg::I32(vocab as i32),
        Arg::from(&active),
        Arg::from(&changed),
        Arg::from(&temperature),
    ];
    let args: Vec<Arg> = head.iter().copied().chain([Arg::from(&partials)]).collect();
    gpu.launch("sample_partials", [chunks as u32, rows as u32, 1], [128, 1, 1], 0, &args)?;
    // Tokens, then both log-probabilities: one copy brings them all.
    let results = Array::uninit(gpu, 3 * rows, DType::F32)?;
    let rest = [&top_k, &top_p, &min_p, &seed, &request, &position, &partials].map(Arg::from);
    let outputs = [0, 1, 2].map(|i| results.part(i * rows, rows).arg());
    let args: Vec<Arg> = head.into_iter().chain(rest).chain(outputs).collect();
    gpu.launch("sample_rows", [rows as u32, 1, 1], [512, 1, 1], 0, &args)?;
    let results = results.read()?;
    let drawn = |row: usize| match results[row].to_bits() as i32 {
        -1 => Drawn::NotFinite,
        -2 => Drawn::Impossible,
        token => Drawn::Token {
            token: token as u32,
            logprob: results[rows + row],
            sampling_logprob: results[2 * rows + row],
        },
    };
    Ok((0..rows).map(drawn).collect())
}
