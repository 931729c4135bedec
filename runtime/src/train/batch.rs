//! One micro-batch through teacher and student.

use std::time::Instant;

use autograd::ops::{self, Head, Sequences};
use autograd::{Gradients, Index, Tape, Tensor};

use super::{LossBatch, Needs, Teacher, TeacherSource, TrainError};
use super::{TrainReport, TrainRequest, TrainSequence};
use crate::model::{Decoder, LoadedModel, ModelParams};
use crate::{Error, Result};

/// Tensors whose gradient is wanted.
pub(super) enum Watch<'a> {
    /// None: evaluation.
    Nothing,
    /// These.
    Weights {
        /// The tensors.
        weights: &'a [Tensor],
        /// Their gradients so far.
        sums: Gradients,
    },
}

impl Watch<'_> {
    fn tape(&self) -> Tape {
        match self {
            Self::Nothing => Tape::off(),
            Self::Weights { weights, .. } => {
                let mut tape = Tape::recording();
                weights.iter().for_each(|w| tape.require_grad(w));
                tape
            }
        }
    }

    /// The gradients as they came.
    fn sums(self) -> Option<Gradients> {
        match self {
            Self::Nothing => None,
            Self::Weights { sums, .. } => Some(sums),
        }
    }
}

/// Tokens to run and the rows whose next token is scored.
struct PackedBatch {
    ids: Index,
    sequences: Sequences,
    rows: Index,
}

/// Loss, statistics and, when something is watched, gradients.
pub(super) fn run(
    request: &TrainRequest,
    student: &LoadedModel,
    teacher: Option<&LoadedModel>,
    pass: &ModelParams,
    watch: Watch<'_>,
) -> Result<(TrainReport, Option<Gradients>)> {
    check(request, student)?;
    let mut report = TrainReport::default();
    let scored = scored_tokens(&request.sequences, request.normalizer);
    check_given(request, scored.targets.len())?;
    if scored.targets.is_empty() {
        return Ok((report, watch.sums()));
    }
    let started = Instant::now();
    let resident = match (request.loss.needs(), &request.teacher) {
        (Needs::Nothing, _) | (_, Some(TeacherSource::Remote(_))) => None,
        (_, Some(TeacherSource::Resident(_)) | None) => {
            let teacher = teacher.ok_or(TrainError::NoTeacher)?;
            check_teacher(request, teacher)?;
            let ids = [student.config().token_ids, teacher.config().token_ids];
            if ids[0] != ids[1] {
                return Err(Error::Vocabulary { student: ids[0], teacher: ids[1] });
            }
            let packed = pack(&request.sequences, |s| s.teacher_prompt.as_deref());
            let hidden = rows_of(teacher.decoder(), &mut Tape::off(), teacher.serving(), &packed)?;
            // The seconds of a phase are those of the device, not of handing it the work; the loss is read anyway.
            teacher.device().synchronize()?;
            Some((hidden, teacher.serving().weights.output_head()))
        }
    };
    let given = request.teacher.as_ref().and_then(TeacherSource::remote).map(Teacher::Given);
    let teacher = resident
        .as_ref()
        .map(|(hidden, head)| Teacher::Resident(Head { hidden, weight: head, ids: student.config().token_ids }))
        .or(given);
    report.teacher_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut tape = watch.tape();
    let hidden = rows_of(student.decoder(), &mut tape, pass, &pack(&request.sequences, |_| None))?;
    let batch = LossBatch {
        student_hidden: &hidden,
        student_head: pass.weights.output_head(),
        token_ids: student.config().token_ids,
        teacher,
        targets: &scored.targets,
        sampled_logprobs: &scored.sampled_logprobs,
        raw_logprobs: &scored.raw_logprobs,
        weights: &scored.weights,
    };
    let value = request.loss.compute(&mut tape, &batch)?;
    report.loss = f64::from(value.loss.read()?[0]);
    report.tokens = scored.targets.len() as f64;
    for (name, rows) in value.rows {
        report.sums.insert(name, rows.iter().map(|&v| f64::from(v)).sum());
        report.maxima.insert(name, rows.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max));
    }
    report.forward_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let gradients = match watch {
        Watch::Nothing => None,
        Watch::Weights { sums, .. } => {
            report.activation_bytes = tape.kept_bytes() as u64;
            let one = Tensor::scalar(student.device(), 1.0)?;
            let gradients = tape.backward_onto(&value.loss, one, sums)?;
            student.device().synchronize()?;
            Some(gradients)
        }
    };
    report.backward_seconds = started.elapsed().as_secs_f64();
    Ok((report, gradients))
}

/// Hidden states of the rows that predict a scored token.
fn rows_of(decoder: &Decoder, tape: &mut Tape, pass: &ModelParams, packed: &PackedBatch) -> Result<Tensor> {
    let hidden = decoder.forward_packed(tape, pass, &packed.ids, &packed.sequences)?;
    Ok(ops::select_rows(tape, &hidden, &packed.rows)?)
}

/// All sequences without their last token, which predicts nothing. `prompt` may replace a sequence's prompt.
fn pack<'a>(sequences: &'a [TrainSequence], prompt: impl Fn(&'a TrainSequence) -> Option<&'a [u32]>) -> PackedBatch {
    let (mut ids, mut lengths, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for s in sequences {
        let first = ids.len();
        let (own_prompt, completion) = s.tokens.split_at(s.prompt_len);
        let prompt = prompt(s).unwrap_or(own_prompt);
        ids.extend_from_slice(prompt);
        ids.extend_from_slice(&completion[..completion.len() - 1]);
        lengths.push(ids.len() - first);
        let predicting = first + prompt.len() - 1;
        rows.extend(weighted(s).map(|i| (predicting + i) as u32));
    }
    PackedBatch { ids: ids.into(), sequences: Sequences::from_lengths(&lengths), rows: rows.into() }
}

/// Indices of completion tokens that have a weight.
fn weighted(s: &TrainSequence) -> impl Iterator<Item = usize> + '_ {
    (0..s.weights.len()).filter(|&i| s.weights[i] != 0.0)
}

#[derive(Default)]
struct Scored {
    targets: Vec<u32>,
    sampled_logprobs: Vec<f32>,
    raw_logprobs: Vec<f32>,
    weights: Vec<f32>,
}

/// What is known of the scored tokens, in row order. Log-probabilities are there for all sequences or for none.
fn scored_tokens(sequences: &[TrainSequence], normalizer: f64) -> Scored {
    let mut scored = Scored::default();
    let sampled = sequences.iter().all(|s| !s.sampled_logprobs.is_empty());
    for s in sequences {
        for i in weighted(s) {
            scored.targets.push(s.tokens[s.prompt_len + i]);
            scored.weights.push((f64::from(s.weights[i]) / normalizer) as f32);
            if sampled {
                scored.sampled_logprobs.push(s.sampled_logprobs[i]);
                scored.raw_logprobs.push(s.raw_logprobs[i]);
            }
        }
    }
    scored
}

/// Refuses sequences that do not hang together or do not fit the student.
fn check(request: &TrainRequest, student: &LoadedModel) -> Result<()> {
    let config = student.config();
    if !(request.normalizer > 0.0 && request.normalizer.is_finite()) {
        return Err(TrainError::Normalizer { normalizer: request.normalizer }.into());
    }
    for (sequence, s) in request.sequences.iter().enumerate() {
        let completion = s.tokens.len().saturating_sub(s.prompt_len);
        if s.prompt_len == 0 || completion == 0 {
            return Err(TrainError::EmptyPart { sequence, prompt: s.prompt_len, completion }.into());
        }
        let per_token = [&s.sampled_logprobs, &s.raw_logprobs];
        if s.weights.len() != completion || per_token.iter().any(|v| !v.is_empty() && v.len() != completion) {
            return Err(TrainError::Lengths { sequence, completion }.into());
        }
        if s.sampled_logprobs.is_empty() != s.raw_logprobs.is_empty() {
            return Err(TrainError::SampledLogprobs { sequence }.into());
        }
        let (tokens, max) = (s.tokens.len(), config.max_position_embeddings);
        if tokens > max {
            return Err(TrainError::TooLong { sequence, tokens, max }.into());
        }
        let vocab_size = config.token_ids;
        if let Some(&id) = s.tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(TrainError::TokenId { sequence, id, vocab_size }.into());
        }
    }
    Ok(())
}

/// A teacher elsewhere speaks of the tokens that have a weight.
fn check_given(request: &TrainRequest, scored: usize) -> Result<()> {
    let Some(given) = request.teacher.as_ref().and_then(TeacherSource::remote) else { return Ok(()) };
    match given.count() {
        Some(got) if got == scored => Ok(()),
        Some(got) => Err(TrainError::TeacherTokens { got, want: scored }.into()),
        None => Err(TrainError::TeacherLists { want: scored }.into()),
    }
}

fn check_teacher(request: &TrainRequest, teacher: &LoadedModel) -> Result<()> {
    let max = teacher.config().max_position_embeddings;
    for (sequence, s) in request.sequences.iter().enumerate() {
        let prompt = s.teacher_prompt.as_ref().map_or(s.prompt_len, Vec::len);
        let total = prompt + s.tokens.len() - s.prompt_len;
        if prompt == 0 || total > max {
            return Err(TrainError::TeacherPrompt { sequence, prompt, total, max }.into());
        }
    }
    Ok(())
}
