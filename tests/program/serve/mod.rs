//! `arle serve` as its clients see it.

mod adapters;
mod client;
mod completions;
mod forms;
mod load;
mod openapi;
mod refusals;
mod remote;
mod routes;
mod score;
mod training;
