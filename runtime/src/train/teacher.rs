//! Where a loss's teacher is: a model of this runtime, or elsewhere.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use autograd::ops::{self, Head, TeacherRows};

use super::TrainError;
use crate::Result;
use crate::ids::ModelId;

/// What a loss needs to know of the teacher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The log-probabilities of the completion's own tokens.
    Tokens {
        /// Of the distribution at this temperature.
        temperature: f64,
    },
    /// The whole distribution, or as much of it as there is.
    Distribution {
        /// At this temperature.
        temperature: f64,
    },
}

/// What a teacher outside the runtime says of the scored tokens of a micro-batch, N in the order of its sequences.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrecomputedTeacher {
    /// ln p of the tokens themselves at `temperature`; empty where `rows` hold whole logits.
    pub logprobs: Vec<f32>,
    /// The temperature that `logprobs` hold for.
    pub temperature: f64,
    /// The distributions; `None` when only the tokens' own log-probabilities are known.
    #[serde(with = "crate::wire::given_rows")]
    pub rows: Option<Arc<TeacherRows>>,
}

impl PrecomputedTeacher {
    /// Scored tokens that it speaks of, when it hangs together.
    pub(crate) fn count(&self) -> Option<usize> {
        match &self.rows {
            None => Some(self.logprobs.len()),
            Some(rows) => match (&**rows, rows.rows()?) {
                (TeacherRows::Logits(_), n) if self.logprobs.is_empty() => Some(n),
                (TeacherRows::Top(_), n) if self.logprobs.len() == n => Some(n),
                _ => None,
            },
        }
    }
}

/// The teacher that a request names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum TeacherSource {
    /// A model of this runtime.
    Resident(ModelId),
    /// A teacher elsewhere: what it returned for the tokens with a weight.
    Remote(PrecomputedTeacher),
}

impl TeacherSource {
    /// What a teacher elsewhere returned.
    pub(crate) fn remote(&self) -> Option<&PrecomputedTeacher> {
        match self {
            Self::Resident(_) => None,
            Self::Remote(given) => Some(given),
        }
    }
}

/// The teacher of a micro-batch, a constant.
#[derive(Clone, Copy)]
pub enum Teacher<'a> {
    /// A model of this runtime: its final hidden states and its head.
    Resident(Head<'a>),
    /// Elsewhere.
    Given(&'a PrecomputedTeacher),
}

impl<'a> Teacher<'a> {
    /// Its distributions; `None` when it only says what it thinks of the tokens.
    #[must_use]
    pub fn distribution(self) -> Option<ops::Teacher<'a>> {
        match self {
            Self::Resident(head) => Some(ops::Teacher::Hidden(head)),
            Self::Given(given) => given.rows.as_ref().map(ops::Teacher::Given),
        }
    }

    /// ln p of the tokens at `temperature`, N.
    ///
    /// # Errors
    /// What the ops refuse; a temperature that the given ones do not hold for.
    pub fn log_probs(self, targets: &[u32], temperature: f64) -> Result<Vec<f32>> {
        let given = match self {
            Self::Resident(head) => return Ok(ops::linear_log_prob(head, targets, temperature)?),
            Self::Given(given) => given,
        };
        if let Some(rows) = &given.rows
            && let Some(logprobs) = rows.log_probs(targets, temperature)?
        {
            return Ok(logprobs);
        }
        if given.temperature != temperature || given.logprobs.len() != targets.len() {
            return Err(TrainError::TeacherTemperature {
                got: given.logprobs.len(),
                temperature: given.temperature,
                want: targets.len(),
                needed: temperature,
            }
            .into());
        }
        Ok(given.logprobs.clone())
    }
}
