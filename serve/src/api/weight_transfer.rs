//! vLLM's routes by which a trainer sends weights over NCCL. They cannot work here, and say so.

use crate::api_error::ApiError;
use crate::openapi::Operation;
use crate::openapi::schema::{any, map};

/// `POST` to any of them.
pub(crate) async fn refuse() -> ApiError {
    ApiError::no_weight_transfer()
}

fn describe(id: &'static str) -> Operation {
    Operation::new(id, "Refused: weights do not come over the network").refuses(400, "Always.").answers(map(any()))
}

pub(crate) fn describe_init() -> Operation {
    describe("initWeightTransferEngine")
}

pub(crate) fn describe_start() -> Operation {
    describe("startWeightUpdate")
}

pub(crate) fn describe_update() -> Operation {
    describe("updateWeights")
}

pub(crate) fn describe_finish() -> Operation {
    describe("finishWeightUpdate")
}
