//! One request inside the scheduler.

use autograd::ops::Token;

use crate::kv::{CacheKey, PAGE_SIZE, PageId, PagePool, pages_for};

use super::SeqRequest;

/// Place in the order of submission; smaller is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Arrival(u64);

impl Arrival {
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
    /// Placeholders after the tokens: samples of steps in flight.
    pub(super) placeholders: usize,
    /// Which sample of the newest step that samples for it is its own.
    pub(super) sample: u32,
    /// Length at which the request is complete.
    pub(super) limit: usize,
    /// First position of a scored prompt whose result is wanted; nothing is sampled for it.
    pub(super) scored_from: Option<usize>,
    /// Whether it may be planned while its last token is a placeholder.
    pub(super) ahead: bool,
    /// Page table: token `i` lives in page `i / PAGE_SIZE`. Empty while waiting.
    pub(super) pages: Vec<PageId>,
    /// Tokens whose KV is in `pages`.
    pub(super) computed: usize,
    /// The same once the steps in flight have run.
    pub(super) planned: usize,
    /// How often it gave up its pages: what a step computed before that is gone.
    pub(super) preemptions: u32,
    /// The step for whose pages it stepped aside.
    pub(super) waits_for: Option<u64>,
    /// Generations that came later and were admitted before it, while it was the first to wait of what is scored.
    pub(super) passed: u32,
}

impl Sequence {
    pub(super) fn new(request: SeqRequest) -> Self {
        Self {
            id: request.id,
            key: request.key,
            tokens: request.prompt.to_vec(),
            placeholders: 0,
            sample: 0,
            limit: request.prompt.len() + request.max_new_tokens,
            scored_from: request.scored_from,
            ahead: request.ahead,
            pages: Vec::new(),
            computed: 0,
            planned: 0,
            preemptions: 0,
            waits_for: None,
            passed: 0,
        }
    }

    /// Tokens and placeholders.
    pub(super) fn len(&self) -> usize {
        self.tokens.len() + self.placeholders
    }

    /// Tokens to compute so that the next one can be sampled, or the prompt is scored. None when it will have all its
    /// tokens, or while its last token is a placeholder and may not be.
    pub(super) fn remaining(&self) -> usize {
        if self.scored_from.is_some() {
            return self.len() - self.planned;
        }
        let waits = self.placeholders > 0 && !self.ahead;
        if waits || self.len() == self.limit { 0 } else { self.len() - self.planned }
    }

    /// The tokens that may come from the cache, and one more: what follows has to be computed.
    pub(super) fn cacheable(&self) -> &[u32] {
        self.scored_from.map_or(&self.tokens, |from| &self.tokens[..=from])
    }

    /// Whether its generation has grown beyond its page table (by one page at most).
    pub(super) fn needs_page(&self) -> bool {
        pages_for(self.len()) > self.pages.len()
    }

    /// Where the token at `position` comes from.
    pub(super) fn token(&self, position: usize) -> Token {
        self.tokens.get(position).map_or(Token::Sampled(self.sample), |&token| Token::Known(token))
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
        (self.computed, self.planned) = (0, 0);
    }

    /// Tokens at the beginning of `self` that will be found in the cache once the steps in flight have run that compute
    /// `leader`'s.
    pub(super) fn shareable_with(&self, leader: &Sequence) -> usize {
        if self.key != leader.key {
            return 0;
        }
        let common = (self.tokens.iter().zip(&leader.tokens[..leader.planned.min(leader.tokens.len())]))
            .take_while(|(a, b)| a == b);
        let full_pages = common.count() / PAGE_SIZE;
        (full_pages * PAGE_SIZE).min(self.cacheable().len() - 1)
    }
}
