//! `arle serve` as its clients see it.

mod client;
mod completions;
mod load;
mod refusals;
mod routes;
