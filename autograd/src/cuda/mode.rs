//! Whether results on a GPU depend on the batch.
//!
//! Left to itself, a GPU computes each product and each decode step in the way that is fastest for the number of rows,
//! and the order of additions, so the last bits, change with it. In deterministic mode a row's result depends on the row
//! alone: products add over K in one order whatever the number of rows, decoding attends in the order of the tile
//! kernels, and the sampler forms log-probabilities as the losses do. So decode, prefill in any chunks, and training
//! give equal bits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::gpu::{Gpu, lock};
use crate::{Error, Result};

/// The mode of a GPU and how many hold it.
#[derive(Default)]
pub(super) struct State {
    deterministic: AtomicBool,
    holders: Mutex<usize>,
}

/// Keeps a GPU in its mode until it is dropped.
pub struct Mode(&'static Gpu);

impl Gpu {
    /// Puts the GPU into deterministic mode, or keeps it out of it, as long as the value lives. Graphs that are captured
    /// meanwhile stay as they are.
    ///
    /// # Errors
    /// When the other mode is held.
    pub fn hold_mode(&'static self, deterministic: bool) -> Result<Mode> {
        let mut holders: MutexGuard<'_, usize> = lock(&self.mode.holders);
        if *holders > 0 && self.is_deterministic() != deterministic {
            let [held, asked] = [!deterministic, deterministic].map(|d| if d { "on" } else { "off" });
            let why = format!(
                "deterministic mode is {held} for another runtime of this process and was asked {asked}; \
                 end that one first, or run both alike"
            );
            return Err(Error::Device { name: format!("cuda:{}", self.info().ordinal), why });
        }
        self.mode.deterministic.store(deterministic, Ordering::Relaxed);
        *holders += 1;
        Ok(Mode(self))
    }

    /// Whether it is in deterministic mode.
    #[must_use]
    pub fn is_deterministic(&self) -> bool {
        self.mode.deterministic.load(Ordering::Relaxed)
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        let mut holders = lock(&self.0.mode.holders);
        *holders -= 1;
        if *holders == 0 {
            self.0.mode.deterministic.store(false, Ordering::Relaxed);
        }
    }
}
