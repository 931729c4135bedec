//! On-policy distillation: recipes, losses, the loop, checkpoints, remote teachers and metrics; what `arle-train` runs.

pub mod checkpoint;
pub mod compatibility;
pub mod control;
mod error;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod prompt;
pub mod recipe;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod teacher;
pub mod turn_end;

pub use error::{Error, Result};
