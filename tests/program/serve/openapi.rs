//! The document says what the server does.

use serde_json::{Map, Value, json};

use super::client::{Response, Server};

pub(super) fn document(server: &Server) -> Value {
    server.get("/openapi.json").ok()
}

/// Paths with their descriptions; a name in a path is one that is there.
pub(super) fn routes(document: &Value) -> impl Iterator<Item = (String, &Map<String, Value>)> {
    let paths = document["paths"].as_object().expect("paths");
    paths.iter().map(|(path, item)| (path.replace("{model}", "tiny-chat"), item.as_object().expect("methods")))
}

/// A value that a schema allows.
fn sample(schema: &Value) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        return values[0].clone();
    }
    if let Some(schemas) = schema["anyOf"].as_array() {
        return sample(&schemas[0]);
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind {
        Some("string") => json!("a"),
        Some("boolean") => json!(false),
        Some("integer") => json!(schema["minimum"].as_i64().unwrap_or(0).max(1)),
        Some("number") => json!(1.0),
        Some("array") => json!([sample(&schema["items"])]),
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required.map(|name| (name.to_owned(), sample(&schema["properties"][name]))).collect()
        }
        _ => Value::Null,
    }
}

/// A body that a schema allows, for a model that is there.
pub(super) fn request(schema: &Value) -> Value {
    let mut body = sample(schema);
    if let Some(model) = body.get_mut("model") {
        *model = json!("tiny-chat");
    }
    body
}

/// Asserts a refusal in the form that the route's errors have.
#[track_caller]
fn refused(path: &str, answer: &Response, status: u16, param: Option<&str>, code: &str) {
    if path.starts_with("/v1/messages") {
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (status, &json!("invalid_request_error")));
        assert!(answer.body.contains(param.unwrap_or_default()), "{answer:?}");
    } else {
        answer.refused(status, param, code);
    }
}

#[test]
pub(super) fn routes_take_the_documented_methods_and_no_others() {
    let server = Server::tiny(&[]);
    let document = document(&server);
    for (path, methods) in routes(&document) {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let answer = server.send(method, &path, &[], "{}");
            if methods.contains_key(&method.to_ascii_lowercase()) {
                assert_ne!(answer.status, 405, "{method} {path}");
                assert!(!answer.body.contains("route_not_found"), "{method} {path}: {answer:?}");
            } else {
                refused(&path, &answer, 405, None, "method_not_allowed");
                let allowed = methods.keys().all(|name| answer.headers["allow"].contains(&name.to_ascii_uppercase()));
                assert!(allowed, "{method} {path}: {:?}", answer.headers);
            }
        }
    }
}

#[test]
fn bodies_have_the_documented_fields_and_no_others() {
    let server = Server::tiny(&[]);
    let document = document(&server);
    let mut bodies = 0;
    for (path, methods) in routes(&document) {
        let schema =
            &methods.values().next().expect("a method")["requestBody"]["content"]["application/json"]["schema"];
        let Some(fields) = schema["properties"].as_object() else { continue };
        bodies += 1;
        for (name, field) in fields {
            let mut body = request(schema);
            if name != "model" {
                body[name] = sample(field);
            }
            // Some are refused for what they mean together; none is unknown.
            let answer = server.post(&path, &body);
            assert!(!answer.body.contains("unknown_parameter"), "{path} {name}: {answer:?}");
            assert!(!answer.body.contains("unknown field"), "{path} {name}: {answer:?}");
            assert!(answer.status < 500, "{path} {name}: {answer:?}");
        }
        let mut body = request(schema);
        body["temprature"] = json!(1);
        refused(&path, &server.post(&path, &body), 400, Some("temprature"), "unknown_parameter");
    }
    assert!(bodies >= 8);
}

#[test]
fn keys_are_documented_where_there_are_some() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, "alpha\n").expect("written");
    let open = document(&Server::tiny(&[]));
    let keyed = document(&Server::tiny(&["--api-key-file", &file.display().to_string()]));
    let security = |document: &Value, path: &str| document["paths"][path]["get"]["security"].clone();
    assert_eq!(security(&open, "/v1/models"), Value::Null);
    assert_eq!(security(&keyed, "/v1/models"), json!([{"apiKey": []}]));
    assert_eq!(security(&keyed, "/health"), Value::Null);
    assert_eq!(keyed["components"]["securitySchemes"]["apiKey"]["scheme"], "bearer");
}
