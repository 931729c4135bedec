//! A running request as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse;
use axum::response::{IntoResponse, Response, Sse};
use futures_util::{Stream as Events, stream};
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use crate::api_error::ApiError;
use crate::generation::{Event, Running};

/// Silence after which a comment keeps the connection alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells a proxy not to collect what is sent before it passes it on.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Chunks to be sent.
pub(crate) type Chunks = VecDeque<Value>;

/// Turns the events of a request into chunks.
pub(crate) trait Encoder: Send + 'static {
    /// Whether every chunk has a `type`, which names its event; a stream of other chunks ends with `[DONE]`.
    const TYPED: bool = false;
    /// Before anything was generated.
    fn begin(&mut self, chunks: &mut Chunks);
    /// Something happened to a sequence.
    fn event(&mut self, choice: usize, event: Event, chunks: &mut Chunks) -> Result<(), ApiError>;
    /// All sequences have ended.
    fn end(&mut self, chunks: &mut Chunks);
    /// Nothing more can be generated.
    fn fail(&mut self, error: &ApiError, chunks: &mut Chunks) {
        chunks.push_back(error.body());
    }
}

struct Stream<E> {
    running: Running,
    encoder: E,
    chunks: Chunks,
    /// The last chunk is in `chunks`, but for `[DONE]`.
    ended: bool,
    done: bool,
}

impl<E: Encoder> Stream<E> {
    /// The next event. An error ends the stream, and says so in it.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                let name = chunk["type"].as_str().filter(|_| E::TYPED);
                let event = name.map_or_else(sse::Event::default, |name| sse::Event::default().event(name));
                return Some(event.data(chunk.to_string()));
            }
            if self.ended {
                let done = std::mem::replace(&mut self.done, true);
                return (!done && !E::TYPED).then(|| sse::Event::default().data("[DONE]"));
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
                self.encoder.fail(&error, &mut self.chunks);
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
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    send(events)
}

/// Events as a response, with a comment wherever they are silent for long.
pub(crate) fn send(events: impl Events<Item = Result<sse::Event, Infallible>> + Send + 'static) -> Response {
    send_alive(events, KEEP_ALIVE)
}

fn send_alive(
    events: impl Events<Item = Result<sse::Event, Infallible>> + Send + 'static,
    silence: Duration,
) -> Response {
    ([UNBUFFERED], Sse::new(events).keep_alive(sse::KeepAlive::new().interval(silence))).into_response()
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn silence_is_broken_by_comments() {
        let one = stream::iter([Ok(sse::Event::default().data("one"))]);
        let response = send_alive(one.chain(stream::pending()), Duration::from_millis(1));
        assert_eq!(response.headers()[UNBUFFERED.0], "no");
        let mut body = response.into_body().into_data_stream();
        for want in ["data: one\n\n", ":\n\n", ":\n\n"] {
            let got = body.next().await.expect("it goes on").expect("bytes");
            assert_eq!(got, want);
        }
    }
}
