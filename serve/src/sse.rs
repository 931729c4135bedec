//! A running request as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse;
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream;
use serde_json::Value;

use crate::api_error::ApiError;
use crate::generation::{Event, Running};

/// Silence after which a comment keeps the connection alive.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Chunks to be sent.
pub(crate) type Chunks = VecDeque<Value>;

/// Turns the events of a request into chunks.
pub(crate) trait Encoder: Send + 'static {
    /// Before anything was generated.
    fn begin(&mut self, chunks: &mut Chunks);
    /// Something happened to a sequence.
    fn event(&mut self, choice: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError>;
    /// All sequences have ended.
    fn end(&mut self, chunks: &mut Chunks);
}

struct Stream<E> {
    running: Running,
    encoder: E,
    chunks: Chunks,
    /// The last chunk but `[DONE]` is in `chunks`.
    ended: bool,
    done: bool,
}

impl<E: Encoder> Stream<E> {
    /// The data of the next event. An error ends the stream, and says so in it.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                return Some(chunk.to_string());
            }
            if self.ended {
                return (!std::mem::replace(&mut self.done, true)).then(|| "[DONE]".to_owned());
            }
            let outcome = match self.running.next().await {
                Some(Ok((choice, event))) => self.encoder.event(choice, event, &mut self.chunks),
                Some(Err(error)) => Err(error),
                None => {
                    self.encoder.end(&mut self.chunks);
                    self.ended = true;
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                self.running.span().in_scope(|| tracing::warn!("a stream ended early: {}", error.message));
                self.chunks.push_back(error.body());
                self.ended = true;
            }
        }
    }
}

/// The response. Dropping it, which a client that leaves does, cancels the request.
pub(crate) fn respond(running: Running, mut encoder: impl Encoder) -> Response {
    let mut chunks = Chunks::new();
    encoder.begin(&mut chunks);
    let state = Stream { running, encoder, chunks, ended: false, done: false };
    let events = stream::unfold(state, |mut state| async move {
        let data = state.next().await?;
        Some((Ok::<_, Infallible>(sse::Event::default().data(data)), state))
    });
    let keep_alive = sse::KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(events).keep_alive(keep_alive).into_response()
}
