//! Who holds which page of KV memory: accounting ([`PagePool`]) and reuse ([`RadixCache`]).
//!
//! Nothing here touches a device. The tensors live in the engine, which reads page tables and copies from
//! the scheduler's plan.

use crate::ids::ModelId;
use serde::{Deserialize, Serialize};

mod pool;
mod radix;

pub use pool::PagePool;
pub use radix::{PrefixMatch, RadixCache, Tail};

/// Tokens in one page, for every KV format.
pub const PAGE_SIZE: usize = 16;

/// Index of one page in the KV tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageId(pub u32);

impl PageId {
    /// Row of the page in `[pages, ..]` tensors.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Everything besides the tokens that decides the values in a page. Pages are shared under equal keys only,
/// so a weight update can never serve stale KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey {
    /// The model: a base or an adapter on it.
    pub model: ModelId,
    /// Published version of the model's weights; larger is newer.
    pub weights_version: u64,
}

/// Pages that hold `tokens` tokens.
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_SIZE)
}
