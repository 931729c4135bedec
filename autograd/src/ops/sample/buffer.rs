//! Where steps leave what they sampled.

use std::sync::Arc;

use super::{LISTED, SampleArgs, SampleArrays, SampleResult, Token};
use crate::cuda::WordRange;
use crate::cuda::{Arg, Buffer, Gpu, Pending};
use crate::{Error, Index, Result, Tensor};

/// Logits that a block of the first pass looks at; the kernels' CHUNK.
const CHUNK: usize = 2048;
/// Bytes of what such a block leaves; the kernel's `Partial`.
const PARTIAL_BYTES: usize = 56;
/// Marks an id that is a sampled row.
const FED: u32 = 1 << 31;

/// Memory on a GPU for what the steps of one model sample. They run in the order of their launches, so one buffer is enough:
/// a step reads the tokens of the one before when it begins, and overwrites them when it ends.
pub struct SampleBuffer {
    gpu: &'static Gpu,
    /// Tokens, log-probabilities at temperature 1 and at the row's, `[rows]` each, then id and log-probability of what
    /// is listed.
    buffer: Buffer,
    rows: usize,
}

impl SampleBuffer {
    /// A buffer for steps of up to `rows` sampled rows.
    ///
    /// # Errors
    /// A device that is out of memory.
    pub fn new(ordinal: usize, rows: usize) -> Result<Self> {
        let gpu = Gpu::get(ordinal)?;
        // Pairs of words begin at a multiple of eight bytes.
        let rows = rows.next_multiple_of(2);
        let buffer = gpu.alloc(4 * rows * (3 + 2 * LISTED))?;
        gpu.fill_zero(&buffer)?;
        Ok(Self { gpu, buffer, rows })
    }

    /// The ids of `tokens` on the GPU.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn feed(&self, tokens: &[Token]) -> Result<Index> {
        let words: Vec<u32> = tokens.iter().map(|&token| word(token)).collect();
        let part = WordRange { buffer: Arc::new(self.gpu.upload(&words)?), offset: 0 };
        if tokens.iter().any(|token| matches!(token, Token::Sampled(_))) {
            self.fill_in(&part, tokens.len())?;
        }
        Ok(Index::on_device(part, tokens.len()))
    }

    /// Puts sampled tokens into `count` ids that [`word`] made.
    pub(crate) fn fill_in(&self, ids: &WordRange, count: usize) -> Result<()> {
        let args = [Arg::Ptr(ids.ptr()), self.arg(0), Arg::I32(count as i32)];
        self.gpu.launch("feed_tokens", [count.div_ceil(256) as u32, 1, 1], [256, 1, 1], 0, &args)
    }

    /// Samples a token for every row of f32 logits `[B, V]`; returns at once.
    ///
    /// # Errors
    /// Logits that are not on a GPU, another number of rows than `args` or more than the buffer's, a device that is lost.
    pub fn sample(&self, logits: &Tensor, args: &[SampleArgs<'_>]) -> Result<PendingSamples> {
        let [rows, _] = logits.shape();
        super::super::ensure(
            args.len() == rows && rows <= self.rows,
            "sample",
            "one set of parameters for every row",
            &[logits],
        )?;
        if !matches!(logits.device(), crate::Device::Cuda(_)) {
            let right = logits.device().to_string();
            return Err(Error::DeviceMismatch { op: "sample", left: "cuda".to_owned(), right });
        }
        let processors = SampleArrays::needs_processors(args);
        let mut words = vec![];
        let allowed = SampleArrays::upload_allowed(self.gpu, args)?;
        SampleArrays::write(&mut words, args, allowed.as_ref(), rows, processors);
        let part = WordRange { buffer: Arc::new(self.gpu.upload(&words)?), offset: 0 };
        self.launch(logits, &SampleArrays::on_device(part, rows, processors))?;
        self.collect(args)
    }

    /// Launches sampling from f32 logits `[rows, V]`.
    pub(crate) fn launch(&self, logits: &Tensor, params: &SampleArrays) -> Result<()> {
        let [rows, vocab] = [params.rows(), logits.cols()];
        assert!(rows <= self.rows, "{rows} sampled rows in a buffer for {}", self.rows);
        let (z, gpu) = (logits.array(), self.gpu);
        let chunks = [vocab.div_ceil(CHUNK) as u32, rows as u32, 1];
        let partials = gpu.alloc(rows * chunks[0] as usize * PARTIAL_BYTES)?;
        let (stride, vocab_arg) = (Arg::U64(vocab as u64), Arg::I32(vocab as i32));
        let processors = params.processors();
        let adjusted = processors.map(|_| gpu.alloc(4 * rows * vocab)).transpose()?;
        if let (Some([changed, processors]), Some(adjusted)) = (processors, &adjusted) {
            let args = [z.arg(), Arg::from(adjusted), vocab_arg, changed, processors];
            gpu.launch("adjust_logits", chunks, [256, 1, 1], 0, &args)?;
        }
        let changed = processors.map_or(Arg::Ptr(0), |[changed, _]| changed);
        let adjusted = adjusted.as_ref().map_or(Arg::Ptr(0), Arg::from);
        let head = [z.arg(), stride, adjusted, stride, vocab_arg, params.active(), changed, params.temperature()];
        let args: Vec<Arg> = head.iter().copied().chain([Arg::from(&partials)]).collect();
        gpu.launch("sample_partials", chunks, [128, 1, 1], 0, &args)?;
        let keys = params.seed_request_position();
        let outputs = [0, 1, 2].map(|list| self.arg(list));
        let rest = params.truncation().into_iter().chain(keys).chain([Arg::from(&partials)]).chain(outputs);
        let args: Vec<Arg> = head.into_iter().chain(rest).collect();
        gpu.launch("sample_rows", [rows as u32, 1, 1], [512, 1, 1], 0, &args)?;
        if gpu.is_deterministic() {
            // Those of the losses' kernels, bit for bit.
            let args = [z.arg(), stride, vocab_arg, params.active(), params.temperature()];
            let args: Vec<Arg> = args.into_iter().chain(outputs).collect();
            gpu.launch("drawn_log_probs", [rows as u32, 1, 1], [512, 1, 1], 0, &args)?;
        }
        let Some([_, processors]) = processors else { return Ok(()) };
        let [tokens, log_probs, _] = outputs;
        let args = [tokens, params.active(), processors, Arg::I32(rows as i32)];
        gpu.launch("count_tokens", [rows.div_ceil(128) as u32, 1, 1], [128, 1, 1], 0, &args)?;
        let args = [z.arg(), vocab_arg, params.active(), processors, tokens, log_probs, self.arg(3)];
        gpu.launch("list_log_probs", [rows as u32, 1, 1], [512, 1, 1], 0, &args)
    }

    /// Address of one of the lists.
    fn arg(&self, list: usize) -> Arg {
        Arg::Ptr(self.buffer.ptr() + (4 * list * self.rows) as u64)
    }

    /// What the launched kernels sample, on its way to the host.
    pub(crate) fn collect(&self, args: &[SampleArgs<'_>]) -> Result<PendingSamples> {
        let listed: Vec<[usize; 2]> = match SampleArrays::needs_processors(args) {
            true => args.iter().map(|row| row.processors.map_or([0; 2], |processors| processors.listed())).collect(),
            false => vec![],
        };
        let count: usize = listed.iter().flatten().sum();
        let download = |first: usize, words: usize| self.gpu.download_async::<u32>(&self.buffer, 4 * first, words);
        Ok(PendingSamples {
            board: download(0, 3 * self.rows)?,
            pairs: (count > 0).then(|| download(3 * self.rows, 2 * count)).transpose()?,
            listed,
            rows: args.len(),
        })
    }
}

/// The word of a token that [`SampleBuffer::fill_in`] has not seen.
pub(crate) fn word(token: Token) -> u32 {
    match token {
        Token::Known(id) => id,
        Token::Sampled(row) => row | FED,
    }
}

/// What a step sampled, on its way to the host.
pub struct PendingSamples {
    board: Pending<u32>,
    /// Id and log-probability of all that is listed.
    pairs: Option<Pending<u32>>,
    /// How many tokens each row lists, the most likely and the given ones; empty where none does.
    listed: Vec<[usize; 2]>,
    rows: usize,
}

impl PendingSamples {
    /// Whether [`PendingSamples::wait`] would return at once.
    ///
    /// # Errors
    /// When the step failed.
    pub fn is_ready(&self) -> Result<bool> {
        self.pairs.as_ref().unwrap_or(&self.board).is_ready()
    }

    /// What each row gave.
    ///
    /// # Errors
    /// When the step failed.
    pub fn wait(self) -> Result<Vec<SampleResult>> {
        let board = self.board.wait()?;
        let pairs = self.pairs.map_or(Ok(vec![]), Pending::wait)?;
        let [tokens, log_probs, sampling] = [0, 1, 2].map(|list| &board[list * board.len() / 3..]);
        let mut pairs = pairs.as_chunks::<2>().0.iter().map(|&[id, value]| (id, f32::from_bits(value)));
        let result = |row: usize| {
            let [top, given] = self.listed.get(row).copied().unwrap_or_default();
            let top = pairs.by_ref().take(top).collect();
            let given = pairs.by_ref().take(given).map(|(_, value)| value).collect();
            match tokens[row].cast_signed() {
                -1 => SampleResult::NotFinite,
                -2 => SampleResult::Impossible,
                _ => SampleResult::Token {
                    token: tokens[row],
                    logprob: f32::from_bits(log_probs[row]),
                    sampling_logprob: f32::from_bits(sampling[row]),
                    top,
                    given,
                },
            }
        };
        Ok((0..self.rows).map(result).collect())
    }
}
