//! Scores of given sequences.

use super::{RequestGuard, RuntimeHandle};
use crate::Result;
use crate::engine::EngineRequest;
use crate::request::{ScoreRequest, ScoreResponse};
use crate::sink::Sink;

impl RuntimeHandle {
    /// Log-probabilities, logits, hidden states or pooled vectors of given sequences.
    ///
    /// # Errors
    /// Positions that a sequence does not have, more tokens than the model's context, ids that the model does not have.
    pub fn score(&self, request: ScoreRequest) -> Result<ScoreResponse> {
        let (reply, response) = std::sync::mpsc::channel();
        let _guard = self.score_into(request, reply.into())?;
        response.recv().map_err(|_| self.exit_reason.error())?
    }

    /// [`RuntimeHandle::score`] whose response goes to `reply`, on the device thread.
    ///
    /// # Errors
    /// The device thread has ended. In the response: as in [`RuntimeHandle::score`].
    pub fn score_into(&self, request: ScoreRequest, reply: Sink<Result<ScoreResponse>>) -> Result<RequestGuard> {
        let model = request.model;
        self.submit_as(model, |id| EngineRequest::Score(id, request, reply))
    }
}
