//! Runs work of unknown cost where it can stop nothing else: on a thread with a known stack, for a known time.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// Bytes of stack. Values nest as deep as a template of the largest size can write them, and are compared and dropped by
/// recursion. Only what is used of it is memory.
const STACK: usize = 256 << 20;

/// Far more than the steps and bytes that a template has take on a busy machine.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(10);

type BoundedWork = Box<dyn FnOnce() + Send>;

/// Threads that wait for work.
static IDLE: Mutex<Vec<Sender<BoundedWork>>> = Mutex::new(Vec::new());

/// Runs `work` and waits for it; the error is the reason why there is no result. What does not end in time is left behind.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let waiting = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let worker = waiting.map_or_else(start, Ok)?;
    let (sender, answer) = mpsc::sync_channel(1);
    let job: BoundedWork = Box::new(move || drop(sender.send(catch_unwind(AssertUnwindSafe(work)))));
    worker.send(job).map_err(|_| "its thread has ended".to_owned())?;
    match answer.recv_timeout(TIME_LIMIT) {
        Ok(Ok(done)) => {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
            Ok(done)
        }
        Ok(Err(panic)) => Err(format!("the template engine failed: {}", message(&*panic))),
        Err(RecvTimeoutError::Timeout) => Err(format!("it takes longer than {} s", TIME_LIMIT.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err("its thread has ended".to_owned()),
    }
}

fn start() -> Result<Sender<BoundedWork>, String> {
    let (sender, jobs) = mpsc::channel::<BoundedWork>();
    let thread = Builder::new().name("template".into()).stack_size(STACK);
    let started = thread.spawn(move || jobs.into_iter().for_each(|job| job()));
    started.map_err(|e| format!("no thread with a stack of {} MiB: {e}", STACK >> 20))?;
    Ok(sender)
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason is given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_work_runs() {
        assert!(run(|| panic!("on purpose")).err().is_some_and(|e: String| e.contains("on purpose")));
        assert_eq!(run(|| 2 + 2), Ok(4));
    }
}
