//! `arle serve` as its clients see it.

mod adapters;
pub(crate) mod client;
mod completions;
mod edges;
mod forms;
mod guards;
mod load;
mod messages;
mod openapi;
mod operations;
mod refusals;
mod remote;
mod responses;
mod routes;
mod score;
mod thinking;
mod traces;
mod training;
mod vllm;
