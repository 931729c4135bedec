//! What a model says of positions of given sequences: log-probabilities, logits, hidden states, one vector.
//!
//! The scheduler computes the sequences like prompts, in the steps of the generations and under the same budget; a step that
//! has rows that are asked for reads them before it is done (`rows`). A request gives the scheduler its sequences a few at a
//! time, in turn with the other requests, and is answered when all are done. It is answered by one version of the weights:
//! new ones wait for the requests that have begun ([`ModelRunner::begun`]).

mod log_probs;
mod rows;

use std::collections::BTreeMap;

use super::runner::{ModelRunner, check_ids};
use crate::handle::Reply;
use crate::request::{ModelId, Pooling, Precision, Span};
use crate::scheduler::{RequestId, SchedulerOutput, SeqRequest};
use crate::{Error, Result};
pub(crate) use log_probs::{Asked, Row};

/// Requests are begun while those that have begun have fewer tokens left than this many steps take.
const BEGUN_STEPS: usize = 16;

/// Sequences, and what is asked of some of their positions.
pub(crate) struct ScoreWork {
    /// Which model.
    pub(crate) model: ModelId,
    /// The sequences. One without positions is said nothing of.
    pub(crate) sequences: Vec<Span>,
    /// What is asked.
    pub(crate) output: Output,
    /// Of the distribution over so many ids, the first; `None`: over all that have a token.
    pub(crate) token_ids: Option<usize>,
    /// Takes the answer.
    pub(crate) reply: Reply<Scored>,
}

/// What is asked of every position.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// From its logits, on the host.
    LogProbs(Asked),
    /// ln p of its own token alone, at a temperature: what a loss would be told, without the logits leaving the device.
    Own(f64),
    /// Its logits.
    Logits(Precision),
    /// The hidden state before it.
    Hidden {
        /// After the last norm, or before it.
        normalized: bool,
        /// How numbers are written.
        precision: Precision,
    },
    /// The hidden states of all positions as one vector.
    Pooled(Pooling),
}

/// The answer, and the version of the weights that gave it.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) version: u64,
    /// One for each sequence.
    pub(crate) sequences: Vec<Said>,
}

/// What is said of one sequence: what its output asks for is filled, position after position.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Log-probabilities.
    pub(crate) rows: Vec<Row>,
    /// Rows of numbers, little-endian.
    pub(crate) bytes: Vec<u8>,
    /// One vector.
    pub(crate) vector: Vec<f64>,
    /// Tokens that came from the prefix cache.
    pub(crate) cached_tokens: usize,
    /// Positions that it speaks of so far.
    done: usize,
}

/// Requests of a model.
#[derive(Default)]
pub(super) struct Scores {
    requests: BTreeMap<RequestId, Scoring>,
    /// Sequences in the scheduler, under numbers of their own: their request and their place in it.
    members: BTreeMap<RequestId, (RequestId, usize)>,
    next_member: u64,
    /// No request is begun: the weights are about to change.
    pub(super) held: bool,
}

/// One request.
struct Scoring {
    output: Output,
    token_ids: Option<usize>,
    sequences: Vec<Sequence>,
    /// Whether the scheduler has been given one.
    begun: bool,
    /// The first that it has not been given.
    next: usize,
    /// Those that the scheduler has.
    members: usize,
    /// Tokens of those that are not done.
    left: usize,
    reply: Reply<Scored>,
}

struct Sequence {
    span: Span,
    said: Said,
    /// Whether a step has had tokens of it.
    seen: bool,
}

impl Sequence {
    /// The tokens that have to be run: nothing is asked about what follows the last position.
    fn inputs(&self) -> &[u32] {
        inputs(&self.span)
    }
}

fn inputs(span: &Span) -> &[u32] {
    if span.positions.is_empty() { &[] } else { &span.tokens[..span.positions.end - 1] }
}

impl Scores {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether a planned sequence is scored.
    pub(super) fn has(&self, member: RequestId) -> bool {
        self.members.contains_key(&member)
    }

    fn begun(&self) -> impl Iterator<Item = &Scoring> {
        self.requests.values().filter(|scoring| scoring.begun)
    }

    /// Whose sequence the scheduler gets next: of the requests that may have more in it, the one that has fewest.
    fn next_to_feed(&self, tokens: usize) -> Option<RequestId> {
        let begins = !self.held && self.begun().map(|scoring| scoring.left).sum::<usize>() < tokens;
        let new = self.requests.iter().find(|(_, scoring)| !scoring.begun).filter(|_| begins);
        let has_more = |scoring: &Scoring| scoring.begun && scoring.next < scoring.sequences.len();
        let candidates = self.requests.iter().filter(|(_, scoring)| has_more(scoring)).chain(new);
        candidates.min_by_key(|(id, scoring)| (scoring.members, **id)).map(|(&id, _)| id)
    }
}

impl ModelRunner {
    /// Takes a request, or answers why not.
    pub(super) fn submit_scoring(&mut self, id: RequestId, work: ScoreWork) {
        let ScoreWork { sequences, output, token_ids, reply, .. } = work;
        if let Err(e) = self.check_scoring(&sequences, &output, token_ids) {
            // Nobody may listen any more; the same below.
            return drop(reply.send(Err(e)));
        }
        let left = sequences.iter().map(|span| inputs(span).len()).sum();
        let sequences = sequences.into_iter().map(|span| Sequence { span, said: Said::default(), seen: false });
        let mut scoring = Scoring {
            output,
            token_ids,
            sequences: sequences.collect(),
            begun: false,
            next: 0,
            members: 0,
            left,
            reply,
        };
        scoring.skip_empty();
        if left == 0 {
            let answer = scoring.answer(self.version);
            return drop(scoring.reply.send(answer));
        }
        self.scores.requests.insert(id, scoring);
    }

    fn check_scoring(&self, sequences: &[Span], output: &Output, token_ids: Option<usize>) -> Result<()> {
        let config = self.config();
        if let Some(ids) = token_ids.filter(|&ids| ids == 0 || ids > config.vocab_size) {
            return Err(Error::Request(format!("{ids} ids are to be compared, of 1 to {}", config.vocab_size)));
        }
        let about_tokens = matches!(output, Output::LogProbs(_) | Output::Own(_));
        for (number, span) in sequences.iter().enumerate() {
            check_ids(&span.tokens, config)?;
            let (positions, len, max) = (&span.positions, span.tokens.len(), config.max_position_embeddings);
            let last = if about_tokens { len } else { len + 1 };
            let refuse = |what: String| Err(Error::Request(format!("sequence {number}: {what}")));
            if len == 0 {
                return refuse("there are no tokens".to_owned());
            }
            // Nothing can be said of a token that is alone.
            let nothing = positions.is_empty() && (len > 1 || !about_tokens);
            if nothing || positions.start == 0 || positions.end > last {
                return refuse(format!("positions {}..{} are not within 1..{last}", positions.start, positions.end));
            }
            let got = inputs(span).len();
            if got > max {
                return refuse(format!("{got} tokens exceed the model's context of {max}; send shorter pieces"));
            }
        }
        let (top, ids, temperature) = match output {
            Output::LogProbs(asked) => (asked.top, &asked.ids[..], asked.temperature),
            Output::Own(temperature) => (0, &[][..], *temperature),
            Output::Logits(_) | Output::Hidden { .. } | Output::Pooled(_) => return Ok(()),
        };
        check_ids(ids, config)?;
        let compared = token_ids.unwrap_or(config.vocab_size);
        if top > compared {
            return Err(Error::Request(format!("top {top} exceeds the vocabulary of {compared}")));
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::Request(format!("temperature {temperature} must be positive")));
        }
        Ok(())
    }

    /// Whether a request has begun and is not done.
    pub(super) fn begun(&self) -> bool {
        self.scores.begun().next().is_some()
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
        let key = self.cache_key();
        let scores = &mut self.scores;
        let scoring = scores.requests.get_mut(&id).expect("it was just found");
        // Handles count from 0; these are never theirs.
        let member = RequestId((1 << 63) | scores.next_member);
        scores.next_member += 1;
        let place = scoring.next;
        let sequence = &scoring.sequences[place];
        self.scheduler.submit(SeqRequest {
            id: member,
            key,
            prompt: sequence.inputs().into(),
            max_new_tokens: 0,
            scored_from: Some(sequence.span.positions.start - 1),
            ahead: false,
        })?;
        scores.members.insert(member, (id, place));
        (scoring.begun, scoring.members, scoring.next) = (true, scoring.members + 1, place + 1);
        scoring.skip_empty();
        Ok(())
    }

    /// The sequences whose last tokens `plan` computes.
    pub(super) fn completes(&self, plan: &SchedulerOutput) -> Vec<RequestId> {
        let ends = |seq: &&crate::scheduler::ScheduledSeq| {
            self.scores
                .members
                .get(&seq.id)
                .is_some_and(|(id, place)| seq.tokens.end == self.scores.requests[id].sequences[*place].inputs().len())
        };
        plan.seqs.iter().filter(ends).map(|seq| seq.id).collect()
    }

    /// Ends sequences whose tokens are all computed, and answers the requests that are done with them.
    pub(super) fn answer_scored(&mut self, members: &[RequestId]) {
        for member in members {
            let Some((id, place)) = self.scores.members.remove(member) else { continue };
            self.scheduler.finish(*member);
            let scoring = self.scores.requests.get_mut(&id).expect("a member's request is there");
            scoring.members -= 1;
            scoring.left -= scoring.sequences[place].inputs().len();
            if scoring.left == 0 {
                let mut scoring = self.scores.requests.remove(&id).expect("it is there");
                let answer = scoring.answer(self.version);
                drop(scoring.reply.send(answer));
            }
        }
    }

    /// Ends a request whose answer nobody wants any more.
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

    /// Takes all sequences back from the scheduler: what was begun will begin again.
    pub(super) fn restart_scores(&mut self) {
        for (member, _) in std::mem::take(&mut self.scores.members) {
            self.scheduler.cancel(member);
        }
        self.scores.requests.values_mut().filter(|scoring| scoring.begun).for_each(Scoring::restart);
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

impl Scoring {
    fn restart(&mut self) {
        for sequence in &mut self.sequences {
            (sequence.said, sequence.seen) = (Said::default(), false);
        }
        self.left = self.sequences.iter().map(|sequence| sequence.inputs().len()).sum();
        (self.begun, self.next, self.members) = (false, 0, 0);
        self.skip_empty();
    }

    /// Passes over sequences that nothing is asked of.
    fn skip_empty(&mut self) {
        let empty = self.sequences[self.next..].iter().take_while(|sequence| sequence.inputs().is_empty()).count();
        self.next += empty;
    }

    fn answer(&mut self, version: u64) -> Result<Scored> {
        for (number, sequence) in self.sequences.iter().enumerate() {
            if let Some(place) = sequence.said.rows.iter().position(|row| row.logprob.is_nan()) {
                let position = sequence.span.positions.start + place - 1;
                let what = format!("sequence {number}: the logits at position {position} are not numbers");
                return Err(Error::Request(what));
            }
        }
        Ok(Scored { version, sequences: self.sequences.drain(..).map(|sequence| sequence.said).collect() })
    }
}
