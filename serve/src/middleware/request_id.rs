//! Every request has a name, in the log and in the header `x-request-id` of its answer, and a span where traces are sent.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;
use tracing::Instrument;

use crate::app::{App, Shared};
use crate::ids;
use telemetry::{KeyValue, Scope};

const NAME: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken over from a client.
const MAX_LENGTH: usize = 128;
/// Routes that are asked again and again, by machines and by pages: they have no span.
const WATCHED: [&str; 7] = ["/", "/health", "/ready", "/metrics", "/v1/stats", "/v1/train/status", "/v1/train/events"];

/// Takes over the client's name or makes one, and logs the answer under it.
pub(crate) async fn name(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let given = request.headers().get(NAME).filter(|value| usable(value)).cloned();
    let id = given.unwrap_or_else(|| HeaderValue::try_from(ids::fresh("req_")).expect("letters and digits"));
    let id_text = id.to_str().unwrap_or_default();
    let scope = scope(&app, &request, id_text);
    let span = tracing::info_span!("request", id = id_text, trace_id = scope.trace_id());
    let (method, path, started) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
    let mut response = scope.run(next.run(request)).instrument(span.clone()).await;
    let status = response.status();
    app.metrics.response(status);
    scope.answered(status);
    span.in_scope(|| {
        tracing::info!(%method, path, status = status.as_u16(), seconds = started.elapsed().as_secs_f64(), "answered");
    });
    response.headers_mut().insert(NAME, id);
    response
}

fn usable(value: &HeaderValue) -> bool {
    (1..=MAX_LENGTH).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// The span of a request, under OpenTelemetry's names for HTTP and generative models.
fn scope(app: &App, request: &Request, id: &str) -> Scope {
    let (method, path) = (request.method().as_str(), request.uri().path());
    if WATCHED.contains(&path) {
        return Scope::default();
    }
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.to_owned()),
        KeyValue::new("url.path", path.to_owned()),
        KeyValue::new("arle.request_id", id.to_owned()),
    ];
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    let name = route.as_ref().map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
    let operation = match path {
        "/v1/chat/completions" | "/v1/responses" | "/v1/messages" => Some("chat"),
        "/v1/completions" => Some("text_completion"),
        "/v1/embeddings" => Some("embeddings"),
        _ => None,
    };
    attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
    attributes.extend(operation.map(|operation| KeyValue::new("gen_ai.operation.name", operation)));
    attributes.push(KeyValue::new("gen_ai.provider.name", "arle"));
    app.config.traces.request(name, request.headers(), attributes)
}
