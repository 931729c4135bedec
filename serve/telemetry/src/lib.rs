//! Traces: what a request or a training step spent its time on, sent to an OpenTelemetry collector (OTLP over HTTP).
//!
//! Nothing waits for the collector. A span that has ended goes into a bounded queue, from which a thread sends batches; what
//! does not fit, or cannot be delivered, is dropped and counted.

mod export;
mod settings;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, StatusCode};
pub use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Array, Context, Key, Value};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use export::Counts;
use settings::Settings;

/// A setting of traces that cannot be honoured.
#[derive(Debug, thiserror::Error)]
#[error("traces: {0}")]
pub struct Error(String);

/// Result of a call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How long the end of a program waits for the last spans to be delivered.
const FLUSH: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// The span of the request that a task answers.
    static CURRENT: Scope;
}

/// Where spans go; nowhere by default.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Active>>);

struct Active {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    counts: Arc<Counts>,
    /// Whether traces of clients are continued.
    continues: bool,
}

impl std::fmt::Debug for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "traces" } else { "no traces" })
    }
}

impl Traces {
    /// Spans go to this collector, or to the one that `OTEL_EXPORTER_OTLP_ENDPOINT` names, or nowhere. OpenTelemetry's other
    /// variables are honoured or refused. `service` is the name of the service where they give none.
    ///
    /// # Errors
    /// A variable that cannot be honoured.
    pub fn from_environment(endpoint: Option<&str>, service: &'static str) -> Result<Self> {
        let Some(settings) = Settings::read(endpoint, &|name| std::env::var(name).ok())? else {
            return Ok(Self::default());
        };
        let (processor, counts) = export::processor(&settings)?;
        let provider =
            SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource(service)).build();
        let tracer = provider.tracer("arle");
        tracing::info!(endpoint = settings.endpoint, "traces are sent");
        Ok(Self(Some(Arc::new(Active { provider, tracer, counts, continues: settings.continues }))))
    }

    /// A span of its own trace.
    #[must_use]
    pub fn begin(&self, name: &'static str, attributes: Vec<KeyValue>) -> Scope {
        self.start(name.into(), SpanKind::Internal, attributes, &Context::new())
    }

    /// The span of a request, within the client's trace if there is one.
    pub fn request(&self, name: String, headers: &HeaderMap, attributes: Vec<KeyValue>) -> Scope {
        let continues = self.0.as_ref().is_some_and(|active| active.continues);
        let parent = if continues {
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers))
        } else {
            Context::new()
        };
        self.start(name.into(), SpanKind::Server, attributes, &parent)
    }

    fn start(&self, name: Cow<'static, str>, kind: SpanKind, attributes: Vec<KeyValue>, parent: &Context) -> Scope {
        let Some(active) = &self.0 else { return Scope::default() };
        let tracer = active.tracer.clone();
        let span =
            tracer.build_with_context(tracer.span_builder(name).with_kind(kind).with_attributes(attributes), parent);
        Scope(Some(Within { context: Context::new().with_span(span), tracer }))
    }

    /// What became of the spans so far; `None` where none are sent.
    pub fn counts(&self) -> Option<&Counts> {
        self.0.as_ref().map(|active| &*active.counts)
    }

    /// Delivers what is left, as far as that takes no longer than some seconds. Returns how many spans were lost from the
    /// beginning on.
    pub fn end(&self) -> u64 {
        let Some(active) = &self.0 else { return 0 };
        // What could not be delivered is in the counters.
        let _delivered = active.provider.shutdown_with_timeout(FLUSH);
        let lost = active.counts.lost();
        if lost > 0 {
            tracing::warn!(spans = lost, "spans were not delivered");
        }
        lost
    }
}

/// A list of texts as an attribute.
pub fn strings<'a>(texts: impl Iterator<Item = &'a str>) -> Value {
    Value::Array(Array::String(texts.map(|text| text.to_owned().into()).collect()))
}

/// A list of numbers as an attribute.
pub fn numbers(numbers: impl Iterator<Item = u64>) -> Value {
    Value::Array(Array::I64(numbers.map(|number| number as i64).collect()))
}

/// The service, from the environment or by its own name.
fn resource(service: &'static str) -> Resource {
    let resource = Resource::builder().build();
    let named = resource
        .get(&Key::from_static_str("service.name"))
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if named { builder.build() } else { builder.with_service_name(service).build() }
}

/// A span that is under way. It ends when the last copy is dropped.
#[derive(Clone, Default)]
pub struct Scope(Option<Within>);

#[derive(Clone)]
struct Within {
    tracer: SdkTracer,
    context: Context,
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "span" } else { "no span" })
    }
}

impl Scope {
    /// The span of the request that this task answers.
    pub fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Runs work of this request.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self.clone(), work).await
    }

    /// Whether somebody will see it.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|within| within.context.span().is_recording())
    }

    /// The id that joins it with lines of logs.
    pub fn trace_id(&self) -> Option<String> {
        self.0.as_ref().map(|within| within.context.span().span_context().trace_id().to_string())
    }

    /// Adds attributes.
    pub fn set(&self, attributes: Vec<KeyValue>) {
        if let Some(within) = &self.0 {
            within.context.span().set_attributes(attributes);
        }
    }

    /// It did not end well.
    pub fn fail(&self, why: impl Into<Cow<'static, str>>) {
        if let Some(within) = &self.0 {
            within.context.span().set_status(Status::error(why));
        }
    }

    /// The answer to the request has this status.
    pub fn answered(&self, status: StatusCode) {
        self.set(vec![KeyValue::new("http.response.status_code", i64::from(status.as_u16()))]);
        if status.is_server_error() {
            self.fail(status.canonical_reason().unwrap_or_default());
        }
    }

    /// A part of it that is over.
    pub fn child(&self, name: &'static str, [from, to]: [Instant; 2], attributes: Vec<KeyValue>) {
        let Some(Within { tracer, context }) = &self.0 else { return };
        let (now, clock) = (Instant::now(), SystemTime::now());
        let at = |moment| clock - now.saturating_duration_since(moment);
        let builder = tracer.span_builder(name).with_start_time(at(from)).with_attributes(attributes);
        tracer.build_with_context(builder, context).end_with_timestamp(at(to));
    }

    /// Does a part of it.
    pub async fn time<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let result = work.await;
        self.child(name, [started, Instant::now()], Vec::new());
        result
    }
}
