//! Numbers beyond which nothing is asked of a run: products of them stay far from the end of 64 bits, and an absurd one is
//! an error instead of a list that no memory holds.

use crate::{Error, Result};

/// Tokens of a sequence, a micro-batch or a scheduler step.
pub const MOST_TOKENS: usize = 1 << 24;
/// Tokens that a limit on what is given may allow; memory is planned for what is there.
pub const MOST_GIVEN: usize = 1 << 31;
/// Sequences of a step.
pub const MOST_SEQUENCES: usize = 1 << 20;
/// Sequences that run at once.
pub const MOST_RUNNING: usize = 1 << 16;
/// Rank of a low-rank branch.
pub const MOST_RANK: usize = 1 << 16;

/// `value`, from 1 to `most`.
///
/// # Errors
/// One outside, with the limits.
pub fn between(key: &str, value: usize, most: usize) -> Result<usize> {
    match value {
        0 => Err(Error::value(key, value, "at least 1")),
        value if value > most => Err(Error::value(key, value, format!("at most {most}"))),
        _ => Ok(value),
    }
}
