//! From a question to requests: few-shot examples before it, as text or as a conversation, encoded and held against the context.

pub(crate) mod context;
pub(crate) mod encode;
pub(crate) mod length_limit;
pub(crate) mod shots;
