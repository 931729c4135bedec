//! What a route takes and answers.

use std::borrow::Cow;
use std::collections::BTreeMap;

use utoipa::ToSchema;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{ContentBuilder, Required, Response, ResponseBuilder, path};

use crate::limits::admission::LONGEST_WAIT;

use super::schema::{self, Members, Schema, integer, named, text};

const JSON: &str = "application/json";

/// A route's description, which stands next to its code. What it reads is all that the route takes: a body with other fields
/// is refused before the route sees it.
pub(crate) struct Operation {
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<Members>,
    answer: BTreeMap<&'static str, Schema>,
    refusals: BTreeMap<u16, &'static str>,
    /// The schema of its errors.
    error: &'static str,
    /// Answers with another status that are no errors.
    otherwise: Vec<(u16, &'static str, Schema)>,
    pub(super) components: Vec<(Cow<'static, str>, Schema)>,
}

impl Operation {
    pub(crate) fn new(id: &'static str, summary: &'static str) -> Self {
        Self {
            id,
            summary,
            parameters: vec![],
            body: None,
            answer: BTreeMap::new(),
            refusals: BTreeMap::new(),
            error: "Error",
            otherwise: vec![],
            components: vec![],
        }
    }

    /// The fields of its body, an object.
    pub(crate) fn reads(mut self, body: Members) -> Self {
        self.body = Some(body);
        self.refuses(400, "The body is no JSON object, or a field is unknown, missing or out of range.")
            .refuses(408, "The body did not arrive in time.")
            .refuses(413, "The body is too long.")
            .refuses(415, "The body is compressed, or not sent as JSON.")
            .refuses(429, "Other requests hold the memory (`--request-memory`); `Retry-After` says when to come back.")
    }

    fn parameter(mut self, place: ParameterIn, name: &str, schema: Schema, words: &str) -> Self {
        let required = if place == ParameterIn::Path { Required::True } else { Required::False };
        let parameter = ParameterBuilder::new().name(name).parameter_in(place).required(required);
        self.parameters.push(parameter.schema(Some(schema)).description(Some(words)).build());
        self
    }

    /// A part of its path.
    pub(crate) fn path(self, name: &str, words: &str) -> Self {
        self.parameter(ParameterIn::Path, name, text(), words)
    }

    /// A parameter behind `?`, which may be left out.
    pub(crate) fn query(self, name: &str, schema: Schema, words: &str) -> Self {
        self.parameter(ParameterIn::Query, name, schema, words)
    }

    /// A header that is read.
    pub(crate) fn header(self, name: &str, schema: Schema, words: &str) -> Self {
        self.parameter(ParameterIn::Header, name, schema, words)
    }

    /// Its errors have a form of their own.
    pub(crate) fn fails_as(mut self, name: &'static str) -> Self {
        self.error = name;
        self
    }

    /// It asks a model that has to be there.
    pub(crate) fn finds_model(self) -> Self {
        self.refuses(404, "There is no model of this name.")
    }

    /// It submits work to the scheduler.
    pub(crate) fn submits(self) -> Self {
        self.refuses(413, "The body is too long, or the answer would be.")
            .refuses(429, "All places for sequences are taken, or the memory is; `Retry-After` says when to come back.")
            .refuses(500, "A defect of the server.")
            .refuses(503, "The device is gone.")
            .refuses(504, "The request took longer than the server allows.")
    }

    /// An error with this status, unless it has one already.
    pub(super) fn refuses_besides(mut self, status: u16, words: &'static str) -> Self {
        self.refusals.entry(status).or_insert(words);
        self
    }

    /// An error with this status.
    pub(crate) fn refuses(mut self, status: u16, words: &'static str) -> Self {
        self.refusals.insert(status, words);
        self
    }

    /// What it answers with 200.
    pub(crate) fn answers(self, schema: impl Into<Schema>) -> Self {
        self.answers_with(JSON, schema)
    }

    /// An answer with another status, which is no error.
    pub(crate) fn answers_otherwise(mut self, status: u16, words: &'static str, schema: impl Into<Schema>) -> Self {
        self.otherwise.push((status, words, schema.into()));
        self
    }

    /// What it answers to `stream`: events whose data are of this kind.
    pub(crate) fn streams(self, name: &'static str, event: impl Into<Schema>) -> Self {
        let words = format!("JSON: a {name}; after an error an Error; in the last event `[DONE]`.");
        self.answers_with("text/event-stream", schema::event(&words)).defines(name, event)
    }

    /// What it answers to `stream`: events of this kind, each under the name of its type.
    pub(crate) fn streams_typed(self, name: &'static str, event: impl Into<Schema>) -> Self {
        let words = format!("JSON: a {name}, under the name of its type.");
        self.answers_with("text/event-stream", schema::event(&words)).defines(name, event)
    }

    /// The same in another media type.
    pub(crate) fn answers_with(mut self, media_type: &'static str, schema: impl Into<Schema>) -> Self {
        self.answer.insert(media_type, schema.into());
        self
    }

    /// A schema that is referred to by name, here or elsewhere.
    pub(crate) fn defines(mut self, name: &'static str, schema: impl Into<Schema>) -> Self {
        self.components.push((name.into(), schema.into()));
        self
    }

    /// The schema of a type, under its name.
    pub(crate) fn defines_type<T: ToSchema>(mut self) -> Self {
        self.components.push((T::name(), T::schema()));
        self
    }

    /// Names of the fields of its body.
    pub(crate) fn fields(&self) -> Option<Vec<&'static str>> {
        self.body.as_ref().map(Members::names)
    }

    /// As the document has it; `key` names the scheme of the key that it needs.
    pub(super) fn build(self, key: Option<&'static str>) -> path::Operation {
        let mut operation = OperationBuilder::new().operation_id(Some(self.id)).summary(Some(self.summary));
        if !self.parameters.is_empty() {
            operation = operation.parameters(Some(self.parameters));
        }
        if let Some(body) = self.body {
            let content = ContentBuilder::new().schema(Some(body.sent())).build();
            let body = RequestBodyBuilder::new().content(JSON, content).required(Some(Required::True));
            operation = operation.request_body(Some(body.build()));
        }
        if let Some(key) = key {
            operation = operation.security(SecurityRequirement::new(key, [] as [&str; 0]));
        }
        let contents = self.answer.into_iter().map(|(kind, schema)| (kind, ContentBuilder::new().schema(Some(schema))));
        let answer =
            contents.fold(response("It is done."), |response, (kind, content)| response.content(kind, content.build()));
        operation = operation.response("200", answer.build());
        for (status, words, schema) in self.otherwise {
            let content = ContentBuilder::new().schema(Some(schema)).build();
            operation = operation.response(status.to_string(), response(words).content(JSON, content).build());
        }
        for (status, words) in self.refusals {
            operation = operation.response(status.to_string(), refusal(status, words, self.error));
        }
        operation.build()
    }
}

/// Every answer carries its request's name.
fn response(words: &str) -> ResponseBuilder {
    let id = HeaderBuilder::new().schema(Some(text())).description(Some("The request's name in the server's log."));
    ResponseBuilder::new().description(words).header("x-request-id", id.build())
}

fn refusal(status: u16, words: &str, error: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(named(error))).build();
    let response = response(words).content(JSON, content);
    let header = |schema, words: &str| HeaderBuilder::new().schema(Some(schema)).description(Some(words)).build();
    match status {
        401 => response.header("www-authenticate", header(text(), "How to send a key.")).build(),
        429 => response.header("retry-after", header(integer(1..=i128::from(LONGEST_WAIT)), "Seconds.")).build(),
        _ => response.build(),
    }
}
