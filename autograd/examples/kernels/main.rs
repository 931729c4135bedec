//! Speed of the native kernels.
//!
//! `cargo run --release -p autograd --example kernels [FILTER] [SECONDS]`: those of the CPU. One line a kernel: the best of
//! the runs that fit into SECONDS (default 0.5), as time and as GFLOP/s or GB/s. FILTER keeps the lines whose name
//! contains it.
//!
//! `... --example kernels -- --device cuda [--trial]`: what `scripts/bench/gpu` holds against torch, as JSON lines.
//! `--trial` takes small shapes, to see that it runs.

#![allow(clippy::print_stdout)]

mod beside_torch;
mod host;

use std::time::Duration;

use autograd::{Device, Result};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: kernels [FILTER] [SECONDS] | kernels --device cpu|cuda|cuda:N [--trial]";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--device", device] => beside_torch::run(device.parse::<Device>()?, false)?,
        ["--device", device, "--trial"] => beside_torch::run(device.parse::<Device>()?, true)?,
        [] => host::run(String::new(), Duration::from_millis(500)),
        [filter] if !filter.starts_with('-') => host::run(filter.to_owned(), Duration::from_millis(500)),
        [filter, seconds] if !filter.starts_with('-') => {
            host::run(filter.to_owned(), Duration::from_secs_f64(seconds.parse().expect(USAGE)));
        }
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
    Ok(())
}
