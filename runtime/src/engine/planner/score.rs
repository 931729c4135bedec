//! Scores of given sequences: log-probabilities, logits, hidden states, one vector.
//!
//! The scheduler computes the sequences like prompts, in the steps of the generations and under the same token budget; a step
//! with scored rows has their results when it is launched. A request gives the scheduler its sequences a few at a
//! time, in turn with the other requests, and is answered when all are done. All its results are of one version of the weights:
//! new weights wait for the requests that have begun ([`BatchPlanner::hold_scores`]).

use std::collections::BTreeMap;

use super::{BatchPlanner, check_ids};
use crate::config::ModelConfig;
use crate::engine::executor::TaskScores;
use crate::engine::order::{ScoreRow, ScoreTask};
use crate::engine::request::Reply;
use crate::ids::{ModelId, RequestId};
use crate::request::{Pooling, RequestError, ScoreOutput, ScoreRequest, ScoreResponse, ScoreSequence, SequenceScores};
use crate::scheduler::{ScheduledSeq, SchedulerOutput, SeqRequest};
use crate::{Error, Result};

/// Requests are begun while those that have begun have fewer tokens left than this many steps take.
const BEGUN_STEPS: usize = 16;

/// The score requests of a model.
#[derive(Default)]
pub(super) struct ScoreQueue {
    requests: BTreeMap<RequestId, PendingScore>,
    /// Sequences in the scheduler, under ids of their own: their request and their place in it.
    members: BTreeMap<RequestId, (RequestId, usize)>,
    next_member: u64,
    /// No request of this model is begun: its weights are about to change.
    pub(super) held: Option<ModelId>,
}

/// One request.
struct PendingScore {
    model: ModelId,
    output: ScoreOutput,
    token_ids: Option<usize>,
    sequences: Vec<PendingSequence>,
    /// Whether the scheduler has been given one.
    begun: bool,
    /// The first that it has not been given.
    next: usize,
    /// Those that the scheduler has.
    members: usize,
    /// Tokens of those that are not done.
    left: usize,
    reply: Reply<ScoreResponse>,
}

/// One sequence with the results so far.
struct PendingSequence {
    sequence: ScoreSequence,
    scores: SequenceScores,
    /// Positions that have results.
    done: usize,
    /// Whether a step has had tokens of it.
    seen: bool,
}

impl PendingSequence {
    fn new(sequence: ScoreSequence) -> Self {
        Self { sequence, scores: SequenceScores::default(), done: 0, seen: false }
    }

    /// The scored rows of a step that have no results yet; `first`: the sequence's first row.
    fn next_rows(&mut self, seq: &ScheduledSeq, first: usize) -> Vec<ScoreRow> {
        if !std::mem::replace(&mut self.seen, true) {
            self.scores.cached_tokens = seq.tokens.start;
        }
        // A sequence that was preempted is computed again.
        let next = self.sequence.positions.start + self.done - 1;
        let rows = next.max(seq.tokens.start)..seq.tokens.end.max(next);
        self.done += rows.len();
        let tokens = &self.sequence.tokens;
        rows.map(|at| ScoreRow { row: (first + at - seq.tokens.start) as u32, target: tokens.get(at + 1).copied() })
            .collect()
    }
}

/// Where the results of a task go.
pub(super) struct ScorePlaces {
    /// The request.
    id: RequestId,
    /// The sequence of each row.
    sequences: Vec<usize>,
}

/// Adds a hidden state to a vector.
fn pool(pooling: Pooling, vector: &mut Vec<f64>, values: &[f32]) {
    vector.resize(values.len(), 0.0);
    for (sum, &value) in vector.iter_mut().zip(values) {
        match pooling {
            Pooling::Last => *sum = f64::from(value),
            Pooling::Mean => *sum += f64::from(value),
        }
    }
}

impl ScoreQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether a request of this model is not done.
    pub(super) fn has_model(&self, model: ModelId) -> bool {
        self.requests.values().any(|scoring| scoring.model == model)
    }

    /// Whether a planned sequence is scored.
    pub(super) fn has(&self, member: RequestId) -> bool {
        self.members.contains_key(&member)
    }

    fn begun(&self) -> impl Iterator<Item = &PendingScore> {
        self.requests.values().filter(|scoring| scoring.begun)
    }

    /// Whose sequence the scheduler gets next: of the requests that may have more in it, the one that has fewest.
    fn next_to_feed(&self, tokens: usize) -> Option<RequestId> {
        let begins = self.begun().map(|scoring| scoring.left).sum::<usize>() < tokens;
        let may_begin = |scoring: &PendingScore| !scoring.begun && self.held != Some(scoring.model);
        let new = self.requests.iter().find(|(_, scoring)| may_begin(scoring)).filter(|_| begins);
        let has_more = |scoring: &PendingScore| scoring.begun && scoring.next < scoring.sequences.len();
        let candidates = self.requests.iter().filter(|(_, scoring)| has_more(scoring)).chain(new);
        candidates.min_by_key(|(id, scoring)| (scoring.members, **id)).map(|(&id, _)| id)
    }
}

impl BatchPlanner {
    /// Queues a request, or answers why it is refused.
    pub(in crate::engine) fn submit_scoring(
        &mut self,
        id: RequestId,
        request: ScoreRequest,
        reply: Reply<ScoreResponse>,
    ) {
        if let Err(e) = check(&request, self.config()) {
            // The receiver may have been dropped; the same below.
            return drop(reply.send(Err(e.into())));
        }
        let ScoreRequest { model, sequences, output, token_ids } = request;
        let left = sequences.iter().map(|sequence| sequence.inputs().len()).sum();
        let sequences = sequences.into_iter().map(PendingSequence::new).collect();
        let mut pending =
            PendingScore { model, output, token_ids, sequences, begun: false, next: 0, members: 0, left, reply };
        pending.skip_empty();
        if left == 0 {
            let response = pending.response(self.version(model), self.config());
            return drop(pending.reply.send(response));
        }
        self.scores.requests.insert(id, pending);
    }

    /// Lets no request of a model begin while one of its requests has begun and is not done; whether there is such.
    pub(in crate::engine) fn hold_scores(&mut self, model: ModelId) -> bool {
        let begun = self.scores.begun().any(|scoring| scoring.model == model);
        self.scores.held = begun.then_some(model);
        begun
    }

    /// Gives the scheduler the sequences that it will have tokens for soon.
    pub(super) fn feed_scores(&mut self) {
        let (most, tokens) = {
            let config = self.scheduler.config();
            (2 * config.max_running, BEGUN_STEPS * config.token_budget)
        };
        while self.scores.members.len() < most && self.scheduler.has_room() {
            let Some(id) = self.scores.next_to_feed(tokens) else { return };
            if let Err(e) = self.feed(id) {
                self.fail_scoring(id, &e);
            }
        }
    }

    fn feed(&mut self, id: RequestId) -> Result<()> {
        let key = self.cache_key(self.scores.requests[&id].model);
        let scores = &mut self.scores;
        let scoring = scores.requests.get_mut(&id).expect("it was just found");
        // Handles count from 0; these are never theirs.
        let member = RequestId((1 << 63) | scores.next_member);
        scores.next_member += 1;
        let place = scoring.next;
        let sequence = &scoring.sequences[place].sequence;
        self.scheduler.submit(SeqRequest {
            id: member,
            key,
            prompt: sequence.inputs().into(),
            max_new_tokens: 0,
            scored_from: Some(sequence.positions.start - 1),
            ahead: false,
        })?;
        scores.members.insert(member, (id, place));
        (scoring.begun, scoring.members, scoring.next) = (true, scoring.members + 1, place + 1);
        scoring.skip_empty();
        Ok(())
    }

    /// The sequences whose last tokens `plan` computes.
    pub(super) fn completes(&self, plan: &SchedulerOutput) -> Vec<RequestId> {
        let length =
            |(id, place): &(RequestId, usize)| self.scores.requests[id].sequences[*place].sequence.inputs().len();
        let ends = |seq: &&ScheduledSeq| {
            self.scores.members.get(&seq.id).is_some_and(|member| seq.tokens.end == length(member))
        };
        plan.seqs.iter().filter(ends).map(|seq| seq.id).collect()
    }

    /// What a step has to score: the scored rows that have no results yet, by request; and for each task the places of the
    /// results, request and sequence, row by row.
    pub(super) fn score_tasks(&mut self, plan: &SchedulerOutput) -> (Vec<ScoreTask>, Vec<ScorePlaces>) {
        let mut all: BTreeMap<RequestId, (ScoreTask, ScorePlaces)> = BTreeMap::new();
        for group in plan.groups() {
            let mut first = 0;
            for seq in group.seqs {
                if let Some(&(id, number)) = self.scores.members.get(&seq.id) {
                    let scoring = self.scores.requests.get_mut(&id).expect("a member's request is there");
                    let rows = scoring.sequences[number].next_rows(seq, first);
                    let (model, token_ids) = (group.model, scoring.token_ids);
                    let task = || ScoreTask { model, output: scoring.output.clone(), token_ids, rows: vec![] };
                    let (task, places) =
                        all.entry(id).or_insert_with(|| (task(), ScorePlaces { id, sequences: vec![] }));
                    places.sequences.extend(rows.iter().map(|_| number));
                    task.rows.extend(rows);
                }
                first += seq.tokens.len();
            }
        }
        all.into_values().filter(|(task, _)| !task.rows.is_empty()).unzip()
    }

    /// Adds the results of a step.
    pub(super) fn add_scores(&mut self, places: Vec<ScorePlaces>, results: Vec<TaskScores>) {
        for (ScorePlaces { id, sequences }, TaskScores { rows, hidden }) in places.into_iter().zip(results) {
            // It may have been cancelled meanwhile.
            let Some(scoring) = self.scores.requests.get_mut(&id) else { continue };
            for (&sequence, scores) in sequences.iter().zip(rows) {
                scoring.sequences[sequence].scores.append(scores);
            }
            let ScoreOutput::Pooled(pooling) = scoring.output else { continue };
            for (&sequence, values) in sequences.iter().zip(hidden.chunks(self.config.hidden_size)) {
                pool(pooling, &mut scoring.sequences[sequence].scores.vector, values);
            }
        }
    }

    /// Ends sequences whose tokens are all computed, and answers the requests that are done with them.
    pub(super) fn answer_scored(&mut self, members: &[RequestId]) {
        for member in members {
            let Some((id, place)) = self.scores.members.remove(member) else { continue };
            self.scheduler.finish(*member);
            let scoring = self.scores.requests.get_mut(&id).expect("a member's request is there");
            scoring.members -= 1;
            scoring.left -= scoring.sequences[place].sequence.inputs().len();
            if scoring.left == 0 {
                let mut scoring = self.scores.requests.remove(&id).expect("it is there");
                let response = scoring.response(self.version(scoring.model), self.config());
                drop(scoring.reply.send(response));
            }
        }
    }

    /// Ends a request whose receiver was dropped.
    pub(super) fn cancel_scoring(&mut self, id: RequestId) {
        if self.scores.requests.remove(&id).is_some() {
            let scheduler = &mut self.scheduler;
            self.scores.members.retain(|&member, (request, _)| {
                let own = *request == id;
                if own {
                    scheduler.cancel(member);
                }
                !own
            });
        }
    }

    /// Takes all sequences of a model back from the scheduler: what was begun will begin again.
    pub(in crate::engine) fn restart_scores(&mut self, model: ModelId) {
        let ScoreQueue { requests, members, .. } = &mut self.scores;
        let scheduler = &mut self.scheduler;
        members.retain(|&member, (request, _)| {
            let stays = requests[request].model != model;
            if !stays {
                scheduler.cancel(member);
            }
            stays
        });
        let restarts = requests.values_mut().filter(|scoring| scoring.begun && scoring.model == model);
        restarts.for_each(PendingScore::restart);
    }

    /// Ends a request with an error.
    pub(super) fn fail_scoring(&mut self, id: RequestId, error: &Error) {
        if let Some(scoring) = self.scores.requests.get(&id) {
            drop(scoring.reply.send(Err(error.duplicate())));
            self.cancel_scoring(id);
        }
    }

    /// Ends the requests of these sequences with an error.
    pub(super) fn fail_scored(&mut self, members: &[RequestId], error: &Error) {
        for member in members {
            if let Some(&(id, _)) = self.scores.members.get(member) {
                self.fail_scoring(id, error);
            }
        }
    }

    /// Ends every request with an error.
    pub(super) fn fail_scores(&mut self, error: &Error) {
        for id in self.scores.requests.keys().copied().collect::<Vec<_>>() {
            self.fail_scoring(id, error);
        }
    }
}

impl PendingScore {
    fn restart(&mut self) {
        for pending in &mut self.sequences {
            (pending.scores, pending.done, pending.seen) = (SequenceScores::default(), 0, false);
        }
        self.left = self.sequences.iter().map(|pending| pending.sequence.inputs().len()).sum();
        (self.begun, self.next, self.members) = (false, 0, 0);
        self.skip_empty();
    }

    /// Passes over sequences without positions.
    fn skip_empty(&mut self) {
        let empty = |pending: &&PendingSequence| pending.sequence.inputs().is_empty();
        self.next += self.sequences[self.next..].iter().take_while(empty).count();
    }

    fn response(&mut self, version: u64, config: &ModelConfig) -> Result<ScoreResponse> {
        for (number, PendingSequence { sequence, scores, .. }) in self.sequences.iter_mut().enumerate() {
            if let Some(place) = scores.logprobs.iter().position(|logprob| logprob.is_nan()) {
                let position = sequence.positions.start + place - 1;
                return Err(RequestError::NonFiniteLogits { sequence: number, position }.into());
            }
            if self.output == ScoreOutput::Pooled(Pooling::Mean) {
                let count = sequence.positions.len() as f64;
                scores.vector.iter_mut().for_each(|sum| *sum /= count);
            }
        }
        let columns = match self.output {
            ScoreOutput::Logits(_) => self.token_ids.unwrap_or(config.vocab_size),
            ScoreOutput::Hidden { .. } => config.hidden_size,
            ScoreOutput::TokenLogProbs { .. } | ScoreOutput::LogProbs(_) | ScoreOutput::Pooled(_) => 0,
        };
        let sequences = self.sequences.drain(..).map(|pending| pending.scores).collect();
        Ok(ScoreResponse { version, sequences, columns })
    }
}

/// Refuses positions, ids and temperatures that cannot be scored.
fn check(request: &ScoreRequest, config: &ModelConfig) -> Result<(), RequestError> {
    let ScoreRequest { sequences, output, token_ids, .. } = request;
    let (vocab_size, max) = (config.vocab_size, config.max_position_embeddings);
    if let Some(token_ids) = token_ids.filter(|&ids| ids == 0 || ids > vocab_size) {
        return Err(RequestError::TokenIds { token_ids, vocab_size });
    }
    let own_tokens = matches!(output, ScoreOutput::LogProbs(_) | ScoreOutput::TokenLogProbs { .. });
    for (number, sequence) in sequences.iter().enumerate() {
        check_ids(&sequence.tokens, config)?;
        let (positions, len) = (&sequence.positions, sequence.tokens.len());
        let last = if own_tokens { len } else { len + 1 };
        if len == 0 {
            return Err(RequestError::EmptySequence { sequence: number });
        }
        // A token that is alone has no log-probability.
        let nothing = positions.is_empty() && (len > 1 || !own_tokens);
        if nothing || positions.start == 0 || positions.end > last {
            let (start, end) = (positions.start, positions.end);
            return Err(RequestError::Positions { sequence: number, start, end, last });
        }
        let tokens = sequence.inputs().len();
        if tokens > max {
            return Err(RequestError::SequenceTooLong { sequence: number, tokens, max });
        }
    }
    let (top, ids, temperature) = match output {
        ScoreOutput::LogProbs(log_probs) => (log_probs.top, &log_probs.ids[..], log_probs.temperature),
        ScoreOutput::TokenLogProbs { temperature } => (0, &[][..], *temperature),
        ScoreOutput::Logits(_) | ScoreOutput::Hidden { .. } | ScoreOutput::Pooled(_) => return Ok(()),
    };
    check_ids(ids, config)?;
    let vocab_size = token_ids.unwrap_or(vocab_size);
    if top > vocab_size {
        return Err(RequestError::Top { top, vocab_size });
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(RequestError::Temperature { temperature });
    }
    Ok(())
}
