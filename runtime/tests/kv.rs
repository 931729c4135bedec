//! Page accounting and the prefix cache against plain models of both.

use std::collections::BTreeMap;

use proptest::prelude::*;
use runtime::kv::{CacheKey, PAGE_SIZE, PageId, PagePool, PrefixMatch, RadixCache, Tail};
use runtime::request::ModelId;

fn key(model: u32, weights_version: u64) -> CacheKey {
    CacheKey { model: ModelId(model), weights_version }
}

/// Tokens of `chunks` pages; each page repeats its number.
fn tokens(chunks: &[u32]) -> Vec<u32> {
    chunks.iter().flat_map(|&chunk| [chunk; PAGE_SIZE]).collect()
}

fn allocate(pool: &mut PagePool, count: usize) -> Vec<PageId> {
    (0..count).map(|_| pool.allocate().unwrap()).collect()
}

fn release(pool: &mut PagePool, found: &PrefixMatch) {
    let tail = found.tail.map(|tail| tail.page);
    found.pages.iter().chain(&tail).for_each(|&page| pool.release(page));
}

/// Inserts as a sequence does, which then ends.
fn store(cache: &mut RadixCache, pool: &mut PagePool, key: CacheKey, tokens: &[u32]) -> Vec<PageId> {
    let mut pages = allocate(pool, tokens.len() / PAGE_SIZE);
    cache.insert(pool, key, tokens, &mut pages);
    pages.iter().for_each(|&page| pool.release(page));
    pages
}

#[test]
fn a_pool_hands_out_each_page_once() {
    let mut pool = PagePool::new(3);
    assert_eq!(allocate(&mut pool, 3), [PageId(0), PageId(1), PageId(2)]);
    assert_eq!(pool.allocate(), None);
    pool.retain(PageId(1));
    pool.release(PageId(1));
    assert_eq!(pool.allocate(), None);
    pool.release(PageId(1));
    assert_eq!(pool.allocate(), Some(PageId(1)));
    pool.check_integrity();
}

#[test]
#[should_panic(expected = "no reference left")]
fn a_page_released_twice_is_a_broken_invariant() {
    let mut pool = PagePool::new(2);
    let page = pool.allocate().unwrap();
    pool.release(page);
    pool.release(page);
}

#[test]
#[should_panic(expected = "no reference left")]
fn nobody_but_the_cache_drops_the_reference_of_the_cache() {
    let (mut pool, mut cache) = (PagePool::new(2), RadixCache::new(2));
    let pages = store(&mut cache, &mut pool, key(0, 1), &tokens(&[1]));
    pool.release(pages[0]);
}

#[test]
fn a_match_has_full_pages_and_a_tail_but_never_the_last_token() {
    let (mut pool, mut cache) = (PagePool::new(8), RadixCache::new(8));
    let text = tokens(&[1, 2, 3]);
    let pages = store(&mut cache, &mut pool, key(0, 1), &text);
    let tail = |index: usize, tokens| Some(Tail { page: pages[index], tokens });
    let mut longer = text.clone();
    longer.extend([9, 9]);
    let mut diverging = text.clone();
    diverging[20] = 7;
    let cases = [
        (&longer[..], 3, None),
        (&text[..], 2, tail(2, 15)),
        (&text[..33], 2, None),
        (&text[..32], 1, tail(1, 15)),
        (&text[..20], 1, tail(1, 3)),
        (&diverging[..], 1, tail(1, 4)),
        (&text[..1], 0, None),
        (&[], 0, None),
        (&[5; 40][..], 0, None),
    ];
    for (prompt, full, tail) in cases {
        let found = cache.match_prefix(&mut pool, key(0, 1), prompt);
        assert_eq!(found, PrefixMatch { pages: pages[..full].to_vec(), tail }, "{prompt:?}");
        assert_eq!(cache.peek(key(0, 1), prompt), found.tokens());
        found.pages.iter().for_each(|&page| assert_eq!(pool.refs(page), 2));
        release(&mut pool, &found);
    }
    assert_eq!(pool.idle_pages(), 3);
}

#[test]
fn the_longest_tail_wins_among_siblings() {
    let (mut pool, mut cache) = (PagePool::new(64), RadixCache::new(64));
    let sibling =
        |shared: usize, rest: u32| -> Vec<u32> { (0..PAGE_SIZE).map(|i| if i < shared { 50 } else { rest }).collect() };
    for (shared, rest) in [(0, 10), (3, 0), (3, 99), (9, 1), (9, 80), (5, 60)] {
        store(&mut cache, &mut pool, key(0, 1), &sibling(shared, rest));
    }
    for (prompt, expected) in [(sibling(12, 55), 9), (sibling(7, 40), 7), (sibling(4, 2), 4), (sibling(0, 11), 0)] {
        assert_eq!(cache.peek(key(0, 1), &prompt), expected, "{prompt:?}");
    }
}

#[test]
fn keys_do_not_share() {
    let (mut pool, mut cache) = (PagePool::new(8), RadixCache::new(8));
    let text = tokens(&[1, 2]);
    store(&mut cache, &mut pool, key(0, 1), &text);
    let base = key(0, 1);
    for other in [CacheKey { model: ModelId(1), ..base }, CacheKey { weights_version: 2, ..base }] {
        assert_eq!(cache.peek(other, &text), 0, "{other:?}");
    }
    assert_eq!(cache.peek(base, &text), 31);
}

#[test]
fn a_path_is_stored_once() {
    let (mut pool, mut cache) = (PagePool::new(8), RadixCache::new(8));
    let text = tokens(&[1, 2]);
    let mut first = allocate(&mut pool, 2);
    let mut second = allocate(&mut pool, 2);
    cache.insert(&mut pool, key(0, 1), &text[..16], &mut first[..1]);
    cache.insert(&mut pool, key(0, 1), &text, &mut second);
    assert_eq!(second, [PageId(0), PageId(3)], "the page of the first sequence, then its own");
    cache.insert(&mut pool, key(0, 1), &text, &mut first);
    assert_eq!(first, second);
    assert_eq!((pool.free_pages(), pool.refs(PageId(0)), pool.refs(PageId(3))), (6, 3, 3));
    pool.check_integrity();
}

#[test]
fn eviction_takes_the_least_recently_used_leaf_and_nothing_in_use() {
    let (mut pool, mut cache) = (PagePool::new(8), RadixCache::new(8));
    let k = key(0, 1);
    store(&mut cache, &mut pool, k, &tokens(&[1, 2]));
    store(&mut cache, &mut pool, k, &tokens(&[3, 4]));
    store(&mut cache, &mut pool, k, &tokens(&[5]));
    let used = cache.match_prefix(&mut pool, k, &tokens(&[3, 4, 0]));
    let touched = cache.match_prefix(&mut pool, k, &tokens(&[1, 0]));
    release(&mut pool, &touched);
    let cached = |cache: &RadixCache| [1, 3, 5].map(|first| cache.peek(k, &tokens(&[first, first + 1, 0])) / PAGE_SIZE);
    assert_eq!(cached(&cache), [2, 2, 1]);
    assert_eq!(cache.evict(&mut pool, 1), 1);
    assert_eq!(cached(&cache), [1, 2, 1], "page 2 was used before page 5, a leaf before its parent");
    assert_eq!(cache.evict(&mut pool, 1), 1);
    assert_eq!(cached(&cache), [1, 2, 0]);
    assert_eq!(cache.evict(&mut pool, 9), 1, "what a sequence holds stays");
    assert_eq!(cached(&cache), [0, 2, 0]);
    release(&mut pool, &used);
    assert_eq!(cache.evict(&mut pool, 9), 2);
    assert_eq!(pool.free_pages(), 8);
}

#[test]
fn dropping_a_version_frees_its_slot_only_and_refuses_latecomers() {
    let (mut pool, mut cache) = (PagePool::new(8), RadixCache::new(8));
    let text = tokens(&[1, 2]);
    let mut held = allocate(&mut pool, 2);
    cache.insert(&mut pool, key(0, 1), &text, &mut held);
    store(&mut cache, &mut pool, key(1, 1), &text);
    store(&mut cache, &mut pool, key(0, 2), &text);
    cache.drop_version(&mut pool, ModelId(0), 2);
    assert_eq!([key(0, 1), key(1, 1), key(0, 2)].map(|key| cache.peek(key, &text)), [0, 31, 31]);
    assert_eq!(pool.free_pages(), 2, "the sequence keeps its two pages");
    cache.insert(&mut pool, key(0, 1), &text, &mut held);
    assert_eq!(cache.peek(key(0, 1), &text), 0);
    held.iter().for_each(|&page| pool.release(page));
    assert_eq!((pool.free_pages(), pool.idle_pages()), (4, 4));
    pool.check_integrity();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_counts_as_its_model_does(
        total in 1usize..12,
        events in prop::collection::vec((0u8..3, any::<prop::sample::Index>()), 0..200),
    ) {
        let mut pool = PagePool::new(total);
        let mut refs: BTreeMap<PageId, u32> = BTreeMap::new();
        for (event, pick) in events {
            let held = (!refs.is_empty()).then(|| *refs.keys().nth(pick.index(refs.len())).unwrap());
            match (event, held) {
                (0, _) => match pool.allocate() {
                    Some(page) => prop_assert_eq!(refs.insert(page, 1), None),
                    None => prop_assert_eq!(refs.len(), total),
                },
                (1, Some(page)) => {
                    pool.retain(page);
                    *refs.get_mut(&page).unwrap() += 1;
                }
                (2, Some(page)) => {
                    pool.release(page);
                    *refs.get_mut(&page).unwrap() -= 1;
                    refs.retain(|_, count| *count > 0);
                }
                _ => {}
            }
            prop_assert_eq!(pool.free_pages(), total - refs.len());
            refs.iter().for_each(|(&page, &count)| assert_eq!(pool.refs(page), count));
            pool.check_integrity();
        }
    }

    #[test]
    fn a_cache_finds_what_its_model_finds_and_gives_everything_back(
        events in prop::collection::vec((0u8..6, prop::collection::vec(0u32..3, 1..5), 1u64..3), 0..120),
    ) {
        let (mut pool, mut cache) = (PagePool::new(24), RadixCache::new(24));
        // What a model would have computed into each page: everything up to its last token.
        let mut contents: BTreeMap<PageId, (u64, Vec<u32>)> = BTreeMap::new();
        let mut held: Vec<PrefixMatch> = Vec::new();
        for (event, chunks, version) in events {
            let (key, text) = (key(0, version), tokens(&chunks));
            match event {
                0 | 1 if pool.available_pages() >= chunks.len() => {
                    let missing = chunks.len().saturating_sub(pool.free_pages());
                    cache.evict(&mut pool, missing);
                    let mut pages = allocate(&mut pool, chunks.len());
                    for (depth, &page) in pages.iter().enumerate() {
                        contents.insert(page, (version, chunks[..=depth].to_vec()));
                    }
                    cache.insert(&mut pool, key, &text, &mut pages);
                    pages.iter().for_each(|&page| pool.release(page));
                    prop_assert_eq!(cache.peek(key, &text), text.len() - 1);
                }
                2 => held.push(cache.match_prefix(&mut pool, key, &text)),
                3 if !held.is_empty() => release(&mut pool, &held.swap_remove(0)),
                4 => {
                    let (idle, want) = (pool.idle_pages(), chunks.len());
                    prop_assert_eq!(cache.evict(&mut pool, want), want.min(idle), "all idle pages can be had");
                }
                _ => {}
            }
            pool.check_integrity();
            let cached = cache.pages().count();
            let in_use = cache.pages().filter(|&page| !pool.is_idle(page)).count();
            prop_assert_eq!(cached, pool.idle_pages() + in_use);
            let mut path = text.clone();
            path.push(0);
            let found = cache.match_prefix(&mut pool, key, &path);
            for (depth, page) in found.pages.iter().enumerate() {
                prop_assert_eq!(&contents[page], &(version, chunks[..=depth].to_vec()));
            }
            release(&mut pool, &found);
        }
        held.iter().for_each(|found| release(&mut pool, found));
        cache.drop_version(&mut pool, ModelId(0), u64::MAX);
        prop_assert_eq!(pool.free_pages(), 24);
        pool.check_integrity();
    }
}
