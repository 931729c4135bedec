//! The document at `/openapi.json`, put together from what stands next to each endpoint.
//!
//! A [`Route`] is path, code and description in one, so a route without a description does not compile; and the fields of a
//! description are the ones that a body may have, so a field that it lacks is refused ([`Known`]).

mod operation;
pub(crate) mod schema;

use std::sync::Arc;

use axum::Extension;
use axum::handler::Handler;
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use http::header;
use utoipa::openapi::path::{HttpMethod, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, Info, License, OpenApi, OpenApiBuilder, PathsBuilder};

pub(crate) use operation::Operation;
use schema::{Members, any, nullable, text};

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody.
    Open,
    /// Who has an API key, where there are keys.
    Key,
    /// Who has an admin key.
    Admin,
}

/// A path, what answers there, and the description of both.
pub(crate) struct Route<S> {
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) code: MethodRouter<S>,
    method: HttpMethod,
    operation: Operation,
}

/// The fields that the body of a request may have.
#[derive(Debug, Clone)]
pub(crate) struct Known(pub(crate) Arc<[&'static str]>);

impl<S: Clone + Send + Sync + 'static> Route<S> {
    pub(crate) fn get<H, T>(access: Access, path: &'static str, code: H, operation: Operation) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self::new(access, path, HttpMethod::Get, routing::get(code), operation)
    }

    pub(crate) fn post<H, T>(access: Access, path: &'static str, code: H, operation: Operation) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        Self::new(access, path, HttpMethod::Post, routing::post(code), operation)
    }

    fn new(
        access: Access,
        path: &'static str,
        method: HttpMethod,
        code: MethodRouter<S>,
        operation: Operation,
    ) -> Self {
        let code = match operation.fields() {
            Some(fields) => code.layer(Extension(Known(fields.into()))),
            None => code,
        };
        Self { path, access, code, method, operation }
    }
}

/// Which keys there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeysFor {
    pub(crate) api: bool,
    pub(crate) admin: bool,
}

/// What `/openapi.json` answers.
#[derive(Clone)]
pub(crate) struct Document(Arc<str>);

impl Document {
    pub(crate) fn new<S>(routes: Vec<Route<S>>, keys: KeysFor) -> Self {
        let document = document(routes, keys);
        Self(serde_json::to_string(&document).expect("plain JSON").into())
    }
}

fn document<S>(routes: Vec<Route<S>>, keys: KeysFor) -> OpenApi {
    let mut paths = PathsBuilder::new();
    let mut components = ComponentsBuilder::new().schema("Error", error());
    for Route { path, access, method, mut operation, .. } in routes {
        for (name, schema) in operation.components.drain(..) {
            components = components.schema(name, schema);
        }
        let key = match access {
            Access::Open => None,
            Access::Key => keys.api.then_some("apiKey"),
            Access::Admin => keys.admin.then_some("adminKey"),
        };
        operation = operation.refuses_besides(400, "There is no `Host`, or there are two.");
        operation = operation.refuses(
            403,
            match access {
                Access::Admin if key.is_none() && keys.api => "The server has no admin key.",
                _ => "`Host` is no name of the server, or a page of another origin asks one without keys.",
            },
        );
        if key.is_some() {
            operation = operation.refuses(401, "There is no key, or another one.");
        }
        // A name of a model may have slashes; a document has no word for that.
        let path = path.replace("{*", "{");
        paths = paths.path(path, PathItem::new(method, operation.build(key)));
    }
    let scheme = |words: &str| {
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(words)).build())
    };
    let components = components
        .security_scheme("apiKey", scheme("A key of --api-key-file or --admin-key-file."))
        .security_scheme("adminKey", scheme("A key of --admin-key-file."));
    let mut info = Info::new("ARLE", env!("CARGO_PKG_VERSION"));
    info.description = Some(env!("CARGO_PKG_DESCRIPTION").to_owned());
    info.license = Some(License::new(env!("CARGO_PKG_LICENSE")));
    OpenApiBuilder::new().info(info).paths(paths.build()).components(Some(components.build())).build()
}

/// OpenAI's envelope.
fn error() -> schema::Schema {
    let error = Members::new()
        .always("message", text(), "What is wrong, and what helps.")
        .always("type", text(), "OpenAI's class of errors.")
        .always("param", nullable(text()), "The field that is to blame.")
        .always("code", nullable(text()), "One word for programs.")
        .closed();
    Members::new().always("error", error, "").closed()
}

/// `GET /openapi.json`
pub(crate) async fn show(Extension(document): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.0.to_string()).into_response()
}

pub(crate) fn describe() -> Operation {
    Operation::new("getOpenApi", "This document").answers(schema::map(any()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// All values of `key` in a document.
    fn values<'a>(document: &'a Value, key: &str, found: &mut Vec<&'a str>) {
        match document {
            Value::Object(members) => {
                found.extend(members.get(key).and_then(Value::as_str));
                members.values().for_each(|value| values(value, key, found));
            }
            Value::Array(elements) => elements.iter().for_each(|value| values(value, key, found)),
            _ => {}
        }
    }

    #[test]
    fn names_lead_to_schemas_and_are_unique() {
        let document = serde_json::to_value(document(crate::router::routes(), KeysFor { api: true, admin: false }))
            .expect("plain JSON");
        let mut references = Vec::new();
        values(&document, "$ref", &mut references);
        assert!(references.len() > 10);
        for reference in references {
            let target = document.pointer(reference.trim_start_matches('#'));
            assert!(target.is_some(), "{reference} leads nowhere");
        }
        let mut ids = Vec::new();
        values(&document, "operationId", &mut ids);
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }
}
