//! Any OpenAI-compatible server that echoes a prompt with its log-probabilities: those of the student's own tokens, at
//! temperature 1, and nothing else.

use runtime::files::ModelFiles;
use serde::Deserialize;
use serde_json::{Value, json};

use super::checks;
use super::client::TeacherClient;
use super::{TeacherScoreRequest, TeacherScores};
use crate::recipe::Remote;
use crate::{Error, Result};

/// Texts whose tokens are compared: plain ASCII, which every server spells alike.
const PROBES: [&str; 3] =
    ["The quick brown fox jumps over the lazy dog.", "1234567890 3.14159", "fn main() { let x = vec![1, 2]; }"];

/// Bytes of a list of models, and of an answer besides its lists.
const MODELS_BYTES: u64 = 16 << 20;
const ENVELOPE_BYTES: usize = 64 << 10;
/// Bytes of a token in JSON: its text three times, escaped, its log-probability and its place.
const TOKEN_BYTES: usize = 4 << 10;

/// One served model.
pub(super) struct OpenAi {
    client: TeacherClient,
    model: String,
}

/// The lists of an echoed prompt.
#[derive(Deserialize)]
struct Echo {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
}

impl OpenAi {
    /// Finds the model, and compares how it reads texts with how the student does.
    pub(super) fn connect(client: TeacherClient, remote: &Remote, student: &ModelFiles) -> Result<Self> {
        let model = match &remote.served_model {
            Some(name) => name.clone(),
            None => {
                let answer = client.get("/v1/models", None, MODELS_BYTES)?;
                let models = client.json("/v1/models", &answer)?;
                let first = models["data"][0]["id"].as_str().map(str::to_owned);
                first.ok_or_else(|| client.error("/v1/models names no model; set `teacher.served_model`"))?
            }
        };
        let server = Self { client, model };
        let tokenizer = student.tokenizer()?;
        for probe in PROBES {
            let ids = tokenizer.encode(probe, true)?;
            let ours: Vec<String> = ids.iter().map(|&id| tokenizer.decode(&[id], false)).collect::<Result<_, _>>()?;
            let of_text = server.echo(&json!(probe), probe.len())?.tokens;
            let of_ids = server.echo(&json!(ids), ids.len())?.tokens;
            for theirs in [of_text, of_ids] {
                // A server may continue the prompt by a token, and may spell a space apart.
                let same = theirs.len() >= ours.len() && ours.iter().zip(&theirs).all(|(a, b)| a.trim() == b.trim());
                if !same {
                    return Err(Error::TokenizersDiffer {
                        what: format!("tokens of {probe:?}"),
                        student: format!("{ours:?}"),
                        teacher: format!("{theirs:?}"),
                    });
                }
            }
        }
        Ok(server)
    }

    /// A model whose tokenizer is known to be the student's.
    #[cfg(test)]
    pub(super) fn served(client: TeacherClient, model: &str) -> Self {
        Self { client, model: model.to_owned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.model
    }

    /// Log-probabilities of a sequence's own tokens.
    pub(super) fn score(&self, request: &TeacherScoreRequest) -> Result<TeacherScores> {
        let tokens = &request.tokens[..request.positions.end];
        let echo = self.echo(&json!(tokens), tokens.len())?;
        let (got, want) = (echo.token_logprobs.len(), tokens.len());
        // It may have continued the prompt by a token.
        let whole = (want..=want + 1).contains(&got) && echo.tokens.len() == got;
        let listed = echo.token_logprobs.get(request.positions.clone()).filter(|_| whole);
        let own: Option<Vec<f32>> = listed.and_then(|logprobs| logprobs.iter().copied().collect());
        let own = own.ok_or_else(|| {
            self.client.error(format!("/v1/completions gave log-probabilities of {got} tokens for a prompt of {want}"))
        })?;
        checks::own(&own).map_err(|what| self.client.error(format!("/v1/completions: {what}")))?;
        Ok(TeacherScores::LogProbs { own, ids: vec![], logprobs: vec![], tails: vec![] })
    }

    /// A prompt of at most `tokens` tokens with its log-probabilities. Most servers want to generate a token as well.
    fn echo(&self, prompt: &Value, tokens: usize) -> Result<Echo> {
        let body = json!({
            "model": self.model, "prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0,
        });
        let most = (tokens + 16) * TOKEN_BYTES + ENVELOPE_BYTES;
        let answer = self.client.post("/v1/completions", &body, most as u64)?;
        let mut value = self.client.json("/v1/completions", &answer)?;
        serde_json::from_value(value["choices"][0]["logprobs"].take()).map_err(|_| {
            self.client.error(
                "it offers text, but no log-probabilities of a prompt (`echo` with `logprobs` in /v1/completions), which \
                 `teacher.api = \"openai\"` needs; serve the teacher with `arle serve`",
            )
        })
    }
}
