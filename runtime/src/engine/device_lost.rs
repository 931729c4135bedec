//! A device that is lost: everything that runs ends with that error, and the device is not used any more.

use super::Engine;
use crate::engine::request::{EngineRequest, Reply};
use crate::request::GenerateEvent;
use crate::{Error, Result};

impl Engine {
    /// Takes the errors of the steps since the last call: one of them may be that the device is lost.
    pub(super) fn check_step_errors(&mut self) {
        let errors: Vec<Error> = self.planners.iter_mut().filter_map(|planner| planner.error.take()).collect();
        errors.into_iter().for_each(|error| self.check_device_lost::<()>(&Err(error)));
    }

    /// Ends everything that runs if an error is that the device is lost.
    pub(super) fn check_device_lost<T>(&mut self, result: &Result<T>) {
        let Err(Error::Op(error)) = result else { return };
        if !error.is_device_lost() || self.lost.is_some() {
            return;
        }
        let lost = Error::Op(error.clone());
        self.planners.iter_mut().for_each(|planner| planner.fail_all(&lost));
        self.lost = Some(lost);
    }

    /// Answers; an error may be that the device is lost.
    pub(super) fn reply<T>(&mut self, reply: &Reply<T>, answer: Result<T>) {
        self.check_device_lost(&answer);
        send(reply, answer);
    }
}

/// Answers a request that the lost device cannot execute.
pub(super) fn refuse(request: EngineRequest, lost: &Error) {
    let lost = lost.duplicate();
    match request {
        EngineRequest::Generate(.., events) => drop(events.send(GenerateEvent::Failed(lost))),
        // Everything has ended.
        EngineRequest::Cancel(..) => {}
        EngineRequest::Score(.., reply) => send(&reply, Err(lost)),
        EngineRequest::AddAdapter(.., reply) => send(&reply, Err(lost)),
        EngineRequest::ReplaceAdapter(.., reply) => send(&reply, Err(lost)),
        EngineRequest::RemoveAdapter(_, reply) => send(&reply, Err(lost)),
        EngineRequest::ForwardBackward(_, reply) => send(&reply, Err(lost)),
        EngineRequest::OptimStep(_, reply) => send(&reply, Err(lost)),
        EngineRequest::Publish(reply) => send(&reply, Err(lost)),
        EngineRequest::Export(reply) => send(&reply, Err(lost)),
        EngineRequest::Restore(_, reply) => send(&reply, Err(lost)),
        EngineRequest::Pause(_, reply) => send(&reply, Err(lost)),
        EngineRequest::Resume(reply) => send(&reply, Err(lost)),
        EngineRequest::ResetPrefixCache(reply) => send(&reply, Err(lost)),
        EngineRequest::Stats(reply) => send(&reply, Err(lost)),
    }
}

fn send<T>(reply: &Reply<T>, value: Result<T>) {
    // A caller that stopped waiting has dropped its receiver.
    drop(reply.send(value));
}
