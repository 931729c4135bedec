//! Lines about what a server does, on stderr.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::{Error, Result};

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum LogFormat {
    /// For people: time, level, the request's id, text and fields.
    Text,
    /// For machines: an object a line; `span.id` is the request's id.
    Json,
}

/// Lines with fields, a request's under its id. `RUST_LOG` chooses them; it is `info` when unset.
pub(super) fn start(format: LogFormat) -> Result<()> {
    let chosen = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&chosen)
        .map_err(|error| Error::value("RUST_LOG", &chosen, format!("such as info or serve=debug ({error})")))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A line that cannot be written would cause an error message on stderr, whose reader is gone too, and end the thread.
    let lines = lines.log_internal_errors(false);
    // Another subscriber is installed only where this is called twice.
    let _installed = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).try_init(),
    };
    Ok(())
}
