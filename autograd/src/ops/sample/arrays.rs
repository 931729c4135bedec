//! Sampling parameters as the words that kernels read.

use super::{LogitsProcessors, SampleArgs};
use crate::Result;
use crate::cuda::WordRange;
use crate::cuda::{Arg, Buffer, Gpu};

/// Parameters of rows on a GPU, within one buffer: where a row has processors those, `[rows]` of the kernels' struct, then
/// `[rows]` of each parameter.
pub(crate) struct SampleArrays {
    part: WordRange,
    rows: usize,
    processors: bool,
}

/// Words of a row's parameters: seed, request and position of eight bytes, then whether the row is active, top-k,
/// temperature, top-p, min-p, and whether its logits are changed.
const DRAW: usize = 12;

impl SampleArrays {
    /// Words that `rows` rows take.
    pub(crate) fn len(rows: usize, processors: bool) -> usize {
        rows * (DRAW + if processors { LogitsProcessors::WORDS } else { 0 })
    }

    /// Parameters that are, or will be, at `part`.
    pub(crate) fn on_device(part: WordRange, rows: usize, processors: bool) -> Self {
        Self { part, rows, processors }
    }

    /// Whether a row needs the kernels for processors.
    pub(crate) fn needs_processors(rows: &[SampleArgs<'_>]) -> bool {
        rows.iter().any(SampleArgs::has_processors)
    }

    /// The bits of all rows' allowed tokens, behind each other on the GPU; has to live until they are launched.
    pub(crate) fn upload_allowed(gpu: &'static Gpu, args: &[SampleArgs<'_>]) -> Result<Option<Buffer>> {
        let bits: Vec<u32> = args.iter().filter_map(|row| row.allowed).flatten().copied().collect();
        if bits.is_empty() { Ok(None) } else { gpu.upload(&bits).map(Some) }
    }

    /// Appends the words of `args` and, up to `rows`, of rows that are left out. What each row lists, the most likely
    /// and the given tokens, gets its places in order. `allowed` is what [`SampleArrays::upload_allowed`] made.
    pub(crate) fn write(
        words: &mut Vec<u32>,
        args: &[SampleArgs<'_>],
        allowed: Option<&Buffer>,
        rows: usize,
        processors: bool,
    ) {
        let first = words.len();
        words.resize(first + Self::len(rows, processors), 0);
        let mut words = &mut words[first..];
        if processors {
            let (structs, rest) = words.split_at_mut(rows * LogitsProcessors::WORDS);
            let (mut listed, mut bits) = (0, allowed.map_or(0, Buffer::ptr));
            for (row, to) in args.iter().zip(structs.chunks_exact_mut(LogitsProcessors::WORDS)) {
                let address = row.allowed.map_or(0, |_| bits);
                to.copy_from_slice(&LogitsProcessors::words(row.processors, row.masks, address, listed));
                listed += row.processors.map_or(0, |processors| processors.listed().iter().sum());
                bits += row.allowed.map_or(0, |bits| size_of_val(bits) as u64);
            }
            words = rest;
        }
        for (row, SampleArgs { params: d, processors, masks, allowed }) in args.iter().enumerate() {
            for (i, long) in [d.seed, d.request, d.position].into_iter().enumerate() {
                let at = 2 * (i * rows + row);
                (words[at], words[at + 1]) = (long as u32, (long >> 32) as u32);
            }
            let changed = allowed.is_some() || processors.is_some_and(|processors| processors.changes(*masks));
            let short = [1, d.top_k as u32, d.temperature.to_bits(), d.top_p.to_bits(), d.min_p.to_bits()];
            for (i, word) in short.into_iter().chain([u32::from(changed)]).enumerate() {
                words[(6 + i) * rows + row] = word;
            }
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Address of the parameter whose words begin at `word` times the number of rows.
    fn arg(&self, word: usize) -> Arg {
        let before = if self.processors { LogitsProcessors::WORDS } else { 0 };
        Arg::Ptr(self.part.ptr() + (4 * (before + word) * self.rows) as u64)
    }

    pub(super) fn seed_request_position(&self) -> [Arg; 3] {
        [0, 2, 4].map(|word| self.arg(word))
    }

    pub(super) fn active(&self) -> Arg {
        self.arg(6)
    }

    pub(super) fn temperature(&self) -> Arg {
        self.arg(8)
    }

    /// Top-k, top-p, min-p.
    pub(super) fn truncation(&self) -> [Arg; 3] {
        [7, 9, 10].map(|word| self.arg(word))
    }

    /// Which rows' logits are changed, and the processors.
    pub(super) fn processors(&self) -> Option<[Arg; 2]> {
        self.processors.then(|| [self.arg(11), Arg::Ptr(self.part.ptr())])
    }
}
