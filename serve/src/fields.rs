//! A request's JSON object, read field by field, so that whatever is wrong has a name.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::api_error::ApiError;
use crate::openapi::schema::{Members, any};

/// Fields that clients send and that cannot change an answer here: who asks, how it is billed, stored or cached, and hints
/// that only make it faster.
pub(crate) const NO_EFFECT: &[&str] = &[
    "user",
    "metadata",
    "client_metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "prediction",
];

/// The verbosity that an answer has anyway, and why there is no other.
pub(crate) const VERBOSITY: &str = "medium";
pub(crate) const NO_VERBOSITY: &str = "models here have no such setting; say it in the instructions";

/// The fields that nobody has taken yet.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Fields(pub(crate) Map<String, Value>);

impl Fields {
    /// Parses a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::invalid_json("the body must be a JSON object")),
            Err(error) => Err(ApiError::invalid_json(format!("the body is not JSON: {error}"))),
        }
    }

    /// Refuses every field but those that the route's description has.
    pub(crate) fn check(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.iter().find(|(name, value)| !value.is_null() && !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::unknown(name.clone())),
        }
    }

    /// Takes a field; `null` is the same as its absence.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.shift_remove(name).filter(|value| !value.is_null()) else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| ApiError::invalid(name, format!("`{name}`: {error}")))
    }

    /// Takes a field that has to be there.
    pub(crate) fn need<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::invalid(name, format!("`{name}` is missing")))
    }

    /// Drops fields that cannot change the result.
    pub(crate) fn accept(&mut self, names: &[&str]) {
        for name in names {
            self.0.shift_remove(*name);
        }
    }

    /// Takes a field whose only value that is honoured is one that changes nothing; `why` says what else would mean.
    pub(crate) fn only(&mut self, name: &'static str, neutral: &[Value], why: &str) -> Result<(), ApiError> {
        match self.take::<Value>(name)? {
            Some(value) if !neutral.contains(&value) => {
                Err(ApiError::unsupported(name, format!("`{name}` = {value} is not supported: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is left.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::unknown(name)),
        }
    }
}

/// The fields of [`NO_EFFECT`].
pub(crate) fn describe_no_effect() -> Members {
    NO_EFFECT
        .iter()
        .fold(Members::new(), |members, name| members.maybe(name, any(), "Accepted; it cannot change an answer here."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).expect("an object")
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        let error = fields(r#"{"temperature": "hot"}"#).take::<f32>("temperature").expect_err("no number");
        assert_eq!(error.param.as_deref(), Some("temperature"));
        assert!(error.message.contains("\"hot\""), "{}", error.message);
        let error = fields("{}").need::<String>("model").expect_err("missing");
        assert_eq!(error.param.as_deref(), Some("model"));
        let error = fields(r#"{"temprature": 1}"#).finish().expect_err("unknown");
        assert_eq!(error.param.as_deref(), Some("temprature"));
        let body = fields(r#"{"temperature": 1, "new": null, "temprature": 1}"#);
        assert_eq!(body.check(&["temperature"]).expect_err("unknown").param.as_deref(), Some("temprature"));
        body.check(&["temperature", "temprature"]).expect("all are known");
        assert!(Fields::parse(b"[1]").is_err() && Fields::parse(b"{\"a\":").is_err());
    }

    #[test]
    fn null_is_absence_and_neutral_values_pass() {
        let mut body = fields(r#"{"n": null, "x": null, "user": "me", "suffix": "", "audio": {}}"#);
        assert_eq!(body.take::<usize>("n").expect("absent"), None);
        body.accept(&["user"]);
        body.only("suffix", &[json!("")], "text after the completion").expect("neutral");
        let error = body.only("audio", &[], "there is no audio").expect_err("not neutral");
        assert_eq!(error.param.as_deref(), Some("audio"));
        body.finish().expect("nothing but null is left");
    }
}
