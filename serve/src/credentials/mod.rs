//! What a server is trusted by, and whom it trusts: API keys and certificates.

pub(crate) mod keys;
pub(crate) mod tls;
