//! The events of a request on their way from the device thread to its client, who may read them slowly: what waits takes memory
//! of the budget, and no request has more than a part of it waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use runtime::Closed;
use runtime::request::GenerateEvent;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api_error::ApiError;
use crate::limits::memory::{Budget, Share};

/// One request has at most this part of the budget waiting.
const PART: u64 = 16;
/// Bytes of an event besides its text and its alternatives: it, its place in the channel, and what the allocator adds.
const EVENT: u64 = size_of::<Item>() as u64 + 64;
/// Bytes of an alternative to a token.
const ALTERNATIVE: u64 = size_of::<(u32, f64)>() as u64;
/// What the events of an answer take besides themselves while its JSON is made, in their own bytes.
const JSON_COPIES: u64 = 3;

enum Item {
    Event(usize, Instant, GenerateEvent, Share),
    /// There was no room; nothing follows.
    Full(ApiError),
}

/// Where events come in, on the device thread.
#[derive(Clone)]
pub(crate) struct EventSender {
    budget: Arc<Budget>,
    waiting: Arc<AtomicU64>,
    items: mpsc::UnboundedSender<Item>,
}

/// Where they come out.
pub(crate) struct EventReceiver {
    waiting: Arc<AtomicU64>,
    items: mpsc::UnboundedReceiver<Item>,
    /// Memory of what came out, where it is kept.
    kept: Option<Share>,
}

pub(crate) fn event_queue(budget: &Arc<Budget>) -> (EventSender, EventReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicU64::new(0));
    let sender = EventSender { budget: Arc::clone(budget), waiting: Arc::clone(&waiting), items: sender };
    (sender, EventReceiver { waiting, items: receiver, kept: None })
}

impl EventSender {
    /// Sends what happened to sequence `choice`, or ends the request for want of memory.
    pub(crate) fn send(&self, choice: usize, event: GenerateEvent) -> Result<(), Closed> {
        let item = match self.room(size(&event)) {
            Ok(share) => Item::Event(choice, Instant::now(), event, share),
            Err(error) => {
                let _already_closed = self.items.send(Item::Full(error));
                return Err(Closed);
            }
        };
        self.items.send(item).map_err(|_| Closed)
    }

    fn room(&self, bytes: u64) -> Result<Share, ApiError> {
        let limit = self.budget.total() / PART;
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > limit {
            return Err(ApiError::busy(
                format!(
                    "more than {limit} bytes of the answer wait for its client (1/{PART} of --request-memory); read it faster"
                ),
                1,
            ));
        }
        self.budget.take(bytes, "what was generated")
    }
}

impl EventReceiver {
    /// What comes out is kept for an answer in one piece.
    pub(crate) fn keep(&mut self, budget: &Arc<Budget>) {
        self.kept = Some(budget.share());
    }

    /// Memory of all that was kept, and for the JSON that is made of it.
    pub(crate) fn kept(&mut self) -> Result<Option<Share>, ApiError> {
        let Some(mut share) = self.kept.take() else { return Ok(None) };
        share.grow(share.bytes() * JSON_COPIES, "the answer")?;
        Ok(Some(share))
    }

    /// The next event, with the sequence and the time that it came; `None` when nobody sends any more.
    pub(crate) async fn recv(&mut self) -> Option<Result<(usize, Instant, GenerateEvent), ApiError>> {
        Some(match self.items.recv().await? {
            Item::Full(error) => Err(error),
            Item::Event(choice, at, event, share) => {
                self.waiting.fetch_sub(share.bytes(), Ordering::Relaxed);
                if let Some(kept) = &mut self.kept {
                    kept.join(share);
                }
                Ok((choice, at, event))
            }
        })
    }
}

fn size(event: &GenerateEvent) -> u64 {
    EVENT
        + match event {
            GenerateEvent::Token(token) => {
                token.text.len() as u64 + (token.top.len() + token.given.len()) as u64 * ALTERNATIVE
            }
            GenerateEvent::Done { text, .. } => text.len() as u64,
            GenerateEvent::Started { .. } | GenerateEvent::Failed(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> GenerateEvent {
        GenerateEvent::Started { queue_seconds: 0.0 }
    }

    #[tokio::test]
    async fn what_waits_is_counted_and_a_client_that_does_not_read_ends_its_request() {
        let budget = Budget::new(1 << 20);
        let (sender, mut receiver) = event_queue(&budget);
        let mut sent = 0;
        while sender.send(0, started()).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, (1 << 20) / PART / EVENT);
        assert_eq!(budget.used(), sent * EVENT);
        for _ in 0..sent {
            receiver.recv().await.expect("an event").expect("no error");
        }
        assert_eq!(budget.used(), 0);
        let error = receiver.recv().await.expect("an end").expect_err("no room");
        assert_eq!(error.status.as_u16(), 429);
        let (sender, receiver) = event_queue(&budget);
        sender.send(0, started()).expect("room");
        drop(receiver);
        assert_eq!(budget.used(), 0);
        sender.send(0, started()).expect_err("nobody reads");
    }

    #[tokio::test]
    async fn what_is_kept_is_counted_until_the_answer_is_there() {
        let budget = Budget::new(1 << 20);
        let (sender, mut receiver) = event_queue(&budget);
        receiver.keep(&budget);
        for choice in 0..10 {
            sender.send(choice, started()).expect("room");
            receiver.recv().await.expect("an event").expect("no error");
        }
        assert_eq!(budget.used(), 10 * EVENT);
        let share = receiver.kept().expect("room").expect("kept");
        assert_eq!(share.bytes(), 10 * EVENT * (1 + JSON_COPIES));
    }
}
