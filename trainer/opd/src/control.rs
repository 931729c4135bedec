//! The control plane of a run: events and status for readers, requests of operators.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use serve::{Bell, TrainControl, TrainEvent, TrainStatus};

use crate::metrics::StepMetrics;
use crate::recipe;
use command::interrupt::Interrupt;

/// Events that are kept; older ones are dropped.
const KEPT: usize = 512;

/// Time between two looks at Ctrl-C during a pause.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The run as the control plane sees it.
pub struct Control {
    event_log: Mutex<EventLog>,
    /// Notified of every request.
    changed: Condvar,
    bell: Bell,
    save: AtomicBool,
    interrupt: Interrupt,
}

struct EventLog {
    events: VecDeque<TrainEvent>,
    latest: u64,
    status: TrainStatus,
    /// The learning rate that was asked for and is not in effect yet.
    lr: Option<f64>,
    began: Instant,
}

impl Control {
    /// For a run that `interrupt` stops.
    #[must_use]
    pub fn new(interrupt: Interrupt) -> Self {
        let (events, status) = (VecDeque::new(), TrainStatus::default());
        let event_log = Mutex::new(EventLog { events, latest: 0, status, lr: None, began: Instant::now() });
        Self { event_log, changed: Condvar::new(), bell: Bell::default(), save: AtomicBool::new(false), interrupt }
    }

    fn event_log(&self) -> MutexGuard<'_, EventLog> {
        self.event_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event and wakes its readers.
    fn record(&self, kind: &'static str, step: Option<u64>, strings: Map<String, Value>, scalars: Map<String, Value>) {
        self.event_log().add(kind, step, strings, scalars);
        self.bell.ring();
    }

    /// The run begins at `step` of `total`.
    pub(crate) fn start(&self, name: &str, step: u64, total: u64) {
        let mut event_log = self.event_log();
        (event_log.status.iter, event_log.status.total_iters, event_log.status.started) = (step, total, true);
        drop(event_log);
        self.record("run_start", Some(step), texts(&[("run_id", name)]), Map::new());
    }

    /// Numbers of a step.
    pub(crate) fn metrics(&self, metrics: &StepMetrics) {
        let mut event_log = self.event_log();
        let step = metrics.get("step").unwrap_or(0.0) as u64;
        event_log.status.iter = step;
        event_log.status.last_loss = metrics.get("loss").or(event_log.status.last_loss);
        event_log.status.last_kl = metrics.get("teacher_kl").or(event_log.status.last_kl);
        event_log.status.last_lr = metrics.get("optim/lr").or(event_log.status.last_lr);
        drop(event_log);
        let scalars = metrics.as_json().iter().filter(|(name, _)| *name != "step");
        let scalars = scalars.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.record("metric", Some(step), Map::new(), scalars);
    }

    /// A model's completion of a prompt: the texts of a line of samples.jsonl.
    pub(crate) fn sample(&self, line: &Map<String, Value>) {
        let step = line.get("step").and_then(Value::as_u64);
        let texts = line.iter().filter(|(_, value)| value.is_string());
        let texts = texts.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.record("sample", step, texts, Map::new());
    }

    /// A checkpoint was written.
    pub(crate) fn saved(&self, step: u64, path: &str) {
        self.record("checkpoint", Some(step), texts(&[("path", path)]), Map::new());
    }

    /// The run ends: `completed`, `stopped` or `failed`.
    pub(crate) fn end(&self, status: &str) {
        let mut event_log = self.event_log();
        event_log.status.finished = true;
        let step = event_log.status.iter;
        drop(event_log);
        self.record("run_end", Some(step), texts(&[("status", status)]), Map::new());
    }

    /// Whether a checkpoint was asked for since the last time.
    pub(crate) fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::SeqCst)
    }

    /// The learning rate that was asked for since the last time.
    pub(crate) fn take_lr(&self) -> Option<f64> {
        self.event_log().lr.take()
    }

    /// The steps after `step` have this learning rate at the top of their schedule.
    pub(crate) fn lr_changed(&self, step: u64, lr: f64) {
        self.record("status", Some(step), texts(&[("reason", "operator_request"), ("lr_changed", "true")]), rate(lr));
    }

    /// Whether the run is paused and not to stop. Then this waits for the next request, or [`POLL_INTERVAL`].
    pub(crate) fn is_paused(&self) -> bool {
        let event_log = self.event_log();
        if !event_log.status.paused || self.interrupt.is_requested() {
            return false;
        }
        // Ctrl-C notifies nothing, so it is polled.
        drop(self.changed.wait_timeout(event_log, POLL_INTERVAL));
        true
    }

    fn ask(&self, what: &str, scalars: Map<String, Value>) {
        self.record("status", None, texts(&[("reason", "operator_request"), (what, "true")]), scalars);
        self.changed.notify_all();
    }
}

fn texts(texts: &[(&str, &str)]) -> Map<String, Value> {
    texts.iter().map(|(name, text)| ((*name).to_owned(), Value::from(*text))).collect()
}

fn rate(lr: f64) -> Map<String, Value> {
    Map::from_iter([("lr".to_owned(), Value::from(lr))])
}

impl EventLog {
    fn add(&mut self, kind: &'static str, step: Option<u64>, strings: Map<String, Value>, scalars: Map<String, Value>) {
        self.latest += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        let phase = (kind == "metric").then_some("train");
        self.events.push_back(TrainEvent { seq: self.latest, ts_ms: now, kind, step, phase, strings, scalars });
        if self.events.len() > KEPT {
            self.events.pop_front();
            self.status.dropped_metrics += 1;
        }
    }
}

impl TrainControl for Control {
    fn status(&self) -> TrainStatus {
        let event_log = self.event_log();
        TrainStatus { wall_secs: event_log.began.elapsed().as_secs_f64(), ..event_log.status.clone() }
    }

    fn events(&self, after: u64) -> (Vec<TrainEvent>, u64) {
        let event_log = self.event_log();
        (event_log.events.iter().filter(|event| event.seq > after).cloned().collect(), event_log.latest)
    }

    fn bell(&self) -> &Bell {
        &self.bell
    }

    fn stop(&self) {
        self.interrupt.request();
        self.ask("stop_requested", Map::new());
    }

    fn save(&self) {
        self.save.store(true, Ordering::SeqCst);
        self.ask("save_requested", Map::new());
    }

    fn pause(&self, paused: bool) {
        self.event_log().status.paused = paused;
        self.ask(if paused { "pause_requested" } else { "resume_requested" }, Map::new());
    }

    fn set_lr(&self, lr: f64) -> Result<(), String> {
        recipe::learning_rate("lr", lr).map_err(|error| error.to_string())?;
        self.event_log().lr = Some(lr);
        self.ask("lr_requested", rate(lr));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_numbers_and_the_oldest_give_way() {
        let control = Control::new(Interrupt::default());
        control.start("run", 0, 9);
        for step in 1..=600 {
            let mut metrics = StepMetrics::at(step);
            metrics.set("loss", 1.0 / step as f64);
            metrics.set("optim/grad_norm", f64::NAN);
            control.metrics(&metrics);
        }
        let (events, latest) = control.events(598);
        assert_eq!((latest, events.len(), events[0].seq, events[0].step), (601, 3, 599, Some(598)));
        assert_eq!(events[2].scalars["optim/grad_norm"], Value::Null);
        assert_eq!(control.events(0).0.len(), KEPT);
        let status = control.status();
        assert_eq!((status.iter, status.dropped_metrics, status.started, status.finished), (600, 89, true, false));
        assert_eq!(status.last_loss, Some(1.0 / 600.0));
    }

    #[test]
    fn what_is_asked_is_taken_once() {
        let control = Control::new(Interrupt::default());
        control.save();
        assert!(control.take_save() && !control.take_save());
        control.set_lr(3e-5).expect("a rate");
        assert_eq!((control.take_lr(), control.take_lr()), (Some(3e-5), None));
        for bad in [0.0, -1e-5, f64::INFINITY, f64::NAN] {
            assert!(control.set_lr(bad).expect_err("no rate").contains("greater than 0"));
        }
        assert_eq!(control.take_lr(), None);
        control.pause(true);
        assert!(control.is_paused());
        control.stop();
        assert!(!control.is_paused(), "a stop ends a pause");
        let (events, _) = control.events(0);
        assert_eq!(events.last().expect("an event").strings["stop_requested"], "true");
    }
}
