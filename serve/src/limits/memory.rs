//! Memory of requests: one budget for bodies and what is made of them, tokenizations, grammars, and what is generated and not
//! sent yet. Weights, KV pages and workspace are in the memory plan; what is here is beside them.
//!
//! Nothing is allocated for a request before its bytes are taken from the budget. Large amounts leave a part of it to small
//! ones, so that whoever holds much does not stop everybody else.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;

use crate::api_error::ApiError;

/// What is smaller may use the whole budget, what is larger all but one part in [`RESERVE`].
const SMALL: u64 = 64 << 10;
const RESERVE: u64 = 8;
/// How long large work waits for memory before it is refused.
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer is handed to the connection in pieces of so many bytes, so that what was sent is known.
const PIECE: usize = 64 << 10;
/// How often it is looked whether memory can be given back to the system, and what is worth it.
const LOOK: Duration = Duration::from_secs(1);
const MUCH: u64 = 16 << 20;
/// Seconds after which a client may come back.
const RETRY_AFTER: u64 = 2;

/// Bytes that requests may take together.
pub(crate) struct Budget {
    total: u64,
    used: AtomicU64,
    /// Bytes that were ever taken, as far as they are worth giving back to the system.
    taken: AtomicU64,
    freed: Notify,
}

/// Bytes of a budget, given back when it is dropped.
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

/// Why bytes could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BudgetError {
    /// There will never be so many.
    Ever,
    /// Others have them.
    Now,
}

impl Budget {
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self { total, used: AtomicU64::new(0), taken: AtomicU64::new(0), freed: Notify::new() })
    }

    /// Bytes that are taken.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// A share of no bytes, to grow.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: 0 }
    }

    /// Takes bytes at once; `what` is what they are for.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64, what: &str) -> Result<Share, ApiError> {
        let mut share = self.share();
        share.grow(bytes, what)?;
        Ok(share)
    }

    /// Takes bytes as soon as there are so many.
    pub(crate) async fn wait(self: &Arc<Self>, bytes: u64, what: &str) -> Result<Share, ApiError> {
        let taken = async {
            loop {
                // Asked for before the attempt, so that what is freed after it is not missed.
                let freed = self.freed.notified();
                match self.add(bytes) {
                    Ok(()) => return Ok(Share { budget: Arc::clone(self), bytes }),
                    Err(BudgetError::Ever) => return Err(self.lacks(BudgetError::Ever, bytes, what)),
                    Err(BudgetError::Now) => freed.await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, taken).await.unwrap_or_else(|_| Err(self.lacks(BudgetError::Now, bytes, what)))
    }

    fn add(&self, bytes: u64) -> Result<(), BudgetError> {
        let limit = if bytes <= SMALL { self.total } else { self.total - self.total / RESERVE };
        if bytes > limit {
            return Err(BudgetError::Ever);
        }
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| BudgetError::Now)?;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn lacks(&self, lack: BudgetError, bytes: u64, what: &str) -> ApiError {
        let [needed, total] = [bytes, self.total].map(mebibytes);
        match lack {
            BudgetError::Ever => ApiError::needs_too_much(format!(
                "{what} needs about {needed} of memory, more than requests may take of {total} (--request-memory); send less at a \
                 time"
            )),
            BudgetError::Now => ApiError::busy(
                format!(
                    "{what} needs about {needed} of memory, and other requests hold the rest of {total} (--request-memory); try \
                     again later"
                ),
                RETRY_AFTER,
            ),
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl Share {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more bytes at once.
    pub(crate) fn grow(&mut self, more: u64, what: &str) -> Result<(), ApiError> {
        self.budget.add(more).map_err(|lack| self.budget.lacks(lack, more, what))?;
        self.bytes += more;
        Ok(())
    }

    /// Gives back what is beyond so many bytes.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let freed = self.bytes.saturating_sub(bytes);
        self.bytes -= freed;
        self.give_back(freed);
    }

    /// The bytes of both.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
            self.budget.freed.notify_waiters();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

tokio::task_local! {
    static CURRENT: Held;
}

/// What the request of this task holds.
#[derive(Clone)]
struct Held(Arc<Mutex<HeldShares>>);

struct HeldShares {
    /// What its body is and was made into: held until its answer begins.
    input: Share,
    /// What its answer is made of: held until the answer is sent.
    answer: Share,
}

/// The budget of this task's request; what is no request takes from one of its own.
fn budget() -> Arc<Budget> {
    let outside = || Budget::new(u64::MAX);
    CURRENT.try_with(|held| Arc::clone(&held.lock().input.budget)).unwrap_or_else(|_| outside())
}

/// Takes bytes for this task's request at once.
pub(crate) fn take(bytes: u64, what: &str) -> Result<Share, ApiError> {
    budget().take(bytes, what)
}

/// Takes bytes for this task's request as soon as there are so many.
pub(crate) async fn wait(bytes: u64, what: &str) -> Result<Share, ApiError> {
    budget().wait(bytes, what).await
}

/// Holds a share until the answer of this task's request begins.
pub(crate) fn hold_input(share: Share) {
    hold(share, |holdings| &mut holdings.input);
}

/// Holds a share until the answer of this task's request is sent.
pub(crate) fn hold_answer(share: Share) {
    hold(share, |holdings| &mut holdings.answer);
}

fn hold(share: Share, which: impl FnOnce(&mut HeldShares) -> &mut Share) {
    let _no_request = CURRENT.try_with(|held| which(&mut held.lock()).join(share));
}

impl Held {
    fn lock(&self) -> std::sync::MutexGuard<'_, HeldShares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds what a request takes for as long as it needs it, and its answer until that is sent.
pub(crate) async fn account(State(budget): State<Arc<Budget>>, request: Request, next: Next) -> Response {
    let budget = &budget;
    let held = Held(Arc::new(Mutex::new(HeldShares { input: budget.share(), answer: budget.share() })));
    let response = CURRENT.scope(held.clone(), next.run(request)).await;
    let mut answer = {
        let mut holdings = held.lock();
        holdings.input.shrink(0);
        std::mem::replace(&mut holdings.answer, budget.share())
    };
    let length = response.body().size_hint().exact();
    match length {
        // A stream: what it sends is made later.
        None => response.map(|body| Body::new(Sending { body, _share: answer })),
        Some(length) if length <= SMALL && answer.bytes() == 0 => response,
        Some(length) => {
            let more = length.saturating_sub(answer.bytes());
            if let Err(error) = answer.grow(more, "the answer") {
                return error.into_response();
            }
            answer.shrink(length);
            let (head, body) = response.into_parts();
            // It is there as a whole already.
            match axum::body::to_bytes(body, usize::MAX).await {
                Ok(bytes) => Response::from_parts(head, Body::new(Pieces::new(bytes, answer))),
                Err(error) => ApiError::internal(error.to_string()).into_response(),
            }
        }
    }
}

/// Gives freed memory back to the system, when requests have taken much since the last time and what they took is free again, or
/// when they have taken as much as there is.
pub(crate) async fn release(budget: Arc<Budget>, release_memory: fn()) {
    let mut returned = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        let taken = budget.taken.load(Ordering::Relaxed);
        let since = taken - returned;
        if since > budget.total || (since > MUCH && budget.used() < MUCH) {
            // A pool that ends has nothing to give back.
            let _ended = tokio::task::spawn_blocking(release_memory).await;
            returned = taken;
        }
    }
}

/// A body that is made while it is sent, with what its request holds.
struct Sending {
    body: Body,
    _share: Share,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

/// A whole body; its bytes are given back when the last of them is sent, or nobody wants them any more.
struct Pieces(Bytes);

struct Owned {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Pieces {
    fn new(bytes: Bytes, share: Share) -> Self {
        Self(Bytes::from_owner(Owned { bytes, _share: share }))
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let length = self.0.len().min(PIECE);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.0.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOTAL: u64 = 8 << 20;

    #[test]
    fn what_never_fits_and_what_does_not_fit_now_differ() {
        let budget = Budget::new(TOTAL);
        let never = budget.take(TOTAL, "this").map(drop).expect_err("a part is for small ones");
        assert_eq!((never.status.as_u16(), never.code), (413, Some("payload_too_large")));
        assert!(never.message.contains("--request-memory") && never.message.contains("8.0 MiB"), "{}", never.message);
        let most = budget.take(TOTAL - TOTAL / RESERVE, "this").expect("there is room");
        let busy = budget.take(SMALL + 1, "this").map(drop).expect_err("no room for large ones");
        assert_eq!((busy.status.as_u16(), busy.retry_after), (429, Some(RETRY_AFTER)));
        let small = budget.take(SMALL, "this").expect("small ones have room left");
        drop((most, small));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_there_is_room() {
        let budget = Budget::new(TOTAL);
        let first = budget.take(TOTAL / 2, "this").expect("there is room");
        let second = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.wait(TOTAL / 2, "this").await.map(|share| share.bytes()) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        assert_eq!(second.await.expect("no panic").expect("there is room"), TOTAL / 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However shares grow, shrink, are joined and dropped: the budget knows their sum, and never has more than there is.
        #[test]
        fn a_budget_knows_the_sum_of_its_shares(steps in prop::collection::vec((0..4_usize, 0..6_usize, 0..TOTAL), 0..64)) {
            let budget = Budget::new(TOTAL);
            let mut shares: Vec<Share> = (0..6).map(|_| budget.share()).collect();
            for (kind, place, bytes) in steps {
                match kind {
                    0 => drop(shares[place].grow(bytes, "this")),
                    1 => shares[place].shrink(bytes),
                    2 => shares[place] = budget.share(),
                    _ => {
                        let other = std::mem::replace(&mut shares[place], budget.share());
                        shares[0].join(other);
                    }
                }
                prop_assert_eq!(shares.iter().map(Share::bytes).sum::<u64>(), budget.used());
                prop_assert!(budget.used() <= budget.total());
            }
            drop(shares);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
