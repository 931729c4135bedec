//! Pinned host memory, which the GPU reads and writes while the host goes on.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::ptr::null_mut;

use cudarc::driver::sys::{CUevent_flags, CUresult, CUstream};

use super::driver::{check, cu};
use super::gpu::{Gpu, Mark, lock};
use crate::{Error, Result};

/// Uploads go through a ring of this size, so that many small ones are in flight at once.
const RING: usize = 64 << 20;
/// Longer uploads are cut, so that the host fills one piece while the GPU fetches another.
pub(super) const PIECE: usize = RING / 4;

/// Pinned memory, freed with the value.
pub(crate) struct Pinned {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, owned by the value.
unsafe impl Send for Pinned {}
// SAFETY: as above; writing needs `&mut` or the care of the caller.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// The context must be current.
    fn new(bytes: usize) -> Result<Self> {
        let mut address = null_mut();
        // SAFETY: writes one address; portable (1), so every GPU may use it.
        unsafe { cu!(cuMemHostAlloc(&raw mut address, bytes, 1)) }?;
        Ok(Self { address: address.cast(), bytes })
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.address
    }

    /// The address of the byte `offset`.
    ///
    /// # Panics
    /// When the `bytes` from there on are not all inside.
    pub(super) fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "bytes outside the pinned memory");
        // SAFETY: inside, as was checked.
        unsafe { self.address.add(offset) }
    }

    /// Copies `bytes` to the byte `offset`.
    ///
    /// # Panics
    /// When they do not fit.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let target = self.at(offset, bytes.len());
        // SAFETY: room for them, as was checked, which nobody else uses.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: from cuMemHostAlloc, freed once.
        unsafe { cudarc::driver::sys::cuMemFreeHost(self.address.cast()) };
    }
}

/// Staging memory of uploads: pieces are handed out in a circle, each free again when its event has passed.
pub(super) struct Ring {
    memory: Pinned,
    head: usize,
    flying: VecDeque<(Range<usize>, Mark)>,
}

impl Ring {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { memory: Pinned::new(RING)?, head: 0, flying: VecDeque::new() })
    }

    /// Room for `bytes`, at most [`PIECE`], that the GPU does not read any more.
    pub(super) fn place(&mut self, gpu: &Gpu, bytes: usize) -> Result<*mut u8> {
        let start = if self.head + bytes > RING { 0 } else { self.head };
        let overlaps = |other: &Range<usize>| other.start < start + bytes && start < other.end;
        while self.flying.iter().any(|(range, _)| overlaps(range)) {
            let Some((_, mark)) = self.flying.pop_front() else { break };
            gpu.wait(mark)?;
        }
        // Without this the list would grow until the ring is once around.
        while let Some(mark) = self.flying.front().map(|(_, mark)| *mark)
            && gpu.passed(mark)?
        {
            self.flying.pop_front();
            gpu.recycle(mark);
        }
        self.head = start;
        // SAFETY: `start + bytes <= RING`.
        Ok(unsafe { self.memory.address().add(start) })
    }

    /// The copy out of the place of `bytes` is under way.
    pub(super) fn launched(&mut self, gpu: &Gpu, bytes: usize) -> Result<()> {
        // Starts of pieces stay aligned for the copy engine.
        let end = (self.head + bytes).next_multiple_of(64).min(RING);
        self.flying.push_back((self.head..end, gpu.mark()?));
        self.head = end;
        Ok(())
    }
}

/// Pinned memory for downloads that waits for its next use, by size.
#[derive(Default)]
pub(super) struct Spare(HashMap<usize, Vec<Pinned>>);

impl Gpu {
    pub(super) fn take_pinned(&self, bytes: usize) -> Result<Pinned> {
        let size = bytes.next_power_of_two().max(4096);
        match lock(&self.spare).0.get_mut(&size).and_then(Vec::pop) {
            Some(pinned) => Ok(pinned),
            None => Pinned::new(size),
        }
    }

    pub(super) fn give_pinned(&self, pinned: Pinned) {
        if pinned.bytes <= PIECE {
            lock(&self.spare).0.entry(pinned.bytes).or_default().push(pinned);
        }
    }

    /// Pinned memory of its own.
    pub(crate) fn pin(&self, bytes: usize) -> Result<Pinned> {
        let _turn = self.enter()?;
        Pinned::new(bytes.max(1)).map_err(|e| match e {
            Error::Cuda { code, .. } if code == "CUDA_ERROR_OUT_OF_MEMORY" => Error::HostMemory { asked: bytes },
            other => other,
        })
    }

    /// An event after all work so far.
    pub(super) fn mark(&self) -> Result<Mark> {
        self.mark_on(self.stream)
    }

    /// An event after all work of a stream so far.
    pub(super) fn mark_on(&self, stream: CUstream) -> Result<Mark> {
        let mark = match lock(&self.events).pop() {
            Some(mark) => mark,
            None => {
                let mut event = null_mut();
                // SAFETY: writes one handle.
                unsafe { cu!(cuEventCreate(&raw mut event, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)) }?;
                Mark(event)
            }
        };
        // SAFETY: event and stream are alive.
        unsafe { cu!(cuEventRecord(mark.0, stream)) }?;
        Ok(mark)
    }

    /// Whether the work before the event is done.
    pub(super) fn passed(&self, mark: Mark) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { cudarc::driver::sys::cuEventQuery(mark.0) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check("cuEventQuery", status).map(|()| true),
        }
    }

    /// Waits for the work before the event, which is then free for another use.
    pub(super) fn wait(&self, mark: Mark) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { cu!(cuEventSynchronize(mark.0)) }?;
        self.recycle(mark);
        Ok(())
    }

    pub(super) fn recycle(&self, mark: Mark) {
        lock(&self.events).push(mark);
    }
}
