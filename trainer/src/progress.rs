//! Bars and lines on stderr.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::visible;

/// Where progress goes.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    bars: bool,
    lines: bool,
}

impl Progress {
    /// Bars on a terminal, lines always; neither when `quiet`.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self { bars: !quiet && std::io::stderr().is_terminal(), lines: !quiet }
    }

    /// The same, without lines unless `wanted`.
    #[must_use]
    pub fn only_if(self, wanted: bool) -> Self {
        Self { lines: self.lines && wanted, ..self }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        if self.lines {
            say(text);
        }
    }

    /// A bar over `total` of `unit`, with the rate; it disappears when it is done.
    #[must_use]
    pub fn bar(&self, phase: &str, total: u64, unit: &str) -> ProgressBar {
        let target = if self.bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_prefix(phase.to_owned());
        let template = format!("{{prefix:>10}} [{{bar:30}}] {{pos}}/{{len}} {unit}  {{per_sec}}  {{elapsed}} {{msg}}");
        let style = ProgressStyle::with_template(&template).expect("a fixed template");
        bar.set_style(style.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// [`Progress::bar`] that says how long the rest will take.
    #[must_use]
    pub fn bar_with_time_left(&self, phase: &str, total: u64, unit: &str) -> ProgressBar {
        let bar = self.bar(phase, total, unit);
        let template = format!(
            "{{prefix:>10}} [{{bar:30}}] {{pos}}/{{len}} {unit}  {{per_sec}}  {{elapsed}}, {{eta}} left {{msg}}"
        );
        let style = ProgressStyle::with_template(&template).expect("a fixed template");
        bar.set_style(style.progress_chars("=> "));
        bar
    }
}

/// A line on stderr. That nobody reads it any more (a closed terminal) must not stop a run, which would lose its
/// checkpoint.
pub(crate) fn say(text: &str) {
    let _unread = writeln!(std::io::stderr(), "{}", visible(text));
}
