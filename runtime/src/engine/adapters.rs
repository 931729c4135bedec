//! Adapters beside the student: slots of their own on its base weights. Their files were read elsewhere: here they are only
//! copied to the device.

use autograd::Device;
use autograd::kv::KvPool;

use super::{Engine, ModelRunner};
use crate::model::Adapter;
use crate::request::ModelId;
use crate::{Error, Result};

impl Engine {
    /// Puts an adapter onto the student's base.
    pub(super) fn add_adapter(&mut self, adapter: &Adapter, pool: Option<KvPool>) -> Result<ModelId> {
        if self.training.is_some() {
            let why = "the student's base may change while it is trained, so no adapter is loaded onto it";
            return Err(Error::Request(why.to_owned()));
        }
        let model = ModelId::Adapter(self.next_adapter);
        let engine = ModelRunner::beside(&self.student, model, adapter, pool, &self.spec)?;
        self.adapters.insert(self.next_adapter, engine);
        self.next_adapter += 1;
        Ok(model)
    }

    /// Puts an adapter in the place of a loaded one. No step is in flight.
    pub(super) fn replace_adapter(&mut self, model: ModelId, adapter: &Adapter) -> Result<u64> {
        if !matches!(model, ModelId::Adapter(_)) {
            return Err(Error::Request("only adapters are replaced".to_owned()));
        }
        self.model(model)?.replace_adapter(adapter)
    }

    /// Frees an adapter that nobody uses.
    pub(super) fn remove_adapter(&mut self, model: ModelId) -> Result<()> {
        let ModelId::Adapter(number) = model else {
            return Err(Error::Request("only adapters are removed".to_owned()));
        };
        if !self.model(model)?.is_idle() {
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
