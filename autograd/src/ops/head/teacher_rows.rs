//! Teachers that are elsewhere: what they say lies in the host's memory, a row for each row of the student's.

use rayon::prelude::*;

use super::{Head, LogitChunk};
use crate::cpu::rows::{normalizer, scale_in_place};
use crate::cuda::{Arg, to_bf16};
use crate::ops::log_prob::log_prob;
use crate::{Error, Result, Tensor};

/// Bytes of rows that go to a GPU at a time.
const UPLOAD_BYTES: usize = 16 << 20;

/// How a number of a given row is written; little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The upper half of an f32.
    Bf16,
    /// As computed on a CPU.
    F32,
}

impl Precision {
    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Its name in headers and recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// The precision of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Bf16, Self::F32].into_iter().find(|precision| precision.name() == name)
    }

    /// Appends numbers; bf16 rounds to nearest, ties to even.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::Bf16 => out.extend(to_bf16(values).into_iter().flat_map(u16::to_le_bytes)),
            Self::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
    }

    /// Reads as many numbers as `out` has room for.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Bf16 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                }
            }
            Self::F32 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
    }
}

/// What a teacher elsewhere says of N positions.
#[derive(Debug, Clone, PartialEq)]
pub enum TeacherRows {
    /// All its logits.
    Logits(LogitRows),
    /// Its most likely tokens.
    Top(TopRows),
}

/// Logits `[N, V]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitRows {
    /// The rows, one after another.
    pub bytes: Vec<u8>,
    /// How they are written.
    pub precision: Precision,
    /// V.
    pub vocab: usize,
}

/// The k most likely tokens of each of N rows, and what all others have together.
///
/// A divergence from such a teacher is that of two distributions over k tokens and one bucket, which is at most the
/// whole one. It is computed as the divergence from the teacher whose bucket has the student's own proportions,
/// `p_v = p_tail q_v / q_tail`: that has the same value, and, taken as a constant, the same gradient. So every
/// divergence takes such rows, and nothing has to be kept from zero.
#[derive(Debug, Clone, PartialEq)]
pub struct TopRows {
    /// k.
    pub k: usize,
    /// Token ids `[N, k]`, those of a row distinct, the likeliest first.
    pub ids: Vec<u32>,
    /// Their log-probabilities `[N, k]`.
    pub logprobs: Vec<f32>,
    /// `ln` of the mass of all other tokens, N; not looked at where there are none.
    pub tail_logprobs: Vec<f32>,
    /// The temperature of the distribution.
    pub temperature: f64,
}

impl TeacherRows {
    /// N, when everything is there for whole rows.
    #[must_use]
    pub fn rows(&self) -> Option<usize> {
        match self {
            Self::Logits(rows) => {
                let bytes = rows.vocab * rows.precision.bytes();
                (bytes > 0 && rows.bytes.len().is_multiple_of(bytes)).then(|| rows.bytes.len() / bytes)
            }
            Self::Top(top) => {
                let n = top.tail_logprobs.len();
                (top.k > 0 && top.ids.len() == n * top.k && top.logprobs.len() == n * top.k).then_some(n)
            }
        }
    }

    /// `ln softmax(z / temperature)[targets[t]]` of every row of logits, nats; `None` where only some tokens are known.
    ///
    /// # Errors
    /// A number of targets that is not the number of rows, a target outside the vocabulary.
    pub fn log_probs(&self, targets: &[u32], temperature: f64) -> Result<Option<Vec<f32>>> {
        let Self::Logits(rows) = self else { return Ok(None) };
        self.check("log_probs", targets.len(), rows.vocab)?;
        super::check_targets("log_probs", targets, rows.vocab)?;
        let one = |(t, &target): (usize, &u32)| {
            let mut z = vec![0.0; rows.vocab];
            rows.decode(t, &mut z);
            log_prob(&mut z, target, temperature as f32)
        };
        Ok(Some(targets.par_iter().enumerate().map(one).collect()))
    }

    /// Whether they fit `n` rows of a student with `vocab` logits.
    pub(super) fn check(&self, op: &'static str, n: usize, vocab: usize) -> Result<()> {
        let refuse = |what, value: usize, expected| Error::Domain { op, what, value: value as f64, expected };
        if self.rows() != Some(n) {
            return Err(refuse("number of given rows", self.rows().unwrap_or(0), "the number of the student's rows"));
        }
        match self {
            Self::Logits(rows) if rows.vocab != vocab => {
                Err(refuse("vocabulary of the given rows", rows.vocab, "the student's"))
            }
            Self::Logits(_) => Ok(()),
            Self::Top(top) if top.k > vocab => Err(refuse("tokens of a given row", top.k, "at most the vocabulary")),
            Self::Top(top) => super::check_targets(op, &top.ids, vocab),
        }
    }

    /// The likeliest token of each row, where the rows say so.
    pub(in crate::ops) fn best(&self) -> Option<Vec<u32>> {
        match self {
            Self::Logits(_) => None,
            Self::Top(top) => Some(top.ids.iter().step_by(top.k).copied().collect()),
        }
    }

    /// The temperature that the rows hold for; `None` for any.
    pub(in crate::ops) fn temperature(&self) -> Option<f64> {
        match self {
            Self::Logits(_) => None,
            Self::Top(top) => Some(top.temperature),
        }
    }

    /// Logits of rows `first..` into `teacher`, for a student with the logits `student`.
    pub(super) fn fill(&self, first: usize, vocab: usize, student: &[f32], teacher: &mut [f32]) {
        let rows = teacher.par_chunks_mut(vocab).zip(student.par_chunks(vocab)).enumerate();
        rows.for_each(|(i, (teacher, student))| match self {
            Self::Logits(rows) => rows.decode(first + i, teacher),
            Self::Top(top) => top.expand(first + i, student, teacher),
        });
    }

    /// All rows for `student` `[N, V]`, which this does not follow.
    pub(super) fn reference(&self, student: &burn::Tensor<2>) -> burn::Tensor<2> {
        let [n, vocab] = student.dims();
        let z = crate::reference::download(student.clone().detach().without_autodiff());
        let mut teacher = vec![0.0; n * vocab];
        self.fill(0, vocab, &z, &mut teacher);
        crate::reference::upload(teacher, [n, vocab])
    }

    /// [`TeacherRows::fill`] on a GPU: the chunk's teacher's logits, which lie `stride` apart like the student's.
    pub(super) fn place(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        match self {
            Self::Logits(rows) => rows.place(chunk),
            Self::Top(top) => top.place(chunk),
        }
    }
}

impl LogitRows {
    /// The `count` rows from `first` on.
    fn part(&self, first: usize, count: usize) -> &[u8] {
        let bytes = self.vocab * self.precision.bytes();
        &self.bytes[first * bytes..(first + count) * bytes]
    }

    fn decode(&self, row: usize, out: &mut [f32]) {
        self.precision.decode(self.part(row, 1), out);
    }

    fn place(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        let most = (UPLOAD_BYTES / (self.vocab * self.precision.bytes())).max(1);
        let kernel = match self.precision {
            Precision::Bf16 => "place_logits_bf16",
            Precision::F32 => "place_logits_f32",
        };
        for first in (chunk.rows.start..chunk.rows.end).step_by(most) {
            let count = most.min(chunk.rows.end - first);
            let bytes = chunk.gpu().upload(self.part(first, count))?;
            let args = [Arg::from(&bytes), Arg::I32(self.vocab as i32)];
            chunk.launch_rows(kernel, first - chunk.rows.start, count, &args)?;
        }
        Ok(())
    }
}

impl TopRows {
    /// ln of the teacher's probabilities, times the temperature, up to a constant: its logits.
    fn expand(&self, row: usize, student: &[f32], teacher: &mut [f32]) {
        let (temperature, listed) = (self.temperature as f32, row * self.k..(row + 1) * self.k);
        let ids = &self.ids[listed.clone()];
        if self.k < student.len() {
            // The student's own shares of the bucket: everything but the listed tokens.
            teacher.copy_from_slice(student);
            ids.iter().for_each(|&id| teacher[id as usize] = f32::NEG_INFINITY);
            if temperature != 1.0 {
                scale_in_place(teacher, 1.0 / temperature);
            }
            let shift = temperature * (self.tail_logprobs[row] - normalizer(teacher).log_sum);
            teacher.iter_mut().zip(student).for_each(|(t, s)| *t = s + shift);
        }
        for (&id, logprob) in ids.iter().zip(&self.logprobs[listed]) {
            teacher[id as usize] = temperature * logprob;
        }
    }

    fn place(&self, chunk: &LogitChunk<'_>) -> Result<()> {
        let (gpu, rows) = (chunk.gpu(), chunk.rows.start * self.k..chunk.rows.end * self.k);
        let ids = gpu.upload(&self.ids[rows.clone()])?;
        let logprobs = gpu.upload(&self.logprobs[rows])?;
        let tails = chunk.upload(&self.tail_logprobs)?;
        let lists = [Arg::from(&ids), Arg::from(&logprobs), Arg::from(&tails), Arg::I32(self.k as i32)];
        let args: Vec<Arg> = chunk.logits().into_iter().chain(lists).collect();
        chunk.launch("expand_top_rows", &[&args[..], &[Arg::F32(self.temperature as f32)]].concat())
    }
}

/// What a student is compared with.
#[derive(Clone, Copy)]
pub enum Teacher<'a> {
    /// Final hidden states and output head, on the student's device.
    Hidden(Head<'a>),
    /// Rows that came from elsewhere.
    Given(&'a std::sync::Arc<TeacherRows>),
}

impl<'a> From<[&'a Tensor; 2]> for Teacher<'a> {
    fn from(pair: [&'a Tensor; 2]) -> Self {
        Self::Hidden(pair.into())
    }
}
