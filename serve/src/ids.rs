//! Names and seeds that nobody chose.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{SystemTime, UNIX_EPOCH};

/// 64 bits that differ from call to call; not for secrets.
pub(crate) fn random() -> u64 {
    // Its keys come from the system and change with every instance.
    RandomState::new().hash_one(0)
}

/// `prefix` and 32 hexadecimal digits.
pub(crate) fn fresh(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
