//! Questions about given tokens. All of them are one kind of work for the engine: sequences, positions, and what is asked there.

use super::{EngineRequest, RequestGuard, RuntimeHandle};
use crate::Result;
use crate::engine::score::{Asked, Output, Said, ScoreWork, Scored};
use crate::request::{
    Continuation, ContinuationRequest, EmbedRequest, GradeRequest, Graded, GradedRows, Grades, ModelId, Pooling, Score,
    ScoreRequest, Span, Wanted,
};
use crate::sink::Sink;

impl RuntimeHandle {
    /// Log-probabilities of given tokens.
    ///
    /// # Errors
    /// Tokens that the model cannot see at once, or ids that it does not have.
    pub fn score(&self, request: ScoreRequest) -> Result<Score> {
        let (reply, answer) = std::sync::mpsc::channel();
        let _ticket = self.score_into(request, reply.into())?;
        answer.recv().map_err(|_| self.exit_reason.error())?
    }

    /// [`RuntimeHandle::score`] whose answer `reply` takes, on the device thread.
    ///
    /// # Errors
    /// The device thread has ended.
    pub fn score_into(&self, request: ScoreRequest, reply: Sink<Result<Score>>) -> Result<RequestGuard> {
        let ScoreRequest { model, tokens, top } = request;
        let asked = Asked { top, ids: vec![], temperature: 1.0, ranks: false, greedy: false };
        let span = Span { positions: 1..tokens.len().max(1), tokens };
        self.ask_one(model, span, Output::LogProbs(asked), reply, |said| {
            let mut score = Score { logprobs: vec![None], top: vec![vec![]] };
            for row in said.rows {
                score.logprobs.push(Some(row.logprob));
                score.top.push(row.top);
            }
            score
        })
    }

    /// What a model says of positions of given sequences; `reply` takes it on the device thread.
    ///
    /// # Errors
    /// The device thread has ended. In the answer: positions that are not there, tokens that the model cannot see at once, or
    /// ids that it does not have.
    pub fn grade_into(&self, request: GradeRequest, reply: Sink<Result<Graded>>) -> Result<RequestGuard> {
        let GradeRequest { model, sequences, token_ids, wanted } = request;
        let width = match &wanted {
            Wanted::LogProbs { .. } => None,
            Wanted::Logits(_) => Some(token_ids.unwrap_or(self.config.vocab_size)),
            Wanted::Hidden { .. } => Some(self.config.hidden_size),
        };
        let (output, lists) = match wanted {
            Wanted::LogProbs { top: 0, ids, temperature, ranks: false } if ids.is_empty() => {
                (Output::Own(temperature), Lists::default())
            }
            Wanted::LogProbs { top, ids, temperature, ranks } => {
                let lists = Lists { ranks, top: top > 0, ids: !ids.is_empty() };
                (Output::LogProbs(Asked { top, ids, temperature, ranks, greedy: false }), lists)
            }
            Wanted::Logits(precision) => (Output::Logits(precision), Lists::default()),
            Wanted::Hidden { normalized, precision } => (Output::Hidden { normalized, precision }, Lists::default()),
        };
        self.ask_all(model, sequences, (output, token_ids), reply, move |Scored { version, sequences }| {
            let grades = match width {
                None => Grades::LogProbs(sequences.into_iter().map(|said| graded(said, lists)).collect()),
                Some(columns) => Grades::Rows { bytes: joined(sequences), columns },
            };
            Graded { version, grades }
        })
    }

    /// Log-probabilities of the end of a sequence: what comes before is shared with other requests through the prefix cache.
    /// `reply` takes the answer, on the device thread.
    ///
    /// # Errors
    /// The device thread has ended. In the answer: tokens that the model cannot see at once, or ids that it does not have.
    pub fn score_continuation_into(
        &self,
        request: ContinuationRequest,
        reply: Sink<Result<Continuation>>,
    ) -> Result<RequestGuard> {
        let ContinuationRequest { model, tokens, from } = request;
        let asked = Asked { top: 0, ids: vec![], temperature: 1.0, ranks: false, greedy: true };
        let span = Span { positions: from..tokens.len(), tokens };
        self.ask_one(model, span, Output::LogProbs(asked), reply, |said| {
            let (logprobs, greedy) = said.rows.iter().map(|row| (row.logprob, row.greedy)).unzip();
            Continuation { logprobs, greedy, cached_tokens: said.cached_tokens }
        })
    }

    /// One vector for a text, on the host, of the model's hidden width; `reply` takes it on the device thread.
    ///
    /// # Errors
    /// The device thread has ended. In the answer: tokens that the model cannot see at once, or ids that it does not have.
    pub fn embed_into(&self, request: EmbedRequest, reply: Sink<Result<Vec<f32>>>) -> Result<RequestGuard> {
        let EmbedRequest { model, tokens, pooling } = request;
        let len = tokens.len();
        let (first, count) = match pooling {
            Pooling::Last => (len, 1.0),
            Pooling::Mean => (1, len as f64),
        };
        let span = Span { tokens, positions: first..len + 1 };
        self.ask_one(model, span, Output::Pooled(pooling), reply, move |said| {
            said.vector.into_iter().map(|sum| (sum / count) as f32).collect()
        })
    }

    /// Asks about one sequence.
    fn ask_one<T: Send + 'static>(
        &self,
        model: ModelId,
        span: Span,
        output: Output,
        reply: Sink<Result<T>>,
        answer: impl Fn(Said) -> T + Send + Sync + 'static,
    ) -> Result<RequestGuard> {
        self.ask_all(model, vec![span], (output, None), reply, move |scored| {
            answer(scored.sequences.into_iter().next().unwrap_or_default())
        })
    }

    fn ask_all<T: Send + 'static>(
        &self,
        model: ModelId,
        sequences: Vec<Span>,
        (output, token_ids): (Output, Option<usize>),
        reply: Sink<Result<T>>,
        answer: impl Fn(Scored) -> T + Send + Sync + 'static,
    ) -> Result<RequestGuard> {
        let reply = Sink::new(move |scored: Result<Scored>| reply.send(scored.map(&answer)));
        self.submit_as(model, |id| EngineRequest::Score(id, ScoreWork { model, sequences, output, token_ids, reply }))
    }
}

/// What is listed besides log-probabilities: what was asked for.
#[derive(Clone, Copy, Default)]
struct Lists {
    ranks: bool,
    top: bool,
    ids: bool,
}

/// The lists of a sequence.
fn graded(said: Said, lists: Lists) -> GradedRows {
    let mut graded = GradedRows::default();
    for row in said.rows {
        graded.logprobs.push(row.logprob);
        if lists.ranks {
            graded.ranks.push(row.rank);
        }
        if lists.top {
            graded.top.push(row.top);
            graded.tail_logprobs.push(row.tail);
        }
        if lists.ids {
            graded.ids.push(row.ids);
        }
    }
    graded
}

/// The rows of all sequences behind each other.
fn joined(mut sequences: Vec<Said>) -> Vec<u8> {
    if let [one] = &mut sequences[..] {
        return std::mem::take(&mut one.bytes);
    }
    sequences.iter().flat_map(|said| &said.bytes).copied().collect()
}
