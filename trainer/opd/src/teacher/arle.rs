//! `arle serve` as a teacher: `/tokenizer_info`, `/v1/score`, `/v1/completions`.

use runtime::files::ModelFiles;
use runtime::sampler::SamplingParams;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::checks;
use super::client::TeacherClient;
use super::{RemoteCompletion, ScoreFormat, TeacherScoreRequest, TeacherScores};
use crate::compatibility::{self, TokenizerInfo};
use crate::recipe::Remote;
use crate::{Error, Result};
use command::endpoint::HttpResponse;

/// Bytes of an id with its log-probability in JSON, as the server counts them.
const ENTRY_BYTES: usize = 36;
/// Bytes of an answer besides its lists, and of a description of the tokenizer.
const ENVELOPE_BYTES: usize = 64 << 10;
const INFO_BYTES: u64 = 16 << 20;
/// Ids of a head that the student does not have, at most: each is named in every request for a completion.
const MOST_PADDING: usize = 1 << 16;
/// Bias of tokens that are not to be generated: the least that servers take.
const NEVER: f32 = -100.0;
/// Bytes of a token in JSON: its id, and its text, escaped.
const TOKEN_BYTES: usize = 1 << 10;
/// No vocabulary is larger.
const LARGEST_VOCABULARY: usize = 1 << 24;

/// One served model.
pub(super) struct Arle {
    client: TeacherClient,
    model: Option<String>,
    info: Info,
    /// The ids that student and teacher share.
    token_ids: usize,
}

/// The server's description of the model and its tokenizer.
#[derive(Debug, Deserialize)]
struct Info {
    fingerprint: String,
    vocab_size: usize,
    model_vocab_size: usize,
    eos_token_ids: Vec<u32>,
    chat_template: Option<String>,
    max_model_len: usize,
    max_score_bytes: usize,
}

/// An element of `/v1/score`'s data.
#[derive(Deserialize)]
struct Score {
    index: usize,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    #[serde(default)]
    top_ids: Vec<Vec<u32>>,
    #[serde(default)]
    top_logprobs: Vec<Vec<f32>>,
    #[serde(default)]
    tail_logprobs: Vec<f32>,
}

impl Arle {
    /// Compares the server's tokenizer with the student's.
    pub(super) fn connect(
        client: TeacherClient,
        remote: &Remote,
        student: &ModelFiles,
        ends_chosen: bool,
    ) -> Result<Self> {
        let model = remote.served_model.clone();
        let foreign = |why: &str| {
            client.error(format!(
                "/tokenizer_info is not that of `arle serve` ({why}); for another OpenAI-compatible server set `teacher.api = \
                 \"openai\"`"
            ))
        };
        let query = model.as_deref().map(|name| ("model", name));
        let answer = client.get("/tokenizer_info", query, INFO_BYTES);
        let answer = answer.map_err(|error| match &error {
            // Where no model was named, nothing but the route can be missing.
            Error::Teacher { what, .. } if model.is_none() && what.contains(": 404 ") => foreign(what),
            _ => error,
        })?;
        let info: Info = serde_json::from_slice(&answer.body).map_err(|e| foreign(&e.to_string()))?;
        if !(1..=LARGEST_VOCABULARY).contains(&info.model_vocab_size) {
            let what = format!("/tokenizer_info has model_vocab_size = {}, which no model has", info.model_vocab_size);
            return Err(client.error(what));
        }
        let described = TokenizerInfo {
            fingerprint: &info.fingerprint,
            vocab_size: info.vocab_size,
            model_vocab_size: info.model_vocab_size,
            eos_token_ids: &info.eos_token_ids,
            chat_template: info.chat_template.as_deref(),
        };
        let tokenize = |text: &str, special: bool| -> Result<Vec<u32>> {
            let body = named(&model, json!({"prompt": text, "add_special_tokens": special}));
            // A byte is a token at most, and a few special ones come on top.
            let answer = client.post("/tokenize", &body, ((text.len() + 16) * TOKEN_BYTES + ENVELOPE_BYTES) as u64)?;
            let tokens = client.json("/tokenize", &answer)?["tokens"].take();
            serde_json::from_value(tokens).map_err(|e| client.error(format!("/tokenize gave no tokens: {e}")))
        };
        let token_ids = compatibility::compare_tokenizer_info(student, &described, ends_chosen, &tokenize)?;
        if info.model_vocab_size - token_ids > MOST_PADDING {
            let what = format!(
                "model_vocab_size = {} leaves more than {MOST_PADDING} ids beside the {token_ids} that both models have",
                info.model_vocab_size
            );
            return Err(client.error(what));
        }
        Ok(Self { client, model, info, token_ids })
    }

    pub(super) fn context(&self) -> usize {
        self.info.max_model_len
    }

    /// Logits of a row: those of the tokens that both models have.
    pub(super) fn vocab(&self) -> usize {
        self.token_ids
    }

    /// Longest answer.
    pub(super) fn limit(&self) -> usize {
        self.info.max_score_bytes
    }

    /// Bytes that the server counts for a position.
    pub(super) fn row_bytes(&self, format: ScoreFormat) -> usize {
        match format {
            ScoreFormat::Logits(precision) => self.token_ids * precision.bytes(),
            ScoreFormat::Top { k, .. } => (2 + k) * ENTRY_BYTES,
            ScoreFormat::Own { .. } => 2 * ENTRY_BYTES,
        }
    }

    /// Scores of some sequences, in one HTTP request.
    pub(super) fn score(&self, group: &[TeacherScoreRequest], format: ScoreFormat) -> Result<Vec<TeacherScores>> {
        let input: Vec<&[u32]> = group.iter().map(|request| &request.tokens[..request.positions.end]).collect();
        let positions: Vec<[usize; 2]> =
            group.iter().map(|request| [request.positions.start, request.positions.end]).collect();
        let mut body = named(&self.model, json!({"input": input, "positions": positions}));
        if self.token_ids < self.info.model_vocab_size {
            body["vocab_size"] = json!(self.token_ids);
        }
        match format {
            ScoreFormat::Logits(precision) => {
                body["rows"] = json!("logits");
                body["dtype"] = json!(precision.name());
            }
            ScoreFormat::Top { k, temperature } => {
                body["top_k"] = json!(k);
                body["temperature"] = json!(temperature);
            }
            ScoreFormat::Own { temperature } => body["temperature"] = json!(temperature),
        }
        let rows: usize = group.iter().map(|request| request.positions.len()).sum();
        let most = (rows * self.row_bytes(format) + group.len() * ENVELOPE_BYTES) as u64;
        let answer = self.client.post("/v1/score", &body, most)?;
        match format {
            ScoreFormat::Logits(precision) => {
                checks::logits(&answer.body, precision).map_err(|what| self.wrong(&what))?;
                self.split(answer, group, self.row_bytes(format))
            }
            ScoreFormat::Top { k, .. } => self.read(&answer, group, k),
            ScoreFormat::Own { .. } => self.read(&answer, group, 0),
        }
    }

    /// Cuts rows of `row` bytes where the sequences' positions end.
    fn split(&self, answer: HttpResponse, group: &[TeacherScoreRequest], row: usize) -> Result<Vec<TeacherScores>> {
        let rows: usize = group.iter().map(|request| request.positions.len()).sum();
        let got = answer.header("x-logits-cols").and_then(|cols| cols.parse().ok());
        if got != Some(self.vocab()) || answer.body.len() != rows * row {
            let (bytes, got) = (answer.body.len(), answer.header("x-logits-cols").unwrap_or("no").to_owned());
            return Err(self.client.error(format!(
                "/v1/score sent {bytes} bytes of rows with {got} logits; {rows} rows with {} were asked for",
                self.vocab()
            )));
        }
        if let [_] = group {
            return Ok(vec![TeacherScores::Logits(answer.body)]);
        }
        let mut rest = &answer.body[..];
        let mut scores = Vec::with_capacity(group.len());
        for request in group {
            let (own, later) = rest.split_at(request.positions.len() * row);
            scores.push(TeacherScores::Logits(own.to_vec()));
            rest = later;
        }
        Ok(scores)
    }

    fn wrong(&self, what: &str) -> Error {
        self.client.error(format!("/v1/score: {what}"))
    }

    fn read(&self, answer: &HttpResponse, group: &[TeacherScoreRequest], k: usize) -> Result<Vec<TeacherScores>> {
        let wrong = |what: &str| self.wrong(what);
        let mut value = self.client.json("/v1/score", answer)?;
        let data: Vec<Score> = serde_json::from_value(value["data"].take()).map_err(|e| wrong(&e.to_string()))?;
        if data.len() != group.len() {
            return Err(wrong("another number of sequences than were sent"));
        }
        data.into_iter()
            .zip(group)
            .enumerate()
            .map(|(number, (score, request))| {
                let n = request.positions.len();
                if score.index != number || score.tokens != request.tokens[request.positions.clone()] {
                    return Err(wrong("log-probabilities of other tokens than were sent"));
                }
                let lists = [score.top_ids.len(), score.top_logprobs.len(), score.tail_logprobs.len()];
                let whole = score.top_ids.iter().map(Vec::len).chain(score.top_logprobs.iter().map(Vec::len));
                let listed = if k > 0 { n } else { 0 };
                if score.logprobs.len() != n || lists != [listed; 3] || whole.into_iter().any(|len| len != k) {
                    return Err(wrong("another number of log-probabilities than were asked for"));
                }
                let listed = score.top_ids.iter().zip(&score.top_logprobs).zip(&score.tail_logprobs);
                checks::own(&score.logprobs).map_err(|what| wrong(&what))?;
                for (place, ((ids, logprobs), tail)) in listed.enumerate() {
                    let own = (score.tokens[place], score.logprobs[place]);
                    checks::listed(own, ids, logprobs, *tail, self.vocab()).map_err(|what| wrong(&what))?;
                }
                let (ids, logprobs) = (score.top_ids.concat(), score.top_logprobs.concat());
                Ok(TeacherScores::LogProbs { own: score.logprobs, ids, logprobs, tails: score.tail_logprobs })
            })
            .collect()
    }

    /// Continues a prompt.
    pub(super) fn generate(&self, prompt: &[u32], params: &SamplingParams, seed: u64) -> Result<RemoteCompletion> {
        // Ids that the student does not have are padding there; nothing is to be made of them.
        let padding = (self.token_ids..self.info.model_vocab_size).map(|id| (id.to_string(), json!(NEVER)));
        let body = json!({
            "logit_bias": padding.collect::<Map<_, _>>(), "prompt": prompt, "max_tokens": params.max_tokens, "seed": seed, "return_token_ids": true,
            "temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k.unwrap_or(0),
            "min_p": params.min_p, "ignore_eos": params.ignore_eos, "repetition_penalty": 1.0,
        });
        let most = (prompt.len() + params.max_tokens) * TOKEN_BYTES + ENVELOPE_BYTES;
        let answer = self.client.post("/v1/completions", &named(&self.model, body), most as u64)?;
        let mut value = self.client.json("/v1/completions", &answer)?;
        let choice = &mut value["choices"][0];
        let truncated = choice["finish_reason"] == "length";
        let text = choice["text"].as_str().unwrap_or_default().to_owned();
        let tokens = serde_json::from_value(choice["token_ids"].take());
        let tokens: Vec<u32> = tokens.map_err(|e| self.client.error(format!("/v1/completions gave no tokens: {e}")))?;
        checks::completion(&tokens, params.max_tokens, self.vocab())
            .map_err(|what| self.client.error(format!("/v1/completions: {what}")))?;
        Ok(RemoteCompletion { tokens, text, truncated })
    }
}

/// A body with the model's name, where the recipe gives one.
fn named(model: &Option<String>, mut body: Value) -> Value {
    if let Some(model) = model {
        body["model"] = json!(model);
    }
    body
}
