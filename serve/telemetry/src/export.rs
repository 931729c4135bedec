//! From ended spans to the collector: a bounded queue, a thread, a count of everything.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};

use crate::settings::Settings;
use crate::{Error, Result};

/// A collector's answer is a few bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    /// In the queue or on the way.
    waiting: AtomicUsize,
    /// Taken by the collector.
    pub delivered: AtomicU64,
    /// Dropped because the queue was full.
    pub crowded: AtomicU64,
    /// Dropped because the collector did not take them.
    pub refused: AtomicU64,
    /// Whether the newest batch was refused; said once in the log, not for each batch.
    failing: AtomicBool,
}

impl Counts {
    pub(crate) fn lost(&self) -> u64 {
        self.crowded.load(Ordering::Relaxed) + self.refused.load(Ordering::Relaxed)
    }
}

/// The way to the collector, and its counters.
pub(crate) fn processor(settings: &Settings) -> Result<(impl SpanProcessor + 'static, Arc<Counts>)> {
    let agent =
        ureq::Agent::config_builder().timeout_global(Some(settings.timeout)).http_status_as_error(false).build();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(Client(agent.into()))
        .with_endpoint(&settings.endpoint)
        .with_timeout(settings.timeout)
        .build();
    let exporter = exporter.map_err(|error| Error(error.to_string()))?;
    let counts = Arc::new(Counts::default());
    let exporter = Counted { exporter, counts: Arc::clone(&counts) };
    let batches = BatchConfigBuilder::default().with_max_queue_size(settings.queue).build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    Ok((Queue { batches, limit: settings.queue, counts: Arc::clone(&counts) }, counts))
}

/// Lets as many spans in as the batches' own queue holds, so that none is dropped there uncounted.
#[derive(Debug)]
struct Queue {
    batches: BatchSpanProcessor,
    limit: usize,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let enter = |waiting| (waiting < self.limit).then_some(waiting + 1);
        match self.counts.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter) {
            Ok(_) => self.batches.on_end(span),
            Err(_) => _ = self.counts.crowded.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what is delivered.
#[derive(Debug)]
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    counts: Arc<Counts>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        let counts = &self.counts;
        counts.waiting.fetch_sub(spans, Ordering::Relaxed);
        let counter = if result.is_ok() { &counts.delivered } else { &counts.refused };
        counter.fetch_add(spans as u64, Ordering::Relaxed);
        match (&result, counts.failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!("spans are dropped, the collector does not take them: {error}"),
            (Ok(()), true) => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends from the batches' own thread, so it may block.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let (head, mut body) = self.0.run(Request::from_parts(head, &body[..]))?.into_parts();
        let body = body.with_config().limit(MAX_ANSWER).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

impl HttpClient for Client {
    fn send_bytes<'client, 'answer>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'answer>>
    where
        'client: 'answer,
        Self: 'answer,
    {
        Box::pin(async move { self.send(request) })
    }
}
