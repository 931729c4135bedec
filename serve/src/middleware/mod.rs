//! What every request passes: its name, the host and page that it comes from, its key.

pub(crate) mod access;
pub(crate) mod cross_origin;
pub(crate) mod request_id;
