//! One request inside the scheduler.

use crate::kv::{CacheKey, PAGE_SIZE, PageId, PagePool, pages_for};

use super::SeqRequest;

/// Place in the order of submission; smaller is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Ticket(u64);

impl Ticket {
    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: super::RequestId,
    pub(super) key: CacheKey,
    /// Prompt, then what was sampled.
    pub(super) tokens: Vec<u32>,
    /// Length at which the request is complete.
    pub(super) limit: usize,
    /// Page table: token `i` lives in page `i / PAGE_SIZE`. Empty while waiting.
    pub(super) pages: Vec<PageId>,
    /// Tokens whose KV is in `pages`.
    pub(super) computed: usize,
    /// Whether it lost its pages before.
    pub(super) preempted: bool,
    /// Whether it stepped aside once for a prefix that another sequence was computing.
    pub(super) stepped_aside: bool,
}

impl Sequence {
    pub(super) fn new(request: SeqRequest) -> Self {
        Self {
            id: request.id,
            key: request.key,
            tokens: request.prompt.to_vec(),
            limit: request.prompt.len() + request.max_new_tokens,
            pages: Vec::new(),
            computed: 0,
            preempted: false,
            stepped_aside: false,
        }
    }

    /// Known tokens that are not computed.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether its generation has grown beyond its page table (by one page at most).
    pub(super) fn needs_page(&self) -> bool {
        pages_for(self.tokens.len()) > self.pages.len()
    }

    /// Full, computed pages.
    pub(super) fn full_pages(&self) -> usize {
        self.computed / PAGE_SIZE
    }

    /// Gives up the pages and what they hold; the tokens stay.
    pub(super) fn release_pages(&mut self, pool: &mut PagePool) {
        for page in self.pages.drain(..) {
            pool.release(page);
        }
        self.computed = 0;
    }

    /// Tokens at the beginning of `self` that would be found in the cache once all of `leader` is computed.
    pub(super) fn shareable_with(&self, leader: &Sequence) -> usize {
        if self.key != leader.key {
            return 0;
        }
        let common = (self.tokens.iter().zip(&leader.tokens)).take_while(|(a, b)| a == b);
        let full_pages = common.count() / PAGE_SIZE;
        (full_pages * PAGE_SIZE).min(self.tokens.len() - 1)
    }
}
