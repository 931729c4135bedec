//! Prefix cache: a radix tree over page-sized chunks of tokens, one tree per [`CacheKey`].
//!
//! A node is one full page and is named by it, so "where in the tree is this page" is an index. The cache
//! holds one reference to each of its pages. A sequence that holds a node's page holds its ancestors' too
//! (matches and inserts hand out whole paths), hence every idle page can be reclaimed, leaves first.
//! Recency comes from a logical clock: equal histories give equal evictions.

use std::collections::{BTreeMap, BTreeSet};

use super::{CacheKey, PAGE_SIZE, PageId, PagePool};
use crate::ids::ModelId;

type Chunk = [u32; PAGE_SIZE];
type Children = BTreeMap<Chunk, PageId>;

/// What the cache has of a sequence. Every page named here carries a reference for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrefixMatch {
    /// Full pages from position 0 on.
    pub pages: Vec<PageId>,
    /// The page after them, when only its beginning matches.
    pub tail: Option<Tail>,
}

/// A page whose first `tokens` tokens match. Others read the rest of it: copy it before writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Source of the copy.
    pub page: PageId,
    /// Valid tokens at its beginning, `1..PAGE_SIZE`.
    pub tokens: usize,
}

impl PrefixMatch {
    /// Tokens that need not be computed.
    pub fn tokens(&self) -> usize {
        self.pages.len() * PAGE_SIZE + self.tail.map_or(0, |tail| tail.tokens)
    }
}

#[derive(Debug)]
struct Node {
    parent: Parent,
    chunk: Chunk,
    children: Children,
    /// Clock at the last use of this page. A parent's may lag behind its children's; it catches up when
    /// it becomes a leaf, which is when it matters.
    used: u64,
}

#[derive(Debug, Clone, Copy)]
enum Parent {
    Root(CacheKey),
    Page(PageId),
}

/// The prefix cache of one page pool.
#[derive(Debug)]
pub struct RadixCache {
    roots: BTreeMap<CacheKey, Children>,
    /// By page; `None` for pages that are not cached.
    nodes: Vec<Option<Node>>,
    /// Nodes without children, least recently used first.
    leaves: BTreeSet<(u64, PageId)>,
    /// By model, the oldest weights version whose pages are kept.
    floors: BTreeMap<ModelId, u64>,
    clock: u64,
}

impl RadixCache {
    /// An empty cache over a pool of `total_pages`.
    pub fn new(total_pages: usize) -> Self {
        Self {
            roots: BTreeMap::new(),
            nodes: (0..total_pages).map(|_| None).collect(),
            leaves: BTreeSet::new(),
            floors: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Whether pages under `key` are kept: its weights are not older than the model's floor.
    pub fn accepts(&self, key: CacheKey) -> bool {
        self.floors.get(&key.model).is_none_or(|&floor| key.weights_version >= floor)
    }

    /// Pages in the cache, idle or in use.
    pub fn pages(&self) -> impl Iterator<Item = PageId> + '_ {
        let cached = |(index, node): (usize, &Option<Node>)| node.is_some().then_some(index);
        (self.nodes.iter().enumerate()).filter_map(cached).map(|index| PageId(index as u32))
    }

    /// How many tokens [`Self::match_prefix`] would find; retains and touches nothing.
    pub fn peek(&self, key: CacheKey, tokens: &[u32]) -> usize {
        self.lookup(key, tokens).tokens()
    }

    /// Finds and retains the longest cached prefix of `tokens`, but never the last token: it has to be
    /// computed for its logits to exist.
    pub fn match_prefix(&mut self, pool: &mut PagePool, key: CacheKey, tokens: &[u32]) -> PrefixMatch {
        let found = self.lookup(key, tokens);
        let tail = found.tail.map(|tail| tail.page);
        let deepest = tail.or(found.pages.last().copied());
        for &page in found.pages.iter().chain(&tail) {
            pool.retain(page);
        }
        if let Some(page) = deepest {
            self.touch(page);
        }
        found
    }

    /// Caches `pages`, which hold the KV of `tokens` (full pages only). Where the tree has a page for the
    /// same prefix already, the caller's reference moves to that one, so that a path is stored once.
    ///
    /// Only the part that is not in the tree yet is walked: appending a page is O(log children).
    ///
    /// # Panics
    /// If `pages` are not exactly those of `tokens`.
    pub fn insert(&mut self, pool: &mut PagePool, key: CacheKey, tokens: &[u32], pages: &mut [PageId]) {
        assert_eq!(tokens.len(), pages.len() * PAGE_SIZE, "only full pages are cached");
        if !self.accepts(key) {
            return;
        }
        self.clock += 1;
        let known = (pages.iter()).rposition(|page| self.nodes[page.index()].is_some()).map_or(0, |last| last + 1);
        let mut parent = match known {
            0 => Parent::Root(key),
            _ => Parent::Page(pages[known - 1]),
        };
        let (chunks, _) = tokens.as_chunks::<PAGE_SIZE>();
        for (chunk, page) in chunks.iter().zip(pages).skip(known) {
            match self.children_mut(parent).get(chunk) {
                Some(&existing) => {
                    pool.retain(existing);
                    pool.release(*page);
                    *page = existing;
                }
                None => self.add_leaf(pool, parent, *chunk, *page),
            }
            parent = Parent::Page(*page);
        }
        if let Parent::Page(page) = parent {
            self.touch(page);
        }
    }

    /// Frees up to `want` idle pages, least recently used leaves first; returns how many.
    pub fn evict(&mut self, pool: &mut PagePool, want: usize) -> usize {
        let mut from = 0;
        for freed in 0..want {
            let mut candidates = self.leaves.range((from, PageId(0))..);
            let Some(&(used, page)) = candidates.find(|(_, page)| pool.is_idle(*page)) else {
                return freed;
            };
            self.remove_leaf(pool, page);
            from = used;
        }
        want
    }

    /// Forgets every page of `model` that was computed with weights older than `version`, and refuses such
    /// pages from now on. Sequences that hold them keep them until they end.
    pub fn drop_version(&mut self, pool: &mut PagePool, model: ModelId, version: u64) {
        let floor = self.floors.entry(model).or_default();
        *floor = version.max(*floor);
        let stale: Vec<CacheKey> = (self.roots.keys().copied()).filter(|&key| !self.accepts(key)).collect();
        stale.into_iter().for_each(|key| self.forget(pool, key));
    }

    /// Forgets every page of `model`, which does not come back. No sequence of it is left.
    pub fn forget_model(&mut self, pool: &mut PagePool, model: ModelId) {
        let keys: Vec<CacheKey> = self.roots.keys().copied().filter(|key| key.model == model).collect();
        keys.into_iter().for_each(|key| self.forget(pool, key));
        self.floors.remove(&model);
    }

    /// Forgets every page. Sequences that hold them keep them until they end.
    pub fn clear(&mut self, pool: &mut PagePool) {
        let keys: Vec<CacheKey> = self.roots.keys().copied().collect();
        keys.into_iter().for_each(|key| self.forget(pool, key));
    }

    fn forget(&mut self, pool: &mut PagePool, key: CacheKey) {
        let mut pending: Vec<PageId> = (self.roots.remove(&key).into_iter()).flat_map(Children::into_values).collect();
        while let Some(page) = pending.pop() {
            let node = self.nodes[page.index()].take().expect("a child is a node");
            self.leaves.remove(&(node.used, page));
            pending.extend(node.children.into_values());
            pool.disown(page);
        }
    }

    fn lookup(&self, key: CacheKey, tokens: &[u32]) -> PrefixMatch {
        let mut found = PrefixMatch::default();
        let Some(mut children) = self.roots.get(&key) else {
            return found;
        };
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        for chunk in usable.as_chunks::<PAGE_SIZE>().0 {
            let Some(&page) = children.get(chunk) else {
                break;
            };
            found.pages.push(page);
            children = &self.node(page).children;
        }
        found.tail = best_tail(children, &usable[found.pages.len() * PAGE_SIZE..]);
        found
    }

    fn add_leaf(&mut self, pool: &mut PagePool, parent: Parent, chunk: Chunk, page: PageId) {
        pool.adopt(page);
        self.children_mut(parent).insert(chunk, page);
        if let Parent::Page(above) = parent {
            let used = self.node(above).used;
            self.leaves.remove(&(used, above));
        }
        self.nodes[page.index()] = Some(Node { parent, chunk, children: Children::new(), used: self.clock });
        self.leaves.insert((self.clock, page));
    }

    fn remove_leaf(&mut self, pool: &mut PagePool, page: PageId) {
        let node = self.nodes[page.index()].take().expect("a leaf is a node");
        self.leaves.remove(&(node.used, page));
        self.children_mut(node.parent).remove(&node.chunk);
        match node.parent {
            Parent::Root(key) => {
                if self.children_mut(node.parent).is_empty() {
                    self.roots.remove(&key);
                }
            }
            Parent::Page(above) => {
                let parent = self.nodes[above.index()].as_mut().expect("a parent is a node");
                parent.used = parent.used.max(node.used);
                if parent.children.is_empty() {
                    self.leaves.insert((parent.used, above));
                }
            }
        }
        pool.disown(page);
    }

    /// Makes `page` the most recently used.
    fn touch(&mut self, page: PageId) {
        self.clock += 1;
        let node = self.nodes[page.index()].as_mut().expect("only cached pages are touched");
        if self.leaves.remove(&(node.used, page)) {
            self.leaves.insert((self.clock, page));
        }
        node.used = self.clock;
    }

    fn node(&self, page: PageId) -> &Node {
        self.nodes[page.index()].as_ref().expect("a page in the tree is a node")
    }

    fn children_mut(&mut self, parent: Parent) -> &mut Children {
        match parent {
            Parent::Root(key) => self.roots.entry(key).or_default(),
            Parent::Page(page) => {
                let node = self.nodes[page.index()].as_mut();
                &mut node.expect("a parent is a node").children
            }
        }
    }
}

/// The child that shares most tokens with `rest`. In lexicographic order it stands next to where `rest`
/// itself would, so two neighbours decide.
fn best_tail(children: &Children, rest: &[u32]) -> Option<Tail> {
    let mut place = [0; PAGE_SIZE];
    let len = rest.len().min(PAGE_SIZE);
    place[..len].copy_from_slice(&rest[..len]);
    let before = children.range(..place).next_back();
    let after = children.range(place..).next();
    let shared = |chunk: &Chunk| chunk.iter().zip(rest).take_while(|(a, b)| a == b).count();
    (before.into_iter().chain(after))
        .map(|(chunk, &page)| Tail { page, tokens: shared(chunk) })
        .filter(|tail| tail.tokens > 0)
        .max_by_key(|tail| tail.tokens)
}
