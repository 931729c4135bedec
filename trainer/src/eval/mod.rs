//! Evaluation on held-out sets: tasks with lm-evaluation-harness' definitions, run through the batched scheduler.
//!
//! A [`Task`] turns a document into an [`Ask`]; the runner puts few-shot examples before it, which makes [`Request`]s;
//! a backend answers them with [`Response`]s; the task grades these, which makes a [`Sample`], one line of a file; the
//! samples' metrics are aggregated into [`Results`].
//!
//! Numbers are those of lm-evaluation-harness 0.4.13 on the same data, model and options; `scripts/check_eval_lm_eval`
//! compares them.

mod ask;
pub mod data;
pub mod grade;
mod metric;
mod random;
mod results;
mod sample;
pub mod sandbox;
pub mod stats;
mod task;

pub use ask::{Ask, Message, Prompt, Request, Response};
pub use metric::{Aggregation, Metric, MetricValue};
pub use random::PythonRandom;
pub use results::{Group, Results, SampleCounts, TaskResult};
pub use sample::{Header, Outcome, Sample, SampleFile, read_samples};
pub use task::{Doc, Docs, FewShot, Task, TaskInfo};
