//! What requests may take: sequences, memory, threads.

pub(crate) mod admission;
pub(crate) mod blocking_pool;
pub(crate) mod event_queue;
pub(crate) mod json_text;
pub(crate) mod memory;
