//! Adapters beside the student: slots of their own on its base weights. Their files were read elsewhere: here they are only
//! copied to the device.

use autograd::Device;
use autograd::kv::KvPool;

use super::{Engine, SlotEngine};
use crate::model::Adapter;
use crate::request::Slot;
use crate::{Error, Result};

impl Engine {
    /// Puts an adapter onto the student's base.
    pub(super) fn add_adapter(&mut self, adapter: &Adapter, pool: Option<KvPool>) -> Result<Slot> {
        if self.training.is_some() {
            let why = "the student's base may change while it is trained, so no adapter is loaded onto it";
            return Err(Error::Request(why.to_owned()));
        }
        let slot = Slot::Adapter(self.next_adapter);
        let engine = SlotEngine::beside(&self.student, slot, adapter, pool, &self.spec)?;
        self.adapters.insert(self.next_adapter, engine);
        self.next_adapter += 1;
        Ok(slot)
    }

    /// Puts an adapter in the place of a loaded one. No step is in flight.
    pub(super) fn replace_adapter(&mut self, slot: Slot, adapter: &Adapter) -> Result<u64> {
        if !matches!(slot, Slot::Adapter(_)) {
            return Err(Error::Request("only adapters are replaced".to_owned()));
        }
        self.slot(slot)?.replace_adapter(adapter)
    }

    /// Frees an adapter that nobody uses.
    pub(super) fn remove_adapter(&mut self, slot: Slot) -> Result<()> {
        let Slot::Adapter(number) = slot else {
            return Err(Error::Request("only adapters are removed".to_owned()));
        };
        if !self.slot(slot)?.is_idle() {
            let why = "requests run with this adapter; remove it when they have ended";
            return Err(Error::Request(why.to_owned()));
        }
        let removed = self.adapters.remove(&number);
        if !matches!(self.spec.device, Device::Cuda(_)) {
            // To give gigabytes back takes its time, which nobody here has to wait for.
            std::thread::spawn(move || drop(removed));
        }
        Ok(())
    }
}
