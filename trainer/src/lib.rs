//! Recipes, data, losses, the on-policy distillation loop, checkpoints and metrics: everything behind `arle-train` and
//! `arle` that is not the runtime.

pub mod checkpoint;
pub mod cli;
mod compatibility;
pub mod control;
pub mod data;
pub mod device;
mod endpoint;
mod error;
pub mod eval;
mod folder_lock;
pub mod interrupt;
mod limits;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod opd;
pub mod progress;
pub mod prompt;
pub mod recipe;
pub mod schedule;
mod teacher;
mod terminal;
mod turn_end;

pub use error::{Error, Result};
