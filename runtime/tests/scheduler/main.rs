//! The scheduler, page pool and prefix cache under a mock model whose "KV" lives in simulated pages: a wrong
//! page table, a missing copy or a stale prefix gives wrong tokens.

mod ahead;
mod engine;
mod models;
mod pressure;
mod scoring;
mod sharing;
