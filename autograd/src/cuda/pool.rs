//! Memory of a GPU.
//!
//! Buffers come from segments that the driver gave once, and go back there when dropped. The one stream runs work in
//! the order of the calls, so a block can be given out again while the work of its previous owner still runs: what the
//! new owner starts comes after it.
//!
//! Buffers allocated while a graph is captured come from the memory of the graph ([`super::GraphMemory`]), which
//! nothing else uses: the graph will write there whenever it runs.

use std::sync::Arc;

use super::arena::{Arena, GRAIN, rounded, segments_for};
use super::driver::cu;
use super::gpu::{Gpu, lock};
use super::graph::Private;
use crate::{Error, Result};

/// Counters of a GPU's memory, in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In live buffers.
    pub in_use: usize,
    /// The most that was in use.
    pub peak_in_use: usize,
    /// Held by this process: in use or cached.
    pub reserved: usize,
    /// The most that was held.
    pub peak_reserved: usize,
    /// Allocations by the driver so far; a steady state makes none.
    pub driver_allocations: u64,
    /// Returns to the driver so far.
    pub driver_frees: u64,
    /// Buffers made so far.
    pub allocations: u64,
}

/// Bytes of the block that a buffer of `bytes` takes.
#[must_use]
pub fn block_bytes(bytes: usize) -> usize {
    rounded(bytes)
}

/// What the GPU's lock guards.
#[derive(Default)]
pub(super) struct Pool {
    arena: Arena,
    stats: MemoryStats,
    limit: Option<usize>,
    /// What a graph memory takes from the driver when it takes something for the first time.
    graph_segment: usize,
    /// Segments of graph memories that ended when the stream could not be waited for.
    orphans: Vec<(u64, usize)>,
    /// The capture that runs; set only while its thread has the turn.
    pub(super) capture: Option<Capture>,
}

pub(super) struct Capture {
    pub(super) memory: Arc<Private>,
    /// Blocks outside `memory` whose buffers were dropped during the capture: the graph still refers to them.
    pub(super) kept: Vec<u64>,
}

/// Memory of a GPU, returned to its pool when dropped.
pub struct Buffer {
    gpu: &'static Gpu,
    address: u64,
    bytes: usize,
    /// The graph memory it came from; none for the pool.
    home: Option<Arc<Private>>,
}

impl Buffer {
    /// Address on the GPU, a multiple of 512.
    #[must_use]
    pub fn ptr(&self) -> u64 {
        self.address
    }

    /// Bytes that were asked for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The GPU it is on.
    #[must_use]
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// The address of the byte `offset`, when `bytes` from there on belong to the buffer.
    pub(super) fn at(&self, op: &'static str, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + offset as u64),
            end => Err(Error::Index {
                op,
                what: "last byte of the range",
                index: end.unwrap_or(usize::MAX).saturating_sub(1),
                limit: self.bytes,
            }),
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x} of cuda:{}", self.bytes, self.address, self.gpu.info().ordinal)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = lock(&self.gpu.pool);
        let before = pool.in_use(self.home.as_ref());
        match (&self.home, &mut pool.capture) {
            (Some(home), _) => lock(&home.arena).give(self.address),
            (None, Some(capture)) => return capture.kept.push(self.address),
            (None, None) => pool.arena.give(self.address),
        }
        pool.stats.in_use -= before - pool.in_use(self.home.as_ref());
        // Dropping the last owner of graph memory locks the pool again.
        drop(pool);
    }
}

impl Pool {
    fn in_use(&self, home: Option<&Arc<Private>>) -> usize {
        home.map_or_else(|| self.arena.in_use(), |home| lock(&home.arena).in_use())
    }

    fn take(&mut self, home: Option<&Arc<Private>>, block: usize) -> Option<u64> {
        let address = match home {
            Some(home) => lock(&home.arena).take(block),
            None => self.arena.take(block),
        }?;
        self.stats.allocations += 1;
        self.stats.in_use += block;
        self.stats.peak_in_use = self.stats.peak_in_use.max(self.stats.in_use);
        Some(address)
    }

    fn add(&mut self, home: Option<&Arc<Private>>, base: u64, bytes: usize, kept: bool) {
        match home {
            Some(home) => lock(&home.arena).add(base, bytes, kept),
            None => self.arena.add(base, bytes, kept),
        }
        self.stats.driver_allocations += 1;
        self.stats.reserved += bytes;
        self.stats.peak_reserved = self.stats.peak_reserved.max(self.stats.reserved);
    }

    /// Bytes that the limit leaves.
    fn room(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.stats.reserved))
    }

    /// Blocks that a graph kept for itself come back.
    pub(super) fn give_kept(&mut self, blocks: &[u64]) {
        let before = self.arena.in_use();
        blocks.iter().for_each(|address| self.arena.give(*address));
        self.stats.in_use -= before - self.arena.in_use();
    }

    /// Segments that left this process.
    fn freed(&mut self, segments: &[(u64, usize)]) {
        self.stats.driver_frees += segments.len() as u64;
        self.stats.reserved -= segments.iter().map(|(_, bytes)| bytes).sum::<usize>();
    }
}

impl Gpu {
    /// Memory with undefined contents; inside a capture, memory of the graph.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when neither the pool nor the GPU, nor the limit, has room.
    pub fn alloc(&'static self, bytes: usize) -> Result<Buffer> {
        let _turn = self.enter()?;
        let home = lock(&self.pool).capture.as_ref().map(|capture| Arc::clone(&capture.memory));
        self.alloc_from(home, bytes)
    }

    /// Memory that outlives every graph, also inside a capture.
    pub(super) fn alloc_lasting(&'static self, bytes: usize) -> Result<Buffer> {
        let _turn = self.enter()?;
        self.alloc_from(None, bytes)
    }

    fn alloc_from(&'static self, home: Option<Arc<Private>>, bytes: usize) -> Result<Buffer> {
        let block = rounded(bytes);
        let mut pool = lock(&self.pool);
        let mut address = pool.take(home.as_ref(), block);
        if address.is_none() && self.grow(&mut pool, home.as_ref(), block)? {
            address = pool.take(home.as_ref(), block);
        }
        let Some(address) = address else { return Err(self.out_of_memory(&pool, bytes)) };
        drop(pool);
        Ok(Buffer { gpu: self, address, bytes, home })
    }

    /// Asks the driver for a segment that holds `block`: a large one, else one that just fits, else again after
    /// everything cached has gone back. False when there is no room.
    fn grow(&self, pool: &mut Pool, home: Option<&Arc<Private>>, block: usize) -> Result<bool> {
        // Graphs keep their addresses, so memory that grows with the captured sizes could not give the small pieces back.
        let planned = home.filter(|home| lock(&home.arena).reserved() == 0).map_or(0, |_| pool.graph_segment);
        let sizes = segments_for(block, planned);
        for released in [false, true] {
            // Freeing waits for the stream, which a capture does not allow.
            if released && (self.is_capturing() || self.release(pool)? == 0) {
                break;
            }
            for bytes in sizes {
                if bytes <= pool.room()
                    && let Some(base) = self.driver_alloc(bytes)?
                {
                    pool.add(home, base, bytes, false);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Sets memory aside in one piece, from which buffers are then made: the arena of a memory plan. Less than a whole
    /// grain (512 bytes) is left out, so that what the limit leaves for others is not touched.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the GPU, or the limit, has no room.
    pub fn reserve(&'static self, bytes: usize) -> Result<()> {
        let _turn = self.enter()?;
        let mut pool = lock(&self.pool);
        let bytes = bytes / GRAIN * GRAIN;
        for released in [false, true] {
            if released && (self.is_capturing() || self.release(&mut pool)? == 0) {
                break;
            }
            if bytes <= pool.room()
                && let Some(base) = self.driver_alloc(bytes)?
            {
                pool.add(None, base, bytes, true);
                return Ok(());
            }
        }
        Err(self.out_of_memory(&pool, bytes))
    }

    /// The most this process may take from the GPU; what it already has counts.
    pub fn set_memory_limit(&self, bytes: Option<usize>) {
        lock(&self.pool).limit = bytes;
    }

    /// What a [`super::GraphMemory`] takes in one piece when it first takes something: what its largest graph needs.
    pub fn set_graph_segment(&self, bytes: usize) {
        lock(&self.pool).graph_segment = bytes;
    }

    /// The counters.
    #[must_use]
    pub fn memory(&self) -> MemoryStats {
        lock(&self.pool).stats
    }

    /// Peaks count from now.
    pub fn reset_peak(&self) {
        let stats = &mut lock(&self.pool).stats;
        (stats.peak_in_use, stats.peak_reserved) = (stats.in_use, stats.reserved);
    }

    /// Returns segments without live buffers to the driver, those of [`Gpu::reserve`] excepted; how many bytes.
    ///
    /// # Errors
    /// When the driver fails, or inside a capture.
    pub fn release_cached(&self) -> Result<usize> {
        let _turn = self.enter()?;
        self.refuse_capture("a return of memory")?;
        self.release(&mut lock(&self.pool))
    }

    fn release(&self, pool: &mut Pool) -> Result<usize> {
        let mut segments = pool.arena.release(false);
        segments.append(&mut pool.orphans);
        pool.freed(&segments);
        self.driver_free(&segments)?;
        Ok(segments.iter().map(|(_, bytes)| bytes).sum())
    }

    /// The end of a graph memory.
    pub(super) fn release_private(&self, segments: Vec<(u64, usize)>) {
        // Nobody could be told of an error; the next call will meet it too.
        let Ok(_turn) = self.enter() else { return };
        let mut pool = lock(&self.pool);
        if self.is_capturing() {
            return pool.orphans.extend(segments);
        }
        pool.freed(&segments);
        let _ = self.driver_free(&segments);
    }

    fn driver_alloc(&self, bytes: usize) -> Result<Option<u64>> {
        use cudarc::driver::sys::{CUresult, cuMemAlloc_v2};
        let mut address = 0;
        // SAFETY: writes one address; the context is current.
        match unsafe { cuMemAlloc_v2(&raw mut address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            status => super::driver::check("cuMemAlloc", status).map(|()| Some(address)),
        }
    }

    fn driver_free(&self, segments: &[(u64, usize)]) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        // SAFETY: the stream lives as long as the process. Work on these blocks may still run.
        unsafe { cu!(cuStreamSynchronize(self.stream)) }?;
        for (base, _) in segments {
            // SAFETY: allocated by cuMemAlloc and forgotten by the arena, so it is freed once and used by nobody.
            unsafe { cu!(cuMemFree_v2(*base)) }?;
        }
        Ok(())
    }

    fn out_of_memory(&self, pool: &Pool, asked: usize) -> Error {
        Error::OutOfMemory {
            device: format!("cuda:{}", self.info().ordinal),
            asked,
            in_use: pool.stats.in_use,
            cached: pool.stats.reserved - pool.stats.in_use,
            free: self.free_bytes().unwrap_or(0),
            total: self.info().total_bytes,
            limit: pool.limit,
        }
    }
}
