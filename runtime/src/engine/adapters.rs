//! Adapters beside the student: slots of their own on its base weights.

use std::path::PathBuf;

use super::{Engine, SlotEngine};
use crate::request::{Slot, SlotSpec};
use crate::{Error, Result};

impl Engine {
    /// Loads an adapter onto the student's base.
    pub(super) fn add_adapter(&mut self, folder: PathBuf) -> Result<Slot> {
        if self.training.is_some() {
            let why = "the student's base may change while it is trained, so no adapter is loaded onto it";
            return Err(Error::Request(why.to_owned()));
        }
        let slot = Slot::Adapter(self.next_adapter);
        let model = SlotSpec { adapter: Some(folder), ..self.spec.student.clone() };
        let engine = SlotEngine::load(slot, &model, &self.spec, Some(self.student.weights()), &|_, _| ())?;
        self.adapters.insert(self.next_adapter, engine);
        self.next_adapter += 1;
        Ok(slot)
    }

    /// Puts the adapter of another folder in the place of a loaded one. No step is in flight.
    pub(super) fn replace_adapter(&mut self, slot: Slot, folder: PathBuf) -> Result<u64> {
        if !matches!(slot, Slot::Adapter(_)) {
            return Err(Error::Request("only adapters are replaced".to_owned()));
        }
        self.slot(slot)?.replace_adapter(&folder)
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
        self.adapters.remove(&number);
        Ok(())
    }
}
