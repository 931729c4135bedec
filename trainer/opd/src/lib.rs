//! On-policy distillation: recipes, losses, the loop, checkpoints, remote teachers and metrics; what `arle-train` runs.
//!
//! A run is a [`recipe::Recipe`]; [`run::run`] trains it. The loop itself is one function, in `run/train.rs`.
//!
//! ```
//! use std::path::Path;
//!
//! use opd::recipe::{Override, Recipe};
//!
//! # fn main() -> opd::Result<()> {
//! let text = r#"
//!     student.model = "hf:Qwen/Qwen3-0.6B"
//!     teacher.model = "hf:Qwen/Qwen3-1.7B"
//!     data.path = "prompts.jsonl"
//!     lora.r = 32
//!     loss.kind = "reverse_kl"
//!     rollout.prompts_per_step = 16
//!     schedule.max_steps = 100
//! "#;
//! let recipe = Recipe::parse(text, "text", "example", Path::new("/recipes"), &[Override::parse("rollout.group_size=4")?])?;
//! assert_eq!(recipe.sequences_per_step(), 64);
//! assert_eq!(recipe.loss(), "reverse_kl");
//! # Ok(())
//! # }
//! ```

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
