//! The names of all metrics, close to vLLM's where they mean the same, and their two renderings.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use runtime::request::ModelSnapshot;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::config::MetricNames;
use crate::metrics::histogram::{Distribution, Histogram};
use crate::metrics::{ModelMetrics, Outcome};
use telemetry::Counts;

type Labels = Vec<(&'static str, String)>;

/// One metric with all its labels.
pub(super) struct Family {
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

enum Samples {
    Counter(Vec<(Labels, f64)>),
    Gauge(Vec<(Labels, f64)>),
    Histogram(Vec<(Labels, Distribution)>),
}

/// A metric: name, help, and its value in `S`.
type Of<S, T> = (&'static str, &'static str, fn(&S) -> T);
/// A metric: name, help, and where it is in a model's counters.
type In<T> = (&'static str, &'static str, fn(&ModelMetrics) -> &T);

const GAUGES: [Of<ModelSnapshot, f64>; 4] = [
    ("arle_num_requests_running", "Sequences that hold pages.", |s| s.scheduler.running as f64),
    ("arle_num_requests_waiting", "Sequences that wait for pages.", |s| s.scheduler.waiting as f64),
    ("arle_kv_cache_usage_perc", "Part of the pages that running sequences hold, 0 to 1.", |s| {
        let s = s.scheduler;
        1.0 - (s.free_pages + s.cached_pages) as f64 / s.total_pages.max(1) as f64
    }),
    ("arle_kv_pages_cached", "Pages that only the prefix cache holds.", |s| s.scheduler.cached_pages as f64),
];

const SCHEDULER: [Of<ModelSnapshot, u64>; 6] = [
    ("arle_scheduler_steps_total", "Steps planned.", |s| s.scheduler.steps),
    ("arle_scheduler_tokens_total", "Tokens planned, recomputed ones included.", |s| s.scheduler.planned_tokens_total),
    ("arle_num_preemptions_total", "Sequences put back because pages ran out.", |s| s.scheduler.preemptions),
    ("arle_prefix_cache_queries_total", "Admissions that looked for a prefix.", |s| s.scheduler.prefix_lookups),
    ("arle_prefix_cache_hit_tokens_total", "Tokens that a cached prefix spared.", |s| s.scheduler.prefix_hit_tokens),
    ("arle_prefix_cache_evicted_pages_total", "Cached pages given up for sequences.", |s| s.scheduler.evicted_pages),
];

const COUNTERS: [In<AtomicU64>; 3] = [
    ("arle_prompt_tokens_total", "Tokens of prompts, cached ones included.", |m| &m.prompt_tokens),
    ("arle_prompt_tokens_cached_total", "Tokens of prompts that came from the prefix cache.", |m| &m.cached_tokens),
    ("arle_generation_tokens_total", "Tokens sampled for requests.", |m| &m.generated_tokens),
];

const HISTOGRAMS: [In<Histogram>; 6] = [
    ("arle_time_to_first_token_seconds", "From the request to its first token.", |m| &m.first_token),
    ("arle_inter_token_latency_seconds", "Between two tokens of a sequence.", |m| &m.between),
    ("arle_e2e_request_latency_seconds", "From the request to a sequence's end.", |m| &m.whole),
    ("arle_request_queue_time_seconds", "From a sequence's arrival to its first step.", |m| &m.queued),
    ("arle_request_prompt_tokens", "Tokens of a prompt.", |m| &m.prompt_length),
    ("arle_request_generation_tokens", "Tokens of a completion.", |m| &m.generated_length),
];

/// All metrics as they are now.
pub(crate) fn families(app: &App) -> Vec<Family> {
    let (snapshot, models) = (app.runtime.snapshot(), app.models.list());
    let label = |name: &str| vec![("model_name", name.to_owned())];
    // Adapters share the scheduler of their base: its numbers are theirs too.
    let of_schedulers = |read: &dyn Fn(&ModelSnapshot) -> f64| -> Vec<(Labels, f64)> {
        let bases = models.iter().filter(|model| !model.is_adapter());
        bases.map(|model| (label(model.name()), read(&model.of(&snapshot)))).collect()
    };
    let counters: Vec<&ModelMetrics> = models.iter().map(|model| &*model.metrics).collect();
    let mut all = Vec::new();
    for (name, help, read) in GAUGES {
        all.push(Family { name, help, samples: Samples::Gauge(of_schedulers(&read)) });
    }
    let versions = models.iter().map(|model| (label(model.name()), model.of(&snapshot).version as f64)).collect();
    let help = "Version of the weights that answer.";
    all.push(Family { name: "arle_weights_version", help, samples: Samples::Gauge(versions) });
    let taken = vec![(vec![], app.admission.taken() as f64)];
    let help = "Sequences of requests that have not ended.";
    all.push(Family { name: "arle_num_sequences", help, samples: Samples::Gauge(taken) });
    for (name, help, bytes) in [
        ("arle_request_memory_bytes", "Memory that requests hold.", app.budget.used()),
        ("arle_request_memory_limit_bytes", "Memory that requests may hold (--request-memory).", app.budget.total()),
    ] {
        all.push(Family { name, help, samples: Samples::Gauge(vec![(vec![], bytes as f64)]) });
    }
    for (name, help, read) in SCHEDULER {
        all.push(Family { name, help, samples: Samples::Counter(of_schedulers(&|model| read(model) as f64)) });
    }
    for (name, help, read) in COUNTERS {
        let samples = counters.iter().map(|m| (label(&m.name), read(m).load(Ordering::Relaxed) as f64)).collect();
        all.push(Family { name, help, samples: Samples::Counter(samples) });
    }
    all.push(Family {
        name: "arle_request_success_total",
        help: "Sequences by how they ended.",
        samples: Samples::Counter(counters.iter().flat_map(|m| ended(m)).collect()),
    });
    let responses = app
        .metrics
        .responses
        .iter()
        .zip(1..)
        .map(|(count, class)| (vec![("status", format!("{class}xx"))], count.load(Ordering::Relaxed) as f64));
    let help = "Responses by class of status.";
    all.push(Family { name: "arle_http_responses_total", help, samples: Samples::Counter(responses.collect()) });
    let refused = vec![(vec![], app.metrics.refused.load(Ordering::Relaxed) as f64)];
    let help = "Requests refused with 429 because the server is full.";
    all.push(Family { name: "arle_requests_refused_total", help, samples: Samples::Counter(refused) });
    all.extend(app.config.traces.counts().map(spans).into_iter().flatten());
    for (name, help, read) in HISTOGRAMS {
        let samples = counters.iter().map(|m| (label(&m.name), read(m).read())).collect();
        all.push(Family { name, help, samples: Samples::Histogram(samples) });
    }
    all
}

/// What became of spans.
fn spans(counts: &Counts) -> [Family; 2] {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let because = |reason: &str, counter| (vec![("reason", reason.to_owned())], read(counter));
    let delivered = vec![(vec![], read(&counts.delivered))];
    let dropped = vec![because("queue_full", &counts.crowded), because("not_delivered", &counts.refused)];
    let counter = |name, help, samples| Family { name, help, samples: Samples::Counter(samples) };
    [
        counter("arle_trace_spans_delivered_total", "Spans that the collector took.", delivered),
        counter("arle_trace_spans_dropped_total", "Spans that it did not get.", dropped),
    ]
}

fn ended(model: &ModelMetrics) -> impl Iterator<Item = (Labels, f64)> {
    Outcome::ALL.into_iter().map(|outcome| {
        let labels = vec![("model_name", model.name.clone()), ("finished_reason", outcome.name().to_owned())];
        (labels, model.ended[outcome as usize].load(Ordering::Relaxed) as f64)
    })
}

/// Metrics that mean the same in vLLM, and are called the same but for their beginning. Its `prefix_cache_queries` counts
/// tokens, not admissions.
const AS_IN_VLLM: [&str; 14] = [
    "arle_num_requests_running",
    "arle_num_requests_waiting",
    "arle_kv_cache_usage_perc",
    "arle_num_preemptions_total",
    "arle_prompt_tokens_total",
    "arle_prompt_tokens_cached_total",
    "arle_generation_tokens_total",
    "arle_request_success_total",
    "arle_time_to_first_token_seconds",
    "arle_inter_token_latency_seconds",
    "arle_e2e_request_latency_seconds",
    "arle_request_queue_time_seconds",
    "arle_request_prompt_tokens",
    "arle_request_generation_tokens",
];

/// What a metric is called.
fn called(name: &str, names: MetricNames) -> String {
    match (names, name.strip_prefix("arle_")) {
        (MetricNames::Vllm, Some(rest)) if AS_IN_VLLM.contains(&name) => format!("vllm:{rest}"),
        _ => name.to_owned(),
    }
}

/// Prometheus' text format.
pub(crate) fn text(families: &[Family], names: MetricNames) -> String {
    let mut out = String::new();
    for Family { name, help, samples } in families {
        let name = called(name, names);
        let kind = match samples {
            Samples::Counter(_) => "counter",
            Samples::Gauge(_) => "gauge",
            Samples::Histogram(_) => "histogram",
        };
        // Writing to a string cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        match samples {
            Samples::Counter(samples) | Samples::Gauge(samples) => {
                for (labels, value) in samples {
                    let _ = writeln!(out, "{name}{} {value}", braces(labels, None));
                }
            }
            Samples::Histogram(samples) => {
                for (labels, distribution) in samples {
                    for &(bound, count) in &distribution.cumulative {
                        let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
                        let _ = writeln!(out, "{name}_bucket{} {count}", braces(labels, Some(bound)));
                    }
                    let labels = braces(labels, None);
                    let _ = writeln!(out, "{name}_sum{labels} {}", distribution.sum);
                    let _ = writeln!(out, "{name}_count{labels} {}", distribution.count());
                }
            }
        }
    }
    out
}

fn braces(labels: &Labels, bound: Option<String>) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels = labels.iter().map(|(name, value)| (*name, value.clone())).chain(bound.map(|bound| ("le", bound)));
    let pairs: Vec<String> = labels.map(|(name, value)| format!("{name}=\"{}\"", escape(&value))).collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

/// An object by name; each metric is a list of objects with its labels and its value, or count, sum, mean and two quantiles.
pub(crate) fn json(families: &[Family]) -> Value {
    let labelled = |labels: &Labels, values: Vec<(&str, Value)>| -> Value {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value));
        Value::Object(labels.chain(values).collect())
    };
    let render = |family: &Family| -> Value {
        match &family.samples {
            Samples::Counter(samples) | Samples::Gauge(samples) => {
                samples.iter().map(|(labels, value)| labelled(labels, vec![("value", json!(value))])).collect()
            }
            Samples::Histogram(samples) => samples
                .iter()
                .map(|(labels, d)| {
                    let (p50, p95) = (json!(d.quantile(0.5)), json!(d.quantile(0.95)));
                    let (count, sum, mean) = (json!(d.count()), json!(d.sum), json!(d.mean()));
                    labelled(labels, vec![("count", count), ("sum", sum), ("mean", mean), ("p50", p50), ("p95", p95)])
                })
                .collect(),
        }
    };
    Value::Object(families.iter().map(|family| (family.name.to_owned(), render(family))).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_escapes_labels_and_ends_histograms_with_infinity() {
        let histogram = Histogram::new(&[0.5]);
        histogram.observe(0.25);
        histogram.observe(2.0);
        let labels = vec![("model_name", "a\"b\\c".to_owned())];
        let families = [
            Family { name: "x_total", help: "X.", samples: Samples::Counter(vec![(vec![], 3.0)]) },
            Family { name: "y", help: "Y.", samples: Samples::Histogram(vec![(labels, histogram.read())]) },
        ];
        let expected = "# HELP x_total X.\n# TYPE x_total counter\nx_total 3\n# HELP y Y.\n# TYPE y histogram\n\
             y_bucket{model_name=\"a\\\"b\\\\c\",le=\"0.5\"} 1\ny_bucket{model_name=\"a\\\"b\\\\c\",le=\"+Inf\"} 2\n\
             y_sum{model_name=\"a\\\"b\\\\c\"} 2.25\ny_count{model_name=\"a\\\"b\\\\c\"} 2\n";
        assert_eq!(text(&families, MetricNames::Arle), expected);
        assert_eq!(json(&families)["y"][0]["count"], 2);
    }

    #[test]
    fn names_of_vllm_are_those_of_metrics_that_there_are() {
        let own = COUNTERS.iter().map(|c| c.0).chain(HISTOGRAMS.iter().map(|h| h.0)).chain(GAUGES.iter().map(|g| g.0));
        let own: Vec<&str> = own.chain(SCHEDULER.iter().map(|s| s.0)).chain(["arle_request_success_total"]).collect();
        assert!(AS_IN_VLLM.iter().all(|name| own.contains(name)));
        assert_eq!(called("arle_num_requests_running", MetricNames::Vllm), "vllm:num_requests_running");
        assert_eq!(called("arle_weights_version", MetricNames::Vllm), "arle_weights_version");
        assert_eq!(called("arle_num_requests_running", MetricNames::Arle), "arle_num_requests_running");
    }
}
