//! `arle serve` as its clients see it.

mod client;
mod completions;
mod edges;
mod forms;
mod load;
mod openapi;
mod refusals;
mod routes;
mod training;
