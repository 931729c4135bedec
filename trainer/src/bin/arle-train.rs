//! `arle-train RECIPE`: distil a language model.

use std::process::ExitCode;

use clap::Parser;
use trainer::cli::{TrainArgs, finish};

fn main() -> ExitCode {
    finish(TrainArgs::parse().run())
}
