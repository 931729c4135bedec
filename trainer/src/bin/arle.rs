//! `arle`: generate, score, measure.

use std::process::ExitCode;

use clap::Parser;
use trainer::cli::{Arle, finish};

fn main() -> ExitCode {
    finish(Arle::parse().run())
}
