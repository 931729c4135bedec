//! Adapters beside the student: models of their own on its base weights. Their files were read elsewhere: here they are only
//! copied to the device.

use autograd::Device;
use autograd::kv::KvPool;

use super::{Engine, ModelRunner};
use crate::Result;
use crate::model::Adapter;
use crate::request::{ModelId, RequestError};

impl Engine {
    /// Puts an adapter onto the student's base.
    pub(super) fn add_adapter(&mut self, adapter: &Adapter, pool: Option<KvPool>) -> Result<ModelId> {
        if self.training.is_some() {
            return Err(RequestError::BaseIsTrained.into());
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
            return Err(RequestError::NotAnAdapter { model }.into());
        }
        self.model(model)?.replace_adapter(adapter)
    }

    /// Frees an adapter that nobody uses.
    pub(super) fn remove_adapter(&mut self, model: ModelId) -> Result<()> {
        let ModelId::Adapter(number) = model else {
            return Err(RequestError::NotAnAdapter { model }.into());
        };
        if !self.model(model)?.is_idle() {
            return Err(RequestError::AdapterInUse { model }.into());
        }
        let removed = self.adapters.remove(&number);
        if !matches!(self.spec.device, Device::Cuda(_)) {
            // To give gigabytes back takes its time, which nobody here has to wait for.
            std::thread::spawn(move || drop(removed));
        }
        Ok(())
    }
}
