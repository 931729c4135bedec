//! Dividing memory into blocks: the bookkeeping of the pool, without a GPU.
//!
//! Segments are what the driver gave. A request takes the smallest free block that fits and leaves the rest as a free
//! block; a returned block joins its free neighbours. Small blocks are cut from the upper end of a hole and large ones
//! from the lower end, so that a few long-lived small ones do not split the room of large ones.

use std::collections::{BTreeMap, BTreeSet};

/// Sizes and addresses of blocks are multiples of it.
pub(super) const GRAIN: usize = 512;
/// What a new segment has at least.
pub(super) const SEGMENT: usize = 64 << 20;
/// Sizes of larger segments are multiples of it; the driver's own pages have this size.
const PAGE: usize = 2 << 20;
/// Blocks up to this size are small.
const SMALL: usize = 1 << 20;

/// The size of the block for a request: at most an eighth more, or a grain.
pub(super) fn rounded(bytes: usize) -> usize {
    let bytes = bytes.max(1);
    // Sizes between two powers of two come in eighths of the lower one: equal requests of nearly equal size share blocks.
    let step = (bytes.next_power_of_two() / 16).max(GRAIN);
    bytes.next_multiple_of(step)
}

/// Sizes of a segment for a block that found no place, in the order in which they are asked for. What was `planned` for
/// all that follows comes first, and not more: the rest of the limit is planned for others.
pub(super) fn segments_for(block: usize, planned: usize) -> [usize; 3] {
    let usual = block.next_multiple_of(PAGE).max(SEGMENT);
    [if planned >= block { planned } else { usual }, usual, block]
}

struct Block {
    bytes: usize,
    segment: u64,
    free: bool,
}

struct Segment {
    bytes: usize,
    /// Set aside by the user: not returned to the driver.
    kept: bool,
}

/// Segments and their blocks, by address.
#[derive(Default)]
pub(super) struct Arena {
    segments: BTreeMap<u64, Segment>,
    blocks: BTreeMap<u64, Block>,
    /// (size, address) of free blocks.
    holes: BTreeSet<(usize, u64)>,
    reserved: usize,
    in_use: usize,
}

impl Arena {
    /// Bytes of all segments.
    pub(super) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Bytes of blocks that are out.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Memory that the driver gave.
    pub(super) fn add(&mut self, base: u64, bytes: usize, kept: bool) {
        self.segments.insert(base, Segment { bytes, kept });
        self.blocks.insert(base, Block { bytes, segment: base, free: true });
        self.holes.insert((bytes, base));
        self.reserved += bytes;
    }

    /// A block of exactly `bytes`, which [`rounded`] gave; none if no hole is large enough.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        let (hole, address) = *self.holes.range((bytes, 0)..).next()?;
        self.holes.remove(&(hole, address));
        let block = self.blocks.get_mut(&address)?;
        let segment = block.segment;
        let rest = hole - bytes;
        let taken = if bytes <= SMALL { address + rest as u64 } else { address };
        self.blocks.remove(&address);
        self.blocks.insert(taken, Block { bytes, segment, free: false });
        if rest > 0 {
            let remainder = if taken == address { address + bytes as u64 } else { address };
            self.blocks.insert(remainder, Block { bytes: rest, segment, free: true });
            self.holes.insert((rest, remainder));
        }
        self.in_use += bytes;
        Some(taken)
    }

    /// Takes a block back.
    pub(super) fn give(&mut self, address: u64) {
        let Some(block) = self.blocks.remove(&address).filter(|block| !block.free) else {
            debug_assert!(false, "no block at {address:#x} is out");
            return;
        };
        self.in_use -= block.bytes;
        let (mut start, mut bytes) = (address, block.bytes);
        let free_in_segment = |b: &Block| b.free && b.segment == block.segment;
        if let Some((&before, b)) = self.blocks.range(..address).next_back().filter(|(_, b)| free_in_segment(b)) {
            start = before;
            bytes += b.bytes;
            self.holes.remove(&(b.bytes, before));
        }
        let end = address + block.bytes as u64;
        if let Some(after) = self.blocks.get(&end).filter(|b| free_in_segment(b)).map(|b| b.bytes) {
            bytes += after;
            self.holes.remove(&(after, end));
            self.blocks.remove(&end);
        }
        self.blocks.insert(start, Block { bytes, segment: block.segment, free: true });
        self.holes.insert((bytes, start));
    }

    /// Forgets the segments without a block in use and names them; those set aside only if `kept`.
    pub(super) fn release(&mut self, kept: bool) -> Vec<(u64, usize)> {
        let blocks = &self.blocks;
        let empty = |base: &u64, segment: &Segment| {
            (kept || !segment.kept) && blocks.get(base).is_some_and(|b| b.free && b.bytes == segment.bytes)
        };
        let gone: Vec<(u64, usize)> =
            self.segments.iter().filter(|(base, s)| empty(base, s)).map(|(base, s)| (*base, s.bytes)).collect();
        for (base, bytes) in &gone {
            self.segments.remove(base);
            self.blocks.remove(base);
            self.holes.remove(&(*bytes, *base));
            self.reserved -= bytes;
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_at_most_an_eighth_or_a_grain_larger_than_its_request() {
        let around = |power: u32| (0..5).map(move |k| (1usize << power) - 2 + k);
        for bytes in (1..36).flat_map(around).chain((1..40).map(|k| k * 1_234_567)) {
            let block = rounded(bytes);
            assert!(block >= bytes && block.is_multiple_of(GRAIN), "{bytes} -> {block}");
            assert!(block - bytes <= (bytes / 8).max(GRAIN), "{bytes} -> {block}");
        }
        assert_eq!(rounded(0), GRAIN);
        assert_eq!(rounded(8 << 20), 8 << 20);
    }

    #[test]
    fn a_planned_segment_is_taken_as_planned() {
        let [small, large] = [3 << 20, 100 << 20];
        assert_eq!(segments_for(small, 0), [SEGMENT, SEGMENT, small]);
        assert_eq!(segments_for(large + 1, 0)[0], large + PAGE);
        // Two of less than the usual size fit where there is room for two as planned.
        assert_eq!(segments_for(small, 44 << 20)[0], 44 << 20);
        assert_eq!(segments_for(small, large)[0], large);
        assert_eq!(segments_for(large, small), [large, large, large]);
    }

    #[test]
    fn neighbours_join_until_the_segment_is_whole_and_can_go() {
        let mut arena = Arena::default();
        arena.add(0x1000_0000, SEGMENT, false);
        // A second segment right behind it: blocks must not join across the border.
        arena.add(0x1000_0000 + SEGMENT as u64, SEGMENT, true);
        let blocks: Vec<u64> = (0..6).map(|_| arena.take(rounded(20 << 20)).unwrap()).collect();
        assert_eq!(arena.take(rounded(20 << 20)), None);
        assert!(arena.release(true).is_empty());
        for address in [3, 0, 5, 1, 4, 2].map(|i: usize| blocks[i]) {
            arena.give(address);
        }
        assert_eq!((arena.in_use(), arena.reserved()), (0, 2 * SEGMENT));
        assert_eq!(arena.release(false), [(0x1000_0000, SEGMENT)]);
        assert_eq!(arena.take(SEGMENT), Some(0x1000_0000 + SEGMENT as u64));
        arena.give(0x1000_0000 + SEGMENT as u64);
        assert_eq!(arena.release(true).len(), 1);
        assert_eq!(arena.reserved(), 0);
    }

    #[test]
    fn the_smallest_hole_that_fits_is_taken() {
        let mut arena = Arena::default();
        arena.add(1 << 40, 64 << 20, false);
        arena.add(2 << 40, 4 << 20, false);
        assert_eq!(arena.take(4 << 20), Some(2 << 40));
        assert_eq!(arena.take(4 << 20), Some(1 << 40));
        // Small ones come from the end.
        assert_eq!(arena.take(GRAIN), Some((1 << 40) + (64 << 20) - GRAIN as u64));
    }

    /// Random takes and gives against a list of live ranges: no overlap, all inside, all joined in the end.
    #[test]
    fn blocks_never_overlap() {
        let mut arena = Arena::default();
        let bases = [1u64 << 40, (1 << 40) + SEGMENT as u64, 5 << 40];
        for base in bases {
            arena.add(base, SEGMENT, false);
        }
        let mut live: Vec<(u64, usize)> = Vec::new();
        let mut state = 12345u64;
        let mut random = |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % limit
        };
        for _ in 0..20_000 {
            if random(5) < 3 {
                let bytes = rounded(1 << random(25)) / GRAIN * GRAIN;
                if let Some(address) = arena.take(bytes) {
                    let end = address + bytes as u64;
                    assert!(bases.iter().any(|base| *base <= address && end <= base + SEGMENT as u64));
                    assert!(live.iter().all(|(a, b)| end <= *a || a + *b as u64 <= address));
                    live.push((address, bytes));
                }
            } else if !live.is_empty() {
                let (address, _) = live.swap_remove(random(live.len()));
                arena.give(address);
            }
            assert_eq!(arena.in_use(), live.iter().map(|(_, bytes)| bytes).sum::<usize>());
        }
        for (address, _) in live {
            arena.give(address);
        }
        assert_eq!(arena.holes.len(), 3);
        assert_eq!(arena.release(false).len(), 3);
    }
}
