//! What is asked about a document, the requests that it becomes, and their answers.

use serde::{Deserialize, Serialize};

pub use data::Message;

/// A task's question about one document; few-shot examples are put before it later.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskQuestion {
    /// Generate until one of these texts, or so many tokens.
    Generate {
        /// The question.
        question: String,
        /// Texts that end the answer; they are not part of it.
        until: Vec<String>,
        /// New tokens at most; `None` is the run's default number.
        max_tokens: Option<usize>,
    },
    /// How likely is `continuation` after `question`? Nothing is put between them.
    Continue {
        /// What comes before.
        question: String,
        /// The text whose probability is asked for.
        continuation: String,
    },
    /// Which of `choices` is the likeliest after `question` and a space?
    Choose {
        /// What comes before.
        question: String,
        /// The answers to choose from.
        choices: Vec<String>,
    },
    /// After which of `questions` is `continuation` (after a space) the likeliest?
    ChooseContext {
        /// The contexts to choose from.
        questions: Vec<String>,
        /// What follows each of them.
        continuation: String,
    },
    /// How likely is the whole text?
    Rolling {
        /// The text.
        text: String,
    },
}

/// A text, or a conversation for the model's chat template.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Plain text.
    Text(String),
    /// Messages whose answer is asked for.
    Chat(Vec<Message>),
}

/// One piece of work for a backend.
#[derive(Debug, Clone, PartialEq)]
pub enum EvalRequest {
    /// Generate after `prompt`.
    GenerateUntil {
        /// Everything before the answer.
        prompt: Prompt,
        /// Texts that end the answer.
        until: Vec<String>,
        /// New tokens at most.
        max_tokens: usize,
        /// Distinguishes several answers to one prompt; keys their random numbers.
        repeat: u64,
    },
    /// Log-probability of `continuation` after `context`.
    LogLikelihood {
        /// Everything before; may be empty.
        context: String,
        /// The text whose probability is asked for.
        continuation: String,
    },
    /// [`EvalRequest::LogLikelihood`] of several pairs, most of which share their context; one answer a pair.
    MultipleChoice {
        /// (context, continuation) of every choice.
        pairs: Vec<(String, String)>,
    },
    /// Log-probability of the whole text, in windows of the model's context.
    Rolling {
        /// The text.
        text: String,
    },
}

/// The answer to a request, or to one pair of a multiple choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EvalResponse {
    /// What was written.
    Text {
        /// Without the text that ended it.
        text: String,
        /// `stop` or `length`.
        finish_reason: String,
        /// Tokens of the prompt, where they are known.
        prompt_tokens: usize,
        /// Sampled tokens; empty where the server does not return them.
        token_ids: Vec<u32>,
        /// ln p of each of them.
        logprobs: Vec<f64>,
    },
    /// How likely a continuation is.
    LogLikelihood {
        /// Sum of ln p over its tokens.
        logprob: f64,
        /// Whether every token of it was the likeliest at its place.
        greedy: bool,
        /// Its token ids.
        token_ids: Vec<u32>,
        /// ln p of each of them.
        logprobs: Vec<f64>,
    },
    /// How likely a whole text is.
    Rolling {
        /// Sum of ln p over its tokens.
        logprob: f64,
        /// How many those are.
        tokens: usize,
    },
}

impl EvalResponse {
    /// The text that was written; empty for other kinds.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Text { text, .. } => text,
            Self::LogLikelihood { .. } | Self::Rolling { .. } => "",
        }
    }

    /// The log-probability that was asked for; for a text that of what was sampled.
    #[must_use]
    pub fn logprob(&self) -> f64 {
        match self {
            Self::Text { logprobs, .. } => logprobs.iter().sum(),
            Self::LogLikelihood { logprob, .. } | Self::Rolling { logprob, .. } => *logprob,
        }
    }
}
