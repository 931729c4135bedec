//! The endpoints, a file each, and what their answers have in common.

pub(crate) mod adapters;
mod body;
pub(crate) mod chat;
mod chat_request;
pub(crate) mod completions;
pub(crate) mod dashboard;
pub(crate) mod embeddings;
mod envelope;
pub(crate) mod generate;
pub(crate) mod health;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod pause;
pub(crate) mod responses;
pub(crate) mod rows;
pub(crate) mod score;
pub(crate) mod server_info;
pub(crate) mod stats;
pub(crate) mod tokenize;
pub(crate) mod train;
pub(crate) mod weight_transfer;
