//! `arle serve` as its clients see it.

pub(crate) mod client;
mod completions;
mod edges;
mod forms;
mod load;
mod openapi;
mod operations;
mod refusals;
mod responses;
mod routes;
mod thinking;
mod traces;
mod training;
