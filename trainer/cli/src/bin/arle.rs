//! `arle`: generate, score, measure.

use clap::Parser;
use cli::{Arle, finish};

/// Large activations are allocated and freed all the time; this one keeps their pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    opd::memory::keep_freed_pages();
    finish(Arle::parse().run())
}
