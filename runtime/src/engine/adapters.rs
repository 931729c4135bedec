//! Adapters on the base models. Their files were read elsewhere: here they are only copied to the device.

use super::Engine;
use super::order::Order;
use crate::Result;
use crate::ids::ModelId;
use crate::model::Adapter;
use crate::request::RequestError;

impl Engine {
    /// Puts an adapter onto a base model.
    pub(super) fn add_adapter(&mut self, base: ModelId, adapter: Adapter) -> Result<ModelId> {
        if self.trains && base == ModelId::STUDENT {
            return Err(RequestError::BaseIsTrained.into());
        }
        if self.planners.get(base.0 as usize).is_none() {
            return Err(RequestError::NoModel { model: base }.into());
        }
        let id = self.next_id;
        self.ranks.send(Order::AddAdapter { base, id, adapter })?;
        self.planners[base.0 as usize].add_adapter(id);
        self.next_id = ModelId(id.0 + 1);
        Ok(id)
    }

    /// Puts an adapter in the place of a loaded one. No step is in flight.
    pub(super) fn replace_adapter(&mut self, model: ModelId, adapter: Adapter) -> Result<u64> {
        if !self.planner(model)?.is_adapter(model) {
            return Err(RequestError::NotAnAdapter { model }.into());
        }
        self.ranks.send(Order::ReplaceAdapter { model, adapter })?;
        Ok(self.planner(model)?.weights_changed(model))
    }

    /// Frees an adapter that no request uses. No step is in flight.
    pub(super) fn remove_adapter(&mut self, model: ModelId) -> Result<()> {
        let planner = self.planner(model)?;
        if !planner.is_adapter(model) {
            return Err(RequestError::NotAnAdapter { model }.into());
        }
        if planner.is_used(model) {
            return Err(RequestError::AdapterInUse { model }.into());
        }
        self.ranks.send(Order::RemoveAdapter { model })?;
        self.planner(model)?.remove_adapter(model);
        Ok(())
    }
}
