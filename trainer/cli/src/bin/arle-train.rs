//! `arle-train RECIPE`: distil a language model.

use clap::Parser;
use cli::{TrainArgs, finish};

/// Large activations are allocated and freed all the time; this one keeps their pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    opd::memory::keep_freed_pages();
    finish(TrainArgs::parse().run())
}
