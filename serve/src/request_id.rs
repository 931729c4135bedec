//! Every request has a name, in the log and in the header `x-request-id` of its answer.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;
use tracing::Instrument;

use crate::app::Shared;
use crate::ids;

const NAME: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken over from a client.
const MAX_LENGTH: usize = 128;

/// Takes over the client's name or makes one, and logs the answer under it.
pub(crate) async fn name(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let given = request.headers().get(NAME).filter(|value| usable(value)).cloned();
    let id = given.unwrap_or_else(|| HeaderValue::try_from(ids::fresh("req_")).expect("letters and digits"));
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    let (method, path, started) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    app.metrics.response(status);
    span.in_scope(|| {
        tracing::info!(%method, path, status = status.as_u16(), seconds = started.elapsed().as_secs_f64(), "answered");
    });
    response.headers_mut().insert(NAME, id);
    response
}

fn usable(value: &HeaderValue) -> bool {
    (1..=MAX_LENGTH).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}
