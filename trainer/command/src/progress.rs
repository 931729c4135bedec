//! Bars and lines on stderr.

use std::io::{IsTerminal, Write};
use std::ops::Deref;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
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
            eprint_line(text);
        }
    }

    /// A bar over `total` of `unit`, with the rate; it disappears when it is done.
    #[must_use]
    pub fn bar(&self, phase: &str, total: u64, unit: &str) -> Bar {
        let target = if self.bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_prefix(phase.to_owned());
        let template = format!("{{prefix:>10}} [{{bar:30}}] {{pos}}/{{len}} {unit}  {{per_sec}}  {{elapsed}} {{msg}}");
        let style = ProgressStyle::with_template(&template).expect("a fixed template");
        bar.set_style(style.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(200));
        let lines =
            (self.lines && !self.bars).then(|| tell_now_and_then(bar.clone(), phase.to_owned(), unit.to_owned()));
        Bar { bar, _lines: lines }
    }

    /// [`Progress::bar`] with the time that is left.
    #[must_use]
    pub fn bar_with_time_left(&self, phase: &str, total: u64, unit: &str) -> Bar {
        let bar = self.bar(phase, total, unit);
        let template = format!(
            "{{prefix:>10}} [{{bar:30}}] {{pos}}/{{len}} {unit}  {{per_sec}}  {{elapsed}}, {{eta}} left {{msg}}"
        );
        let style = ProgressStyle::with_template(&template).expect("a fixed template");
        bar.set_style(style.progress_chars("=> "));
        bar
    }
}

/// A bar on a terminal; elsewhere a line every few seconds, until it is dropped.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    /// Closed when the bar is dropped, which ends the thread that prints.
    _lines: Option<Sender<()>>,
}

impl Deref for Bar {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.bar
    }
}

/// Where there is no terminal, a phase that takes longer prints how far it is every so many seconds.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

fn tell_now_and_then(bar: ProgressBar, phase: String, unit: String) -> Sender<()> {
    let (keep, ended) = channel();
    std::thread::spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(BETWEEN_LINES) {
            let (done, of, seconds) = (bar.position(), bar.length().unwrap_or(0), bar.elapsed().as_secs());
            if !bar.is_finished() {
                eprint_line(&format!("{phase:>10} {done} of {of} {unit} in {seconds} s"));
            }
        }
    });
    keep
}

/// A line on stderr. A reader that is gone (a closed terminal) must not stop a run, which would lose its
/// checkpoint.
pub fn eprint_line(text: &str) {
    let _unread = writeln!(std::io::stderr(), "{}", visible(text));
}
