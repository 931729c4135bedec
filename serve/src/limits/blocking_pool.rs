//! Work that takes long for long texts, off the event loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use crate::api_error::ApiError;
use crate::limits::memory::{self, Share};

/// Threads for all of it.
pub(crate) const THREADS: usize = 8;
/// Bytes of a text up to which work on it is done at once; on longer ones it takes turns, so that threads are left for short ones.
pub(crate) const SHORT: usize = 64 << 10;
/// Bytes beyond which a text waits for others of its kind only.
const LONG: usize = 1 << 20;
static TURNS: Semaphore = Semaphore::const_new(3);
static LONG_TURNS: Semaphore = Semaphore::const_new(1);

/// Whether somebody still waits for a piece of work.
#[derive(Clone, Default)]
pub(crate) struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// Ends work whose client has left.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        if self.0.load(Ordering::Relaxed) { Err(ApiError::unavailable("the client has left")) } else { Ok(()) }
    }
}

/// Says so when it is dropped, which it is when the client leaves.
struct Waiting(Abandoned);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs work on a thread of its own.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::internal(format!("the work on the request ended: {error}"))))
}

/// Runs work on a text of so many bytes in its turn, with `memory` bytes for it, `what` they are for. The work can ask whether its
/// client has left, and take more.
pub(crate) async fn in_turn<T: Send + 'static>(
    bytes: usize,
    memory: u64,
    what: &str,
    work: impl FnOnce(&Abandoned, Share) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (turn, memory) = match bytes {
        0..=SHORT => (None, 0),
        _ if bytes <= LONG => (TURNS.acquire().await.ok(), memory),
        _ => (LONG_TURNS.acquire().await.ok(), memory),
    };
    let share = memory::wait(memory, what).await?;
    let waiting = Waiting(Abandoned::default());
    let abandoned = waiting.0.clone();
    run_blocking(move || {
        // Held as long as the work goes on, whoever has left.
        let _turn = turn;
        abandoned.check()?;
        work(&abandoned, share)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};
    use std::time::Duration;

    use super::*;

    /// 24 pieces of long work, which goes on until its client leaves or the sender does.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn short_work_passes_long_work_and_who_leaves_ends_it() {
        let (end, ended) = mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let long = || {
            let ended = Arc::clone(&ended);
            tokio::spawn(in_turn(LONG + 1, 1, "this", move |abandoned, _| {
                loop {
                    abandoned.check()?;
                    let waited = ended.lock().expect("no panic").recv_timeout(Duration::from_millis(1));
                    if waited == Err(mpsc::RecvTimeoutError::Disconnected) {
                        return Ok(());
                    }
                }
            }))
        };
        let running: Vec<_> = (0..24).map(|_| long()).collect();
        assert_eq!(in_turn(1, 1, "this", |_, _| Ok(7)).await.expect("not held up"), 7);
        running.iter().take(20).for_each(tokio::task::JoinHandle::abort);
        drop(end);
        for task in running.into_iter().skip(20) {
            task.await.expect("no panic").expect("nobody left");
        }
    }
}
