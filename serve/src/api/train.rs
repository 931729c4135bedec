//! `/v1/train/*`: the training run that this server is in.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::openapi::Operation;
use crate::openapi::schema::{Members, count, exactly, list, named, text};
use crate::train::{TrainControl, TrainEvent, TrainStatus};

fn run(app: &App) -> Result<&Arc<dyn TrainControl>, ApiError> {
    app.training.as_ref().ok_or_else(ApiError::no_training)
}

/// `GET /v1/train/status`
pub(crate) async fn status(State(app): State<Shared>) -> Result<Json<TrainStatus>, ApiError> {
    Ok(Json(run(&app)?.status()))
}

/// `GET /v1/train/events?after_seq=N`: what came after event N; a number that is none counts as absent.
pub(crate) async fn events(State(app): State<Shared>, RawQuery(query): RawQuery) -> Result<Json<Value>, ApiError> {
    let query = query.unwrap_or_default();
    let after = query.split('&').find_map(|pair| pair.strip_prefix("after_seq=")?.parse().ok()).unwrap_or(0);
    let (events, latest) = run(&app)?.events(after);
    Ok(Json(json!({"events": events, "latest_seq": latest})))
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

fn describe(id: &'static str, summary: &'static str) -> Operation {
    Operation::new(id, summary).refuses(404, "The server is in no training run.")
}

pub(crate) fn describe_status() -> Operation {
    describe("getTrainStatus", "Where the training run is").answers(named("TrainStatus")).defines_type::<TrainStatus>()
}

pub(crate) fn describe_events() -> Operation {
    let answer = Members::new()
        .always("events", list(named("TrainEvent")), "Oldest first, as far as they are kept.")
        .always("latest_seq", count(), "Number of the newest event.");
    describe("getTrainEvents", "What happened in the training run")
        .query("after_seq", text(), "What came after this event; what is no number counts as 0.")
        .answers(answer.closed())
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

pub(crate) fn describe_resume() -> Operation {
    describe_request("resumeTraining", "Lets it go on", "resume_requested")
}
