//! Adapters on the base models. Their files were read elsewhere: here they are only copied to the device.

use super::Engine;
use crate::Result;
use crate::ids::ModelId;
use crate::model::Adapter;
use crate::request::RequestError;

impl Engine {
    /// Puts an adapter onto a base model.
    pub(super) fn add_adapter(&mut self, base: ModelId, adapter: &Adapter) -> Result<ModelId> {
        if self.training.is_some() && base == ModelId::STUDENT {
            return Err(RequestError::BaseIsTrained.into());
        }
        let id = self.next_id;
        self.runner(base)?.add_adapter(id, adapter)?;
        self.next_id = ModelId(id.0 + 1);
        Ok(id)
    }

    /// Puts an adapter in the place of a loaded one. No step is in flight.
    pub(super) fn replace_adapter(&mut self, model: ModelId, adapter: &Adapter) -> Result<u64> {
        let runner = self.runner(model)?;
        if !runner.is_adapter(model) {
            return Err(RequestError::NotAnAdapter { model }.into());
        }
        runner.replace_adapter(model, adapter)
    }

    /// Frees an adapter that no request uses. No step is in flight.
    pub(super) fn remove_adapter(&mut self, model: ModelId) -> Result<()> {
        let runner = self.runner(model)?;
        if !runner.is_adapter(model) {
            return Err(RequestError::NotAnAdapter { model }.into());
        }
        if runner.is_used(model) {
            return Err(RequestError::AdapterInUse { model }.into());
        }
        runner.remove_adapter(model);
        Ok(())
    }
}
