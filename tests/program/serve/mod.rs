//! `arle serve` as its clients see it.

pub(crate) mod client;
mod completions;
mod forms;
mod load;
mod openapi;
mod refusals;
mod routes;
mod training;
