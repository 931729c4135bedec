//! From sockets to requests.

pub(crate) mod client_stream;
pub(crate) mod connections;
pub(crate) mod server;
pub(crate) mod write_timeout;
