//! The memory plan of a device: what a runtime will take, by purpose, made before anything is loaded.
//!
//! A plan is made from what the runtime is asked to do ([`RuntimeSpec`], [`Workload`]) and from the memory that is
//! there. It chooses the size of the KV memory and how many layers keep their activations, is refused when it does not
//! fit, and becomes the limit of the GPU's allocator ([`MemoryPlan::enforce`]). Sizes are those of the allocator's
//! blocks, so the plan is an upper bound that a run comes close to.

mod count;
mod planner;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use autograd::Device;

pub use crate::bytes::{Bytes, BytesError, KvSize, KvSizeError};
pub use crate::error::Entry;
pub use count::kv_bytes;
pub(crate) use count::{graph_pages, graph_rows};
use planner::Planner;

use crate::Result;
use crate::request::RuntimeSpec;

/// How much keys and values get.
#[derive(Debug, Clone, PartialEq)]
pub enum KvWish {
    /// Room for sequences of these lengths, all at once.
    Sequences(Vec<usize>),
    /// As the user says.
    Size(KvSize),
}

/// Which layers keep only their input during the forward pass and run again during backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpointing {
    /// As few as the memory demands.
    #[default]
    Auto,
    /// All.
    On,
    /// None.
    Off,
}

/// What will be asked of a runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// How much keys and values get.
    pub kv: KvWish,
    /// Tokens of the longest sequence that is generated, prompt and new ones together, or scored.
    pub longest: usize,
    /// Tokens of the largest micro-batch.
    pub micro_batch: usize,
    /// Which layers run twice in training.
    pub checkpointing: Checkpointing,
    /// Bytes of what a teacher outside the runtime says of one token; 0 without one.
    pub given_bytes: usize,
    /// Folders of the adapters that are added to the first model after the start.
    pub adapters: Vec<PathBuf>,
}

/// A plan that needs more than there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// Bytes of the plan.
    pub need: Bytes,
    /// Bytes that are free.
    pub have: Bytes,
    /// The largest entry.
    pub entry: Entry,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Bytes by purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The device.
    pub device: Device,
    /// What is free there before anything is loaded; `None` where the system does not tell.
    pub available: Option<u64>,
    /// KV memory of each model.
    pub kv_bytes: u64,
    /// Layers of the student, from the first on, that run again in the backward pass, and all its layers.
    pub recomputed: [usize; 2],
    /// Values that are trained, and all of the student's weights.
    pub parameters: [u64; 2],
    /// Memory of the host that is locked for a GPU.
    pub pinned: u64,
    /// What the graphs of one model take.
    graph_segment: u64,
    entries: BTreeMap<Entry, u64>,
}

impl MemoryPlan {
    /// Plans for `spec` and `workload` with `available` bytes free on the device.
    ///
    /// # Errors
    /// Layers or an adapter that do not exist; a KV memory that does not hold the longest sequence; a share of memory
    /// whose size the system does not tell.
    pub fn of(spec: &RuntimeSpec, workload: &Workload, available: Option<u64>) -> Result<Self> {
        let planner = Planner::new(spec, workload)?;
        let (kv_bytes, recomputed) = planner.choose(available)?;
        planner.check_kv(kv_bytes)?;
        let mut entries = planner.entries(recomputed);
        entries.insert(Entry::Kv, planner.kv(kv_bytes));
        entries.retain(|_, bytes| *bytes > 0);
        let layers = planner.student().config.num_layers;
        Ok(Self {
            device: spec.device,
            available,
            kv_bytes,
            recomputed: [recomputed, layers],
            parameters: planner.parameters(),
            pinned: planner.pinned(),
            graph_segment: planner.graph_segment(),
            entries,
        })
    }

    /// Writes what it chose into the specification that it was made for.
    pub fn apply(&self, spec: &mut RuntimeSpec) {
        spec.engine.kv_bytes = usize::try_from(self.kv_bytes).unwrap_or(usize::MAX);
        if let Some(training) = &mut spec.training {
            training.recomputed_layers = self.recomputed[0];
        }
    }

    /// Bytes of one entry.
    #[must_use]
    pub fn get(&self, entry: Entry) -> u64 {
        self.entries.get(&entry).copied().unwrap_or(0)
    }

    /// All entries that are not zero, in order.
    pub fn entries(&self) -> impl Iterator<Item = (Entry, u64)> + '_ {
        self.entries.iter().map(|(entry, bytes)| (*entry, *bytes))
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        planner::total(self.entries.values())
    }

    /// What the allocator may give: all but the driver's own.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.total() - self.get(Entry::Driver)
    }

    /// Refuses a plan for more than there is.
    ///
    /// # Errors
    /// [`Excess`], with the largest entry.
    pub fn check(&self) -> Result<(), Excess> {
        let Some(have) = self.available.filter(|&have| have < self.total()) else { return Ok(()) };
        let largest = self.entries.iter().max_by_key(|(_, bytes)| **bytes);
        let (entry, bytes) = largest.map_or((Entry::Weights, 0), |(entry, bytes)| (*entry, *bytes));
        Err(Excess { need: Bytes(self.total()), have: Bytes(have), entry, bytes: Bytes(bytes) })
    }

    /// Takes the planned memory from the GPU in one piece and makes the plan the allocator's limit. Elsewhere nothing
    /// happens.
    ///
    /// # Errors
    /// When another process took the memory meanwhile.
    pub fn enforce(&self) -> Result<()> {
        let Some(gpu) = self.device.gpu()? else { return Ok(()) };
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        gpu.set_memory_limit(Some(bytes(self.limit())));
        gpu.set_graph_segment(bytes(self.graph_segment));
        // Graphs have memory of their own.
        let arena = bytes(self.limit() - self.get(Entry::Graphs));
        gpu.reserve(arena.saturating_sub(gpu.memory().reserved))?;
        Ok(())
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Bytes(self.total()))?;
        for (number, (entry, bytes)) in self.entries().enumerate() {
            write!(f, "{}{} {}", if number == 0 { " = " } else { " + " }, entry.name(), Bytes(bytes))?;
        }
        if self.pinned > 0 {
            write!(f, "; pinned on the host {}", Bytes(self.pinned))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
