//! OpenTelemetry's environment variables, those of traces: what is not honoured is refused.

use std::time::Duration;

use http::Uri;

use crate::{Error, Result};

/// How traces are sent.
#[derive(Debug, PartialEq)]
pub(crate) struct Settings {
    /// Where spans are posted.
    pub(crate) endpoint: String,
    /// Longest time to deliver a batch.
    pub(crate) timeout: Duration,
    /// Spans that may wait to be delivered.
    pub(crate) queue: usize,
    /// Whether traces of clients are continued.
    pub(crate) continues: bool,
}

/// OTLP's default, ms.
const TIMEOUT: u64 = 10_000;
/// OpenTelemetry's default.
const QUEUE: usize = 2048;
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];
const UNSUPPORTED: [&str; 6] = [
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
];

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// `None` where nothing names a collector, or traces are turned off.
    pub(crate) fn read(endpoint: Option<&str>, variables: Variables) -> Result<Option<Self>> {
        let read = Read(variables);
        if read.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        if read.one_of("OTEL_TRACES_EXPORTER", &["otlp", "none"])?.as_deref() == Some("none") {
            return Ok(None);
        }
        let Some(endpoint) = read.endpoint(endpoint)? else { return Ok(None) };
        for name in ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] {
            read.one_of(name, &["http/protobuf"])?;
        }
        for name in ["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"] {
            read.one_of(name, &["none"])?;
        }
        if let Some(name) = UNSUPPORTED.into_iter().find(|name| read.get(name).is_some()) {
            return Err(refuse(name, "is not supported; unset it"));
        }
        read.sampler()?;
        for name in ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] {
            read.number(name)?;
        }
        let timeout = read.number("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")?;
        let timeout = timeout.or(read.number("OTEL_EXPORTER_OTLP_TIMEOUT")?).unwrap_or(TIMEOUT);
        let queue = read.number("OTEL_BSP_MAX_QUEUE_SIZE")?;
        Ok(Some(Self {
            endpoint,
            timeout: Duration::from_millis(timeout),
            queue: queue.map_or(QUEUE, |queue| usize::try_from(queue).unwrap_or(usize::MAX)),
            continues: read.propagators()?,
        }))
    }
}

fn refuse(name: &str, what: impl std::fmt::Display) -> Error {
    Error(format!("{name} {what}"))
}

struct Read<'a>(Variables<'a>);

impl Read<'_> {
    /// An empty variable counts as unset.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn one_of(&self, name: &str, known: &[&str]) -> Result<Option<String>> {
        match self.get(name) {
            Some(value) if !known.contains(&value.as_str()) => {
                Err(refuse(name, format!("= \"{value}\" is not supported; there is: {}", known.join(", "))))
            }
            value => Ok(value),
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(refuse(name, format!("= \"{value}\" is no whole number above 0"))),
        }
    }

    /// The first of the option, which gets a path, the traces' own variable, which does not, and the general one.
    fn endpoint(&self, option: Option<&str>) -> Result<Option<String>> {
        let below = |base: &str| format!("{}/v1/traces", base.trim_end_matches('/'));
        let (name, endpoint) = if let Some(base) = option {
            ("--otlp-endpoint", below(base))
        } else if let Some(endpoint) = self.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
        } else if let Some(base) = self.get("OTEL_EXPORTER_OTLP_ENDPOINT") {
            ("OTEL_EXPORTER_OTLP_ENDPOINT", below(&base))
        } else {
            return Ok(None);
        };
        let known = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !endpoint.parse::<Uri>().is_ok_and(|uri| known(&uri)) {
            return Err(refuse(
                name,
                format!("gives \"{endpoint}\", which is no address such as http://localhost:4318"),
            ));
        }
        Ok(Some(endpoint))
    }

    fn sampler(&self) -> Result<()> {
        let sampler = self.one_of("OTEL_TRACES_SAMPLER", &SAMPLERS)?;
        let argument = self.get("OTEL_TRACES_SAMPLER_ARG");
        let ratio = sampler.is_some_and(|name| name.ends_with("ratio"));
        match argument {
            Some(value) if ratio && !value.parse().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio)) => {
                Err(refuse("OTEL_TRACES_SAMPLER_ARG", format!("= \"{value}\" is no ratio from 0 to 1")))
            }
            _ => Ok(()),
        }
    }

    fn propagators(&self) -> Result<bool> {
        let name = "OTEL_PROPAGATORS";
        let Some(list) = self.get(name) else { return Ok(true) };
        let names: Vec<&str> = list.split(',').map(str::trim).collect();
        match names.iter().find(|name| !["tracecontext", "baggage", "none"].contains(name)) {
            Some(other) => {
                Err(refuse(name, format!("has \"{other}\", which is not supported; there is: tracecontext")))
            }
            None => Ok(names.contains(&"tracecontext")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(option: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Settings>> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Settings::read(option, &get)
    }

    #[test]
    fn who_names_a_collector_first_wins() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318/");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://b/traces");
        let endpoint =
            |option, variables: &[_]| read(option, variables).expect("valid").map(|settings| settings.endpoint);
        assert_eq!(endpoint(None, &[]), None);
        assert_eq!(endpoint(None, &[general]).as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(endpoint(None, &[general, own]).as_deref(), Some("https://b/traces"));
        assert_eq!(endpoint(Some("http://c"), &[general, own]).as_deref(), Some("http://c/v1/traces"));
        assert_eq!(endpoint(Some("http://c"), &[("OTEL_SDK_DISABLED", "TRUE")]), None);
        assert_eq!(endpoint(None, &[general, ("OTEL_TRACES_EXPORTER", "none")]), None);
    }

    #[test]
    fn variables_are_honoured_or_refused() {
        let settings = read(
            Some("http://c"),
            &[("OTEL_EXPORTER_OTLP_TIMEOUT", "250"), ("OTEL_BSP_MAX_QUEUE_SIZE", "7"), ("OTEL_PROPAGATORS", "none")],
        );
        let expected = Settings {
            endpoint: "http://c/v1/traces".to_owned(),
            timeout: Duration::from_millis(250),
            queue: 7,
            continues: false,
        };
        assert_eq!(settings.expect("valid"), Some(expected));
        for (name, value) in [
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "ca.pem"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_PROPAGATORS", "tracecontext,b3"),
        ] {
            let error = read(Some("http://c"), &[(name, value)]).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
        let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1.5")];
        assert!(read(Some("http://c"), &ratio).expect_err("no ratio").to_string().contains("1.5"));
        assert!(read(Some("localhost:4318"), &[]).expect_err("no scheme").to_string().contains("--otlp-endpoint"));
    }
}
