//! `/v1/train/*`: the training run that this server is in.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response, sse};
use futures_util::stream;
use http::{HeaderMap, header};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::fields::Fields;
use crate::openapi::Operation;
use crate::openapi::schema::{Members, count, event, exactly, list, named, number_above, text};
use crate::sse::send;
use crate::train::{TrainControl, TrainEvent, TrainStatus};
use crate::train_proxy::TrainProxy;

fn run(app: &App) -> Result<&Arc<dyn TrainControl>, ApiError> {
    app.training.as_ref().ok_or_else(ApiError::no_training)
}

/// Sends `/v1/train/*` to the run where there is one elsewhere; everything else goes on.
pub(crate) async fn elsewhere(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match proxy_for(&app, request.uri().path()) {
        None => next.run(request).await,
        Some(proxy) => {
            let stop = Arc::clone(&app);
            let answer = proxy.forward(request, app.config.request_timeout, async move { stop.draining().await }).await;
            answer.unwrap_or_else(IntoResponse::into_response)
        }
    }
}

fn proxy_for<'a>(app: &'a App, path: &str) -> Option<&'a TrainProxy> {
    app.train_proxy.as_ref().filter(|_| path.starts_with("/v1/train/"))
}

/// `GET /v1/train/status`
pub(crate) async fn status(State(app): State<Shared>) -> Result<Json<TrainStatus>, ApiError> {
    Ok(Json(run(&app)?.status()))
}

/// `GET /v1/train/events?after_seq=N`: what came after event N; a number that is none counts as absent. Who accepts
/// `text/event-stream` gets the events to come, too, and goes on after a break where `Last-Event-ID` says.
pub(crate) async fn events(
    State(app): State<Shared>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = query.unwrap_or_default();
    let after = query.split('&').find_map(|pair| pair.strip_prefix("after_seq=")?.parse().ok()).unwrap_or(0);
    let run = run(&app)?;
    if !accepts_events(&headers) {
        let (events, latest) = run.events(after);
        return Ok(Json(json!({"events": events, "latest_seq": latest})).into_response());
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let follow = Follow {
        bell: run.bell().listen(),
        run: Arc::clone(run),
        after: last.unwrap_or(after),
        read: VecDeque::new(),
        app,
    };
    let events = stream::unfold(follow, |mut follow| async move {
        let event = follow.next().await?;
        let data = serde_json::to_string(&event).expect("plain JSON");
        let event = sse::Event::default().id(event.seq.to_string()).event(event.kind).data(data);
        Some((Ok::<_, Infallible>(event), follow))
    });
    Ok(send(events))
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|list| list.split(',')).any(|kind| kind.trim().starts_with("text/event-stream"))
}

/// Reads events as they come, until the server stops.
struct Follow {
    app: Shared,
    run: Arc<dyn TrainControl>,
    bell: watch::Receiver<()>,
    /// Number of the newest event that was sent.
    after: u64,
    read: VecDeque<TrainEvent>,
}

impl Follow {
    async fn next(&mut self) -> Option<TrainEvent> {
        loop {
            if let Some(event) = self.read.pop_front() {
                self.after = event.seq;
                return Some(event);
            }
            // Looked at before the events are: the last of them is sent even when the server stops right after it.
            let draining = self.app.is_draining();
            self.bell.mark_unchanged();
            self.read = self.run.events(self.after).0.into();
            if self.read.is_empty() {
                if draining {
                    return None;
                }
                tokio::select! {
                    // The run, which holds the other end, is held here.
                    _ = self.bell.changed() => {}
                    () = self.app.draining() => {}
                }
            }
        }
    }
}

/// `POST /v1/train/stop`
pub(crate) async fn stop(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    run(&app)?.stop();
    Ok(Json(json!({"stop_requested": true})))
}

/// `POST /v1/train/save`
pub(crate) async fn save(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    run(&app)?.save();
    Ok(Json(json!({"save_requested": true})))
}

/// `POST /v1/train/pause`
pub(crate) async fn pause(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    run(&app)?.pause(true);
    Ok(Json(json!({"pause_requested": true})))
}

/// `POST /v1/train/resume`
pub(crate) async fn resume(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    run(&app)?.pause(false);
    Ok(Json(json!({"resume_requested": true})))
}

/// `POST /v1/train/lr` `{"lr": 1e-5}`: the rate at the top of the schedule from the next step on.
pub(crate) async fn lr(State(app): State<Shared>, mut fields: Fields) -> Result<Json<Value>, ApiError> {
    let run = run(&app)?;
    let lr: f64 = fields.need("lr")?;
    fields.finish()?;
    run.set_lr(lr).map_err(|what| ApiError::invalid("lr", what))?;
    Ok(Json(json!({"lr_requested": lr})))
}

fn describe(id: &'static str, summary: &'static str) -> Operation {
    Operation::new(id, summary)
        .refuses(404, "The server is in no training run and knows of none.")
        .refuses(502, "The run of --train-control-url is not there.")
        .refuses(504, "It does not answer.")
}

pub(crate) fn describe_status() -> Operation {
    describe("getTrainStatus", "Where the training run is").answers(named("TrainStatus")).defines_type::<TrainStatus>()
}

pub(crate) fn describe_events() -> Operation {
    let answer = Members::new()
        .always("events", list(named("TrainEvent")), "Oldest first, as far as they are kept.")
        .always("latest_seq", count(), "Number of the newest event.");
    let words = "Events as they come: `id` is the event's number, `event` its kind, `data` a TrainEvent. `Last-Event-ID` says \
                 where to go on.";
    describe("getTrainEvents", "What happened in the training run")
        .query("after_seq", text(), "What came after this event; what is no number counts as 0.")
        .answers(answer.closed())
        .answers_with("text/event-stream", event(words))
        .defines_type::<TrainEvent>()
}

/// A request to the run: what is answered says that it was passed on.
fn describe_request(id: &'static str, summary: &'static str, member: &'static str) -> Operation {
    describe(id, summary).answers(Members::new().always(member, exactly(true), "").closed())
}

pub(crate) fn describe_stop() -> Operation {
    describe_request("stopTraining", "Ends the run at the next step's boundary, with a checkpoint", "stop_requested")
}

pub(crate) fn describe_save() -> Operation {
    describe_request("saveTraining", "Writes a checkpoint at the next step's boundary", "save_requested")
}

pub(crate) fn describe_pause() -> Operation {
    describe_request("pauseTraining", "Holds the run at the next step's boundary", "pause_requested")
}

pub(crate) fn describe_lr() -> Operation {
    let rate = || number_above(0.0, None);
    describe("setLearningRate", "The rate at the top of the schedule from the next step on")
        .reads(Members::new().always("lr", rate(), "In the place of `optim.lr`; warm-up and decay go on with it."))
        .answers(Members::new().always("lr_requested", rate(), "").closed())
}

pub(crate) fn describe_resume() -> Operation {
    describe_request("resumeTraining", "Lets it go on", "resume_requested")
}
