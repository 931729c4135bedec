//! Spans as a collector gets them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};

use super::client::{Server, wait_until};
use crate::support::{Model, Workshop, arle, finish, fixture};

/// Takes spans over HTTP, as OTLP has it.
struct Collector {
    url: String,
    taken: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&taken);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let list = Arc::clone(&list);
                std::thread::spawn(move || while let Some(()) = take(&stream, &list) {});
            }
        });
        Self { url, taken }
    }

    fn spans(&self) -> Vec<Span> {
        let taken = self.taken.lock().expect("no panic");
        let scopes =
            taken.iter().flat_map(|request| &request.resource_spans).flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The span of this name, once it has come.
    fn wait(&self, name: &str) -> Span {
        wait_until(name, || self.spans().iter().any(|span| span.name == name));
        self.spans().into_iter().find(|span| span.name == name).expect("it is there")
    }

    /// Spans right below another one, by their start.
    fn children(&self, parent: &Span) -> Vec<Span> {
        let mut children = self.spans();
        children.retain(|span| span.parent_span_id == parent.span_id && span.trace_id == parent.trace_id);
        children.sort_by_key(|span| span.start_time_unix_nano);
        children
    }
}

/// One request of a connection; `None` at its end.
fn take(stream: &TcpStream, list: &Mutex<Vec<ExportTraceServiceRequest>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut head) = (0, Vec::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        if line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_ascii_lowercase());
        length = head.last()?.strip_prefix("content-length: ").map_or(Some(length), |text| text.parse().ok())?;
    }
    assert!(head[0].starts_with("post /v1/traces "), "{head:?}");
    assert!(head.iter().any(|line| line == "content-type: application/x-protobuf"), "{head:?}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    list.lock().expect("no panic").push(ExportTraceServiceRequest::decode(&body[..]).expect("protobuf"));
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n").ok()
}

fn json_of(value: &AnyValue) -> Value {
    match value.value.as_ref().expect("a value") {
        Any::StringValue(text) => json!(text),
        Any::IntValue(number) => json!(number),
        Any::DoubleValue(number) => json!(number),
        Any::BoolValue(value) => json!(value),
        Any::ArrayValue(list) => list.values.iter().map(json_of).collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn attribute(attributes: &[KeyValue], name: &str) -> Value {
    let found = attributes.iter().find(|one| one.key == name).unwrap_or_else(|| panic!("no {name} in {attributes:?}"));
    json_of(found.value.as_ref().expect("a value"))
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn traced(url: &str, variables: &[(&str, &str)]) -> Server {
    let mut command = Server::command(&fixture("tiny-chat"), &["--log-format", "json"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_BSP_SCHEDULE_DELAY", "20");
    command.envs(variables.iter().copied());
    let server = Server::launch(command);
    wait_until("ready", || server.get("/ready").status == 200);
    server
}

#[test]
fn a_request_has_a_span_within_the_clients_trace() {
    let collector = Collector::start();
    let server = traced(&collector.url, &[("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "place=here")]);
    let parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let body = json!({
        "model": "tiny-chat", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 6, "ignore_eos": true, "n": 2,
        "stream": true,
    });
    server.send("POST", "/v1/chat/completions", &[parent, ("x-request-id", "mine")], &body.to_string()).chunks();
    let span = collector.wait("POST /v1/chat/completions");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        (hex(&span.trace_id), hex(&span.parent_span_id)),
        ("0af7651916cd43dd8448eb211c80319c".into(), "b7ad6b7169203331".into())
    );
    assert_eq!(span.kind, 2, "a server's");
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/chat/completions")),
        ("http.response.status_code", json!(200)),
        ("arle.request_id", json!("mine")),
        ("gen_ai.operation.name", json!("chat")),
        ("gen_ai.request.model", json!("tiny-chat")),
        ("gen_ai.response.model", json!("tiny-chat")),
        ("gen_ai.request.choice.count", json!(2)),
        ("gen_ai.usage.output_tokens", json!(12)),
        ("gen_ai.usage.cache_read.input_tokens", json!(0)),
        ("gen_ai.response.finish_reasons", json!(["length", "length"])),
        ("arle.weights_versions", json!([0])),
    ] {
        assert_eq!(attribute(&span.attributes, name), value, "{name}");
    }
    assert!(attribute(&span.attributes, "gen_ai.usage.input_tokens").as_u64() > Some(3));
    let children = collector.children(&span);
    let mut sorted = names(&children);
    assert_eq!(sorted[0], "tokenize");
    sorted.sort_unstable();
    assert_eq!(sorted, ["decode", "decode", "prefill", "prefill", "queue", "queue", "tokenize"]);
    // Clocks are read twice for a moment, so borders may differ by microseconds.
    let slack = 1_000_000;
    for child in &children {
        assert!(
            child.start_time_unix_nano + slack >= span.start_time_unix_nano
                && child.start_time_unix_nano <= child.end_time_unix_nano
        );
        assert!(child.end_time_unix_nano <= span.end_time_unix_nano + slack, "{}", child.name);
    }
    let resource = collector.taken.lock().expect("no panic")[0].resource_spans[0].resource.clone().expect("a resource");
    assert_eq!(attribute(&resource.attributes, "service.name"), "mine");
    assert_eq!(attribute(&resource.attributes, "place"), "here");
    // Pages and probes ask all the time and have no span; a request that is wrong has one, with its status.
    server.get("/v1/stats").ok();
    server.get("/health").ok();
    server.post("/v1/score", &json!({"input": "the sea"})).ok();
    server.post("/v1/embeddings", &json!({"input": 7})).refused(400, Some("input"), "invalid_parameter");
    let wrong = collector.wait("POST /v1/embeddings");
    assert_eq!(attribute(&wrong.attributes, "http.response.status_code"), 400);
    let score = collector.wait("POST /v1/score");
    assert_eq!(names(&collector.children(&score)), ["tokenize", "score"]);
    assert!(!collector.spans().iter().any(|span| span.name.contains("/v1/stats") || span.name.contains("/health")));
    wait_until("counted", || server.stat("arle_trace_spans_delivered_total") == collector.spans().len() as f64);
}

/// What a client that leaves has had: nothing of it but the time in the queue, or the work until it left.
#[test]
fn an_aborted_sequence_has_its_spans() {
    let collector = Collector::start();
    let model = Model::copy("tiny-chat");
    model.set("config.json", "max_position_embeddings", json!(100_000));
    let mut command = Server::command(&model.path(), &["--max-running", "1", "--kv-bytes", "64MiB"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).env("OTEL_BSP_SCHEDULE_DELAY", "20");
    let server = Server::launch(command);
    wait_until("ready", || server.get("/ready").status == 200);
    let body = json!({"prompt": "a", "max_tokens": 50_000, "ignore_eos": true, "stream": true}).to_string();
    let running = server.open("POST", "/v1/completions", &[("x-request-id", "running")], &body);
    wait_until("running", || server.stat("arle_num_requests_running") == 1.0);
    let waiting = server.open("POST", "/v1/completions", &[("x-request-id", "waiting")], &body);
    wait_until("waiting", || server.stat("arle_num_requests_waiting") == 1.0);
    drop(waiting);
    wait_until("gone", || server.stat("arle_num_requests_waiting") == 0.0);
    drop(running);
    let of = |id: &str| {
        let spans = || collector.spans().into_iter().filter(|span| span.name == "POST /v1/completions");
        let named = || spans().find(|span| attribute(&span.attributes, "arle.request_id") == id);
        wait_until(id, || named().is_some_and(|span| !collector.children(&span).is_empty()));
        named().expect("it has come")
    };
    let (left, cut) = (of("waiting"), of("running"));
    assert_eq!(names(&collector.children(&left)), ["tokenize", "queue"]);
    assert_eq!(attribute(&left.attributes, "gen_ai.response.finish_reasons"), json!(["abort"]));
    assert_eq!(names(&collector.children(&cut)), ["tokenize", "queue", "prefill", "decode"]);
}

/// A collector that takes connections and says nothing, and a queue of two.
#[test]
fn a_deaf_collector_costs_spans_and_no_request() {
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", deaf.local_addr().expect("an address"));
    let variables = [("OTEL_BSP_MAX_QUEUE_SIZE", "2"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")];
    let mut server = traced(&url, &variables);
    for _ in 0..20 {
        server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 2, "ignore_eos": true})).ok();
    }
    // Five spans a request; two wait.
    let stats = server.get("/v1/stats").ok();
    let dropped = stats["arle_trace_spans_dropped_total"].as_array().expect("two reasons");
    assert_eq!((&dropped[0]["reason"], &dropped[0]["value"]), (&json!("queue_full"), &json!(98.0)));
    assert!(server.get("/metrics").body.contains("arle_trace_spans_dropped_total{reason=\"queue_full\"} 98\n"));
    // Nor does it hold a server that stops.
    server.signal("TERM");
    wait_until("stopped", || server.child.try_wait().expect("a child").is_some());
    assert_eq!(server.child.wait().expect("it ended").code(), Some(0));
}

#[test]
fn an_absent_collector_is_counted() {
    // A port that nobody listens at.
    let url = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let server = traced(&format!("http://{url}"), &[]);
    server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 2, "ignore_eos": true})).ok();
    let lost = || server.get("/v1/stats").ok()["arle_trace_spans_dropped_total"][1]["value"].clone();
    wait_until("counted", || lost() == json!(5.0));
}

#[test]
fn steps_of_a_run_have_spans() {
    let collector = Collector::start();
    let workshop = Workshop::new();
    let mut command = workshop.command("run", &["--otlp-endpoint", &collector.url, "--set", "schedule.max_steps=2"]);
    command.env("OTEL_TRACES_SAMPLER", "always_on");
    finish(command).ok();
    let spans = collector.spans();
    let steps: Vec<&Span> = spans.iter().filter(|span| span.name == "step").collect();
    assert_eq!(steps.len(), 2);
    let held_out = spans.iter().find(|span| span.name == "held_out").expect("before the first step");
    assert_eq!(names(&collector.children(held_out)), ["eval"]);
    assert_eq!(spans.iter().filter(|span| span.name == "checkpoint").count(), 2);
    let metrics = workshop.metrics("run");
    for (step, phases) in steps
        .iter()
        .zip([vec!["rollout", "teacher", "train", "optim"], vec!["rollout", "teacher", "train", "optim", "eval"]])
    {
        assert_eq!(names(&collector.children(step)), phases);
        let number = attribute(&step.attributes, "arle.step");
        let line = metrics.iter().find(|line| line["step"] == number).expect("its metrics");
        assert_eq!(attribute(&step.attributes, "arle.loss"), line["loss"]);
        assert_eq!(attribute(&step.attributes, "arle.run"), "recipe");
    }
    let resource = collector.taken.lock().expect("no panic")[0].resource_spans[0].resource.clone().expect("a resource");
    assert_eq!(attribute(&resource.attributes, "service.name"), "arle-train");
}

#[test]
fn settings_of_traces_that_are_not_honoured_are_refused() {
    let model = fixture("tiny-chat");
    let ended =
        arle(&["serve", "--model", &model, "--device", "cpu", "--port", "0", "--otlp-endpoint", "localhost:4318"]);
    ended.refused(2, &["--otlp-endpoint", "http://localhost:4318"]);
}
