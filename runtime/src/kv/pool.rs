//! Reference counts of KV pages; every operation is O(1).

use super::PageId;

/// Counts of the references to each page.
///
/// A page is *free* (no reference), *held* (a sequence refers to it) or *idle* (only the prefix cache refers
/// to it, so it can be reclaimed): `free + held + idle == total`, always.
#[derive(Debug)]
pub struct PagePool {
    entries: Vec<Entry>,
    free: Vec<PageId>,
    idle: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// References of sequences and of the prefix cache together.
    refs: u32,
    /// Whether one of them is the prefix cache's.
    cached: bool,
}

impl Entry {
    fn is_idle(self) -> bool {
        self.cached && self.refs == 1
    }
}

impl PagePool {
    /// A pool of free pages, handed out lowest id first.
    ///
    /// # Panics
    /// If `total` does not fit a [`PageId`].
    pub fn new(total: usize) -> Self {
        let total = u32::try_from(total).expect("page ids are 32 bits wide");
        Self { entries: vec![Entry::default(); total as usize], free: (0..total).rev().map(PageId).collect(), idle: 0 }
    }

    /// Takes a free page, with one reference for the caller.
    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.entries[page.index()].refs = 1;
        Some(page)
    }

    /// Adds a reference to a page that has one already.
    ///
    /// # Panics
    /// If the page is free: its contents are undefined.
    pub fn retain(&mut self, page: PageId) {
        let entry = &mut self.entries[page.index()];
        assert!(entry.refs > 0, "{page:?} is free and cannot be retained");
        self.idle -= usize::from(entry.is_idle());
        entry.refs += 1;
    }

    /// Drops one reference; the last one frees the page.
    ///
    /// # Panics
    /// If the page is free, or idle (that last reference is the cache's, see `disown`).
    pub fn release(&mut self, page: PageId) {
        let entry = &mut self.entries[page.index()];
        assert!(entry.refs > 0 && !entry.is_idle(), "{page:?} has no reference left to release");
        entry.refs -= 1;
        self.idle += usize::from(entry.is_idle());
        if entry.refs == 0 {
            self.free.push(page);
        }
    }

    /// Adds the prefix cache's reference to a page that a sequence holds.
    pub(super) fn adopt(&mut self, page: PageId) {
        self.retain(page);
        let entry = &mut self.entries[page.index()];
        assert!(!entry.cached, "{page:?} is in the prefix cache already");
        entry.cached = true;
    }

    /// Drops the prefix cache's reference.
    pub(super) fn disown(&mut self, page: PageId) {
        let entry = &mut self.entries[page.index()];
        assert!(entry.cached, "{page:?} is not in the prefix cache");
        self.idle -= usize::from(entry.is_idle());
        entry.cached = false;
        self.release(page);
    }

    /// References to `page`, the prefix cache's included.
    pub fn refs(&self, page: PageId) -> u32 {
        self.entries[page.index()].refs
    }

    /// Whether only the prefix cache refers to `page`.
    pub fn is_idle(&self, page: PageId) -> bool {
        self.entries[page.index()].is_idle()
    }

    /// Pages without a reference.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Pages that only the prefix cache refers to.
    pub fn idle_pages(&self) -> usize {
        self.idle
    }

    /// Pages that an allocation can have: free now, or after an eviction.
    pub fn available_pages(&self) -> usize {
        self.free.len() + self.idle
    }

    /// Size of the pool.
    pub fn total_pages(&self) -> usize {
        self.entries.len()
    }

    /// Recounts everything, O(total); for tests and idle moments.
    ///
    /// # Panics
    /// If a page is lost or counted twice.
    pub fn check_integrity(&self) {
        let referenced = self.entries.iter().filter(|entry| entry.refs > 0).count();
        let idle = self.entries.iter().filter(|entry| entry.is_idle()).count();
        assert_eq!(self.free.len() + referenced, self.total_pages(), "free + referenced pages must be the whole pool");
        assert_eq!(self.idle, idle, "pages held by the prefix cache alone");
        assert!(self.free.iter().all(|&page| self.refs(page) == 0), "a free page is referenced");
    }
}
