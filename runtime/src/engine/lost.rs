//! A device that is lost: everything that runs ends with that error, and nothing more is asked of the device.

use super::{Engine, SlotEngine};
use crate::handle::{Reply, Work};
use crate::request::GenerateEvent;
use crate::{Error, Result};

impl Engine {
    /// What the errors of the steps since the last look say of the device.
    pub(super) fn look_at_errors(&mut self) {
        let errors: Vec<Error> = self.slots().filter_map(|slot| slot.error.take()).collect();
        errors.into_iter().for_each(|error| self.watch::<()>(&Err(error)));
    }

    /// Ends everything that runs once an error says that the device is lost.
    pub(super) fn watch<T>(&mut self, result: &Result<T>) {
        let Err(Error::Op(error)) = result else { return };
        if !error.is_device_lost() || self.lost.is_some() {
            return;
        }
        let lost = Error::Op(error.clone());
        self.slots().for_each(|slot| SlotEngine::fail_all(slot, &lost));
        self.lost = Some(lost);
    }

    /// Answers, looking at what the answer says of the device.
    pub(super) fn reply<T>(&mut self, reply: &Reply<T>, answer: Result<T>) {
        self.watch(&answer);
        send(reply, answer);
    }
}

/// Answers work that the lost device cannot do.
pub(super) fn refuse(work: Work, lost: &Error) {
    let lost = lost.for_another();
    match work {
        Work::Generate(.., events) => drop(events.send(GenerateEvent::Failed(lost))),
        // Everything has ended.
        Work::Cancel(..) => {}
        Work::Score(_, request) => send(&request.reply, Err(lost)),
        Work::AddAdapter(.., reply) => send(&reply, Err(lost)),
        Work::ReplaceAdapter(.., reply) => send(&reply, Err(lost)),
        Work::RemoveAdapter(_, reply) => send(&reply, Err(lost)),
        Work::ForwardBackward(_, reply) => send(&reply, Err(lost)),
        Work::OptimStep(_, reply) => send(&reply, Err(lost)),
        Work::Publish(reply) => send(&reply, Err(lost)),
        Work::Export(reply) => send(&reply, Err(lost)),
        Work::Restore(_, reply) => send(&reply, Err(lost)),
        Work::Pause(_, reply) => send(&reply, Err(lost)),
        Work::Resume(reply) => send(&reply, Err(lost)),
        Work::ResetPrefixCache(reply) => send(&reply, Err(lost)),
        Work::Stats(reply) => send(&reply, Err(lost)),
    }
}

fn send<T>(reply: &Reply<T>, value: Result<T>) {
    // A caller that stopped waiting has dropped its end; there is nobody to tell.
    drop(reply.send(value));
}
