//! Ctrl-C: the first stops at the next step boundary, the second (or one before there is anything to save) at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::progress::eprint_line;

/// A wait looks this often whether it is to end.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Whether a stop was requested.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<Flags>);

/// What is printed when Ctrl-C is pressed.
#[derive(Debug)]
pub struct InterruptMessages {
    /// Before there is anything to save.
    pub early: &'static str,
    /// The first time.
    pub stopping: &'static str,
    /// The second time.
    pub at_once: &'static str,
}

/// For a training run.
pub const TRAINING: InterruptMessages = InterruptMessages {
    early: "interrupted before the run began; its folder is as it was",
    stopping: "stopping after this step, with a checkpoint (again: stop at once, without)",
    at_once: "stopped at once; --resume continues from the newest checkpoint, what came after it is lost",
};

#[derive(Debug, Default)]
struct Flags {
    /// There is a run folder, and someone who looks at `requested`.
    running: AtomicBool,
    requested: AtomicBool,
}

impl Interrupt {
    /// Listens for Ctrl-C (and SIGTERM, SIGHUP).
    ///
    /// # Errors
    /// When another handler is installed already.
    pub fn listen(words: &'static InterruptMessages) -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let flags = Arc::clone(&interrupt.0);
        ctrlc::set_handler(move || {
            if !flags.running.load(Ordering::SeqCst) {
                exit_now(words.early);
            }
            if flags.requested.swap(true, Ordering::SeqCst) {
                exit_now(words.at_once);
            }
            eprint_line(&format!("\n{}", words.stopping));
        })?;
        Ok(interrupt)
    }

    /// From now on there is something to save, so the first Ctrl-C waits for the next boundary.
    pub fn begin(&self) {
        self.0.running.store(true, Ordering::SeqCst);
    }

    /// Stops the run at the next boundary.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::SeqCst);
    }

    /// Waits; false as soon as a stop is requested.
    pub fn wait(&self, time: Duration) -> bool {
        let begun = Instant::now();
        while !self.is_requested() {
            match time.checked_sub(begun.elapsed()) {
                None => return true,
                Some(left) => std::thread::sleep(left.min(POLL_INTERVAL)),
            }
        }
        false
    }

    /// Whether to stop at this boundary.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.requested.load(Ordering::SeqCst)
    }
}

/// Ends the process where it stands. Nothing is run down, which could wait for a thread in the middle of a step; files
/// under their final names are whole at any time, as after a kill.
pub fn exit_now(text: &str) -> ! {
    eprint_line(&format!("\n{text}"));
    // SAFETY: has no precondition.
    unsafe { libc::_exit(130) }
}
