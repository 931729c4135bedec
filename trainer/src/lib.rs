//! Recipes, data, losses, the on-policy distillation loop, checkpoints and metrics: everything behind `arle-train` and
//! `arle` that is not the runtime.

pub mod data;
mod error;
pub mod recipe;
pub mod schedule;

pub use error::{Error, Result};
