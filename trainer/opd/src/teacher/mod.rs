//! A remote teacher, served by another process: it scores a student's tokens over HTTP, a micro-batch at a time.
//!
//! Only the positions that are trained on travel. Requests are bounded in number and in the length of their answers, lost ones
//! are repeated, and an error leaves the step that needed it undone.

mod arle;
mod batch_scores;
mod checks;
mod client;
mod openai;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use autograd::ops::Precision;
use autograd::rng::philox;
use runtime::files::ModelFiles;
use runtime::request::TrainSequence;
use runtime::sampler::SamplingParams;
use runtime::train::{Needs, PrecomputedTeacher};

use crate::recipe::{Api, Remote, RemoteRows};
use crate::{Error, Result, compatibility};
use arle::Arle;
use batch_scores::BatchScores;
use client::TeacherClient;
use command::interrupt::Interrupt;
use command::progress::Progress;
use openai::OpenAi;

/// A server that answers for the teacher.
pub struct RemoteTeacher {
    server: TeacherServer,
    rows: Option<RemoteRows>,
    concurrency: usize,
    /// Ids of the student's tokens.
    own_ids: usize,
}

enum TeacherServer {
    Arle(Arle),
    OpenAi(OpenAi),
}

/// A sequence and the positions that are asked about: position i is token i, given those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TeacherScoreRequest {
    tokens: Vec<u32>,
    positions: Range<usize>,
}

/// What is returned of each position.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ScoreFormat {
    /// All logits.
    Logits(Precision),
    /// The `k` likeliest tokens, and the sequence's own.
    Top { k: usize, temperature: f64 },
    /// The sequence's own tokens.
    Own { temperature: f64 },
}

/// Scores of the positions of one [`TeacherScoreRequest`].
#[derive(Debug)]
enum TeacherScores {
    /// Rows of logits as they came.
    Logits(Vec<u8>),
    /// Log-probabilities of the own tokens and, with k > 0, the k likeliest ones of each position and the rest's.
    LogProbs { own: Vec<f32>, ids: Vec<u32>, logprobs: Vec<f32>, tails: Vec<f32> },
}

/// A completion that the teacher generated.
pub(crate) struct RemoteCompletion {
    /// Its tokens, the end of sequence included.
    pub(crate) tokens: Vec<u32>,
    /// Their text.
    pub(crate) text: String,
    /// Whether it was cut off by the limit of new tokens.
    pub(crate) truncated: bool,
}

impl RemoteTeacher {
    /// Connects to the server and checks that its model tokenizes and ends texts as the student does. No pause between two tries outlasts
    /// `interrupt`.
    ///
    /// # Errors
    /// A server that does not answer, gives no log-probabilities, or has another vocabulary.
    pub(crate) fn connect(
        remote: &Remote,
        student: &ModelFiles,
        ends_chosen: bool,
        interrupt: &Interrupt,
        progress: Progress,
    ) -> Result<Self> {
        let client = TeacherClient::new(remote, interrupt.clone(), progress)?;
        let server = match remote.api {
            Api::Arle => TeacherServer::Arle(Arle::connect(client, remote, student, ends_chosen)?),
            Api::OpenAi => TeacherServer::OpenAi(OpenAi::connect(client, remote, student)?),
        };
        let name = match &server {
            TeacherServer::Arle(_) => {
                remote.served_model.as_deref().map_or_else(String::new, |name| format!(" {name}"))
            }
            TeacherServer::OpenAi(openai) => format!(" {}", openai.name()),
        };
        let what =
            remote.rows.map_or_else(|| "log-probabilities of the student's tokens".to_owned(), |rows| rows.to_string());
        progress.line(&format!("teacher    {}{name}: {what}", remote.url));
        let own_ids = compatibility::own_ids(student)?;
        Ok(Self { server, rows: remote.rows, concurrency: remote.concurrency, own_ids })
    }

    /// Longest sequence that the teacher can see; `None` when it did not say.
    pub(crate) fn context(&self) -> Option<usize> {
        match &self.server {
            TeacherServer::Arle(arle) => Some(arle.context()),
            TeacherServer::OpenAi(_) => None,
        }
    }

    /// The first so many ids are tokens of both models.
    pub(crate) fn token_ids(&self) -> usize {
        match &self.server {
            TeacherServer::Arle(arle) => arle.vocab(),
            TeacherServer::OpenAi(_) => self.own_ids,
        }
    }

    /// Whether it continues prompts of token ids.
    pub(crate) fn generates(&self) -> bool {
        matches!(self.server, TeacherServer::Arle(_))
    }

    /// Scores of the weighted tokens of a micro-batch.
    ///
    /// # Errors
    /// The server is lost, or refuses.
    pub(crate) fn score(&self, sequences: &[TrainSequence], needs: Needs) -> Result<PrecomputedTeacher> {
        let format = self.format(needs);
        let mut requests = Vec::new();
        let mut weights = Vec::new();
        for sequence in sequences {
            let prompt = sequence.teacher_prompt.as_deref().unwrap_or(&sequence.tokens[..sequence.prompt_len]);
            let tokens = [prompt, &sequence.tokens[sequence.prompt_len..]].concat();
            for positions in self.parts(prompt.len()..tokens.len(), format) {
                weights
                    .extend_from_slice(&sequence.weights[positions.start - prompt.len()..positions.end - prompt.len()]);
                requests.push(TeacherScoreRequest { tokens: tokens.clone(), positions });
            }
        }
        let groups = self.groups(&requests, format);
        let responses = in_parallel(&groups, self.concurrency, |group| self.score_group(group, format))?;
        let mut scores = BatchScores::new(format);
        let mut weights = &weights[..];
        for (request, responses) in requests.iter().zip(responses.into_iter().flatten()) {
            let (own, later) = weights.split_at(request.positions.len());
            scores.push(responses, own);
            weights = later;
        }
        Ok(scores.finish(self.vocab()))
    }

    /// Lets the teacher continue prompts; `index` keys the random numbers of each.
    ///
    /// # Errors
    /// The server is lost, or refuses.
    pub(crate) fn generate(
        &self,
        prompts: &[(Vec<u32>, u64)],
        params: &SamplingParams,
    ) -> Result<Vec<RemoteCompletion>> {
        let TeacherServer::Arle(arle) = &self.server else {
            unreachable!("the recipe lets only arle's servers generate")
        };
        in_parallel(prompts, self.concurrency, |(prompt, index)| {
            let key = philox(params.seed, [*index as u32, (*index >> 32) as u32, 0, 0]);
            arle.generate(prompt, params, u64::from(key[0]) << 31 | u64::from(key[1] >> 1))
        })
    }

    fn format(&self, needs: Needs) -> ScoreFormat {
        match (needs, self.rows) {
            (Needs::Distribution { .. }, Some(RemoteRows::Logits(precision))) => ScoreFormat::Logits(precision),
            (Needs::Distribution { temperature }, Some(RemoteRows::Top(k))) => ScoreFormat::Top { k, temperature },
            (Needs::Distribution { temperature } | Needs::Tokens { temperature }, _) => {
                ScoreFormat::Own { temperature }
            }
            (Needs::Nothing, _) => ScoreFormat::Own { temperature: 1.0 },
        }
    }

    fn vocab(&self) -> usize {
        match &self.server {
            TeacherServer::Arle(arle) => arle.vocab(),
            TeacherServer::OpenAi(_) => 0,
        }
    }

    /// Cuts positions into parts whose answers are as long as the server allows.
    fn parts(&self, positions: Range<usize>, format: ScoreFormat) -> Vec<Range<usize>> {
        let most = match &self.server {
            TeacherServer::Arle(arle) => (arle.limit() / arle.row_bytes(format)).max(1),
            TeacherServer::OpenAi(_) => usize::MAX,
        };
        let end = positions.end;
        positions.step_by(most).map(|start| start..start.saturating_add(most).min(end)).collect()
    }

    /// Groups what one HTTP request holds: the server runs them side by side.
    fn groups<'a>(&self, requests: &'a [TeacherScoreRequest], format: ScoreFormat) -> Vec<&'a [TeacherScoreRequest]> {
        let TeacherServer::Arle(arle) = &self.server else { return requests.chunks(1).collect() };
        let (mut groups, mut first, mut used) = (Vec::new(), 0, [0, 0]);
        for (place, request) in requests.iter().enumerate() {
            let more = [request.tokens.len(), request.positions.len() * arle.row_bytes(format)];
            let fits = used[0] + more[0] <= arle.context() && used[1] + more[1] <= arle.limit();
            if !fits && place > first {
                groups.push(&requests[first..place]);
                (first, used) = (place, [0, 0]);
            }
            used = [used[0] + more[0], used[1] + more[1]];
        }
        if first < requests.len() {
            groups.push(&requests[first..]);
        }
        groups
    }

    fn score_group(&self, group: &[TeacherScoreRequest], format: ScoreFormat) -> Result<Vec<TeacherScores>> {
        match &self.server {
            TeacherServer::Arle(arle) => arle.score(group, format),
            TeacherServer::OpenAi(openai) => group.iter().map(|request| openai.score(request)).collect(),
        }
    }
}

/// Does `work` for every item, at most `threads` at a time; results in the order of the items. The first error ends it.
fn in_parallel<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let run = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(place) else { return };
            match work(item) {
                Ok(result) => done.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(result),
                Err(error) => {
                    next.store(items.len(), Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| (0..threads.min(items.len())).for_each(|_| drop(scope.spawn(run))));
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod invalid_responses;
#[cfg(test)]
mod tests;
