//! Requests to the device thread.

use crate::Result;
use crate::ids::{ModelId, RequestId};
use crate::model::Adapter;
use crate::request::{
    GenerateEvent, GenerateRequest, OptimReport, OptimStep, PauseMode, RuntimeStats, ScoreRequest, ScoreResponse,
    TokenMask, TrainReport, TrainRequest, TrainState,
};
use crate::sink::Sink;

/// Where an answer goes.
pub(crate) type Reply<T> = Sink<Result<T>>;

/// A request to the device thread.
pub(crate) enum EngineRequest {
    Generate(RequestId, GenerateRequest, Option<Box<dyn TokenMask>>, Sink<GenerateEvent>),
    Score(RequestId, ScoreRequest, Reply<ScoreResponse>),
    Cancel(ModelId, RequestId),
    ForwardBackward(TrainRequest, Reply<TrainReport>),
    OptimStep(OptimStep, Reply<OptimReport>),
    Publish(Reply<u64>),
    AddAdapter(ModelId, Adapter, Reply<ModelId>),
    ReplaceAdapter(ModelId, Adapter, Reply<u64>),
    RemoveAdapter(ModelId, Reply<()>),
    Export(Reply<TrainState>),
    Restore(TrainState, Reply<()>),
    /// Generations stop where they are, or end there.
    Pause(PauseMode, Reply<()>),
    Resume(Reply<()>),
    ResetPrefixCache(Reply<()>),
    Stats(Reply<RuntimeStats>),
}
