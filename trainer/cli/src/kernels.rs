//! `arle kernels`

use autograd::cuda::{Gpu, KNOWN_ARCHES, compile_all, kernel_dir};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{print, print_json};
use crate::{Error, Result};
use command::progress::Progress;
use opd::memory::Bytes;

const EXAMPLES: &str = "Examples:
  arle kernels build                            for the GPU of this machine
  arle kernels build --arch sm_90a              for H100 and H200, on a machine without a GPU
  ARLE_CACHE=/image/cache arle kernels build --arch sm_80 --json

Kernels are compiled by NVRTC when a program first needs them, which takes a while; building them ahead, into an image
say, saves that. What is in the folder already is not compiled again. NVRTC comes with the CUDA toolkit or by
`pip install nvidia-cuda-nvrtc`; programs use what was compiled by the version that they find.

GPUs: sm_80 A100, sm_86 A10 and RTX 30, sm_89 L4, L40 and RTX 40, sm_90a H100 and H200, sm_100a B200, sm_103a B300,
sm_120a RTX 50. The folder is $ARLE_CACHE/kernels, else $XDG_CACHE_HOME/arle/kernels, else ~/.cache/arle/kernels.";

/// Compiled GPU kernels.
#[derive(Debug, Args)]
pub(super) struct KernelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compile the GPU kernels ahead of time.
    Build(BuildArgs),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct BuildArgs {
    /// Architecture to compile for, such as sm_90a [default: that of cuda:0].
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Print one JSON object: arch, files, cached, bytes, folder.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &KernelsArgs) -> Result<()> {
    let Command::Build(args) = &args.command;
    build(args)
}

fn build(args: &BuildArgs) -> Result<()> {
    let arch = match &args.arch {
        Some(arch) if KNOWN_ARCHES.contains(&arch.as_str()) => arch.as_str(),
        Some(arch) => return Err(Error::value("--arch", arch, format!("one of {}", KNOWN_ARCHES.join(", ")))),
        None => Gpu::get(0).map_err(runtime::Error::from)?.arch(),
    };
    let progress = Progress::new(args.json);
    let built = compile_all(arch, &|line| progress.line(line)).map_err(runtime::Error::from)?;
    let folder = kernel_dir().map_err(runtime::Error::from)?;
    for file in built.iter().filter(|file| file.cached) {
        progress.line(&format!("cached {} for {arch}", file.file));
    }
    let files = built.len();
    let cached = built.iter().filter(|file| file.cached).count();
    let bytes: usize = built.iter().map(|file| file.bytes).sum();
    if args.json {
        return print_json(
            &json!({ "arch": arch, "files": files, "cached": cached, "bytes": bytes, "folder": folder }),
        );
    }
    let size = Bytes(bytes as u64);
    print(&format!("{files} files for {arch}, {cached} of them cached, {size} in {}\n", folder.display()))
}
