//! What a step needs besides its plan.

use serde::{Deserialize, Serialize};

use crate::ids::{ModelId, RequestId};
use crate::request::ScoreOutput;
use crate::sampler::SamplingParams;
use crate::scheduler::SchedulerOutput;

/// One step of a base model and its adapters.
#[derive(Serialize, Deserialize)]
pub(crate) struct StepOrder {
    /// The base model.
    pub(crate) base: ModelId,
    /// Generations whose state is dropped, before the step.
    pub(crate) ends: Vec<RequestId>,
    /// Generations whose first step this is.
    pub(crate) begins: Vec<BeginSequence>,
    /// The tokens, page tables and page copies.
    pub(crate) plan: SchedulerOutput,
    /// Tokens that are possible as the next one of a generation, a bit each; generations that are not here may have all.
    pub(crate) masks: Vec<(RequestId, Vec<u32>)>,
    /// Rows that are scored.
    pub(crate) scores: Vec<ScoreTask>,
}

/// What sampling a generation's tokens needs.
#[derive(Serialize, Deserialize)]
pub(crate) struct BeginSequence {
    /// The request.
    pub(crate) id: RequestId,
    /// How its tokens are sampled.
    pub(crate) params: SamplingParams,
    /// Keys its random numbers, with the seed and the position.
    pub(crate) index: u64,
    /// Its prompt, which penalties count.
    pub(crate) prompt: Vec<u32>,
}

/// Rows of a step of one model, and what is computed for them.
#[derive(Serialize, Deserialize)]
pub(crate) struct ScoreTask {
    /// The model.
    pub(crate) model: ModelId,
    /// What is computed.
    pub(crate) output: ScoreOutput,
    /// The distribution is over the first so many ids; `None`: over all tokens.
    pub(crate) token_ids: Option<usize>,
    /// The rows.
    pub(crate) rows: Vec<ScoreRow>,
}

/// One scored row.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ScoreRow {
    /// Its place among the rows of its model in the step.
    pub(crate) row: u32,
    /// The token after it, where there is one.
    pub(crate) target: Option<u32>,
}
