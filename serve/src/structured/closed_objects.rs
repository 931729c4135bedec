//! Objects of a JSON schema that end: one that lists its `properties` has no others unless the schema says so.
//!
//! By the letter of JSON schema such an object may go on with any other member, and a small model then writes members without
//! end. OpenAI asks for `additionalProperties: false` everywhere, vLLM's default library behaves as if it were there. An object
//! stays open where closing it could contradict another part of the schema.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

type Members = Map<String, Value>;

/// Members that hold schemas of a part of the value.
const PARTS: [&str; 5] = ["items", "prefixItems", "additionalProperties", "contains", "unevaluatedItems"];
/// Members that hold such schemas by name.
const NAMED_PARTS: [&str; 2] = ["properties", "patternProperties"];
/// Members that hold schemas by name, which are used where they are referred to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
/// Members that hold schemas of the same value.
const SAME_VALUE: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Members that hold values, or schemas of what is not there.
const LEFT: [&str; 6] = ["const", "enum", "default", "examples", "not", "if"];
/// Members by which a part of the value may be described elsewhere, too.
const MIXED: [&str; 6] = ["patternProperties", "dependentSchemas", "dependencies", "if", "$ref", "$dynamicRef"];
/// Members that say themselves what an object has besides its listed properties.
const OPEN: [&str; 6] =
    ["additionalProperties", "unevaluatedProperties", "propertyNames", "minProperties", "dependentRequired", "not"];

/// Closes the objects of a schema. Its depth is bounded where JSON is read.
pub(crate) fn close(schema: &mut Value) {
    let mut shared = BTreeSet::new();
    find_shared(schema, true, &mut shared);
    close_value(schema, true, "#", &shared);
}

fn is_mixed(members: &Members) -> bool {
    members.keys().any(|key| SAME_VALUE.contains(&key.as_str()) || MIXED.contains(&key.as_str()))
}

/// Whether what stands under `name` is all that is said of its value; `None` where nothing is to be closed there. `alone`
/// says it of the schema itself.
fn alone_within(members: &Members, name: &str, alone: bool) -> Option<bool> {
    let describes = |key: &str| {
        key == "properties"
            || key == "required"
            || [&SAME_VALUE[..], &MIXED, &OPEN].iter().any(|keys| keys.contains(&key))
    };
    match name {
        _ if LEFT.contains(&name) => None,
        _ if DEFINITIONS.contains(&name) => Some(true),
        _ if PARTS.contains(&name) || NAMED_PARTS.contains(&name) => Some(alone && !is_mixed(members)),
        "anyOf" | "oneOf" => Some(alone && !members.keys().any(|key| key != name && describes(key))),
        _ => Some(false),
    }
}

fn by_name(name: &str) -> bool {
    NAMED_PARTS.contains(&name) || DEFINITIONS.contains(&name)
}

/// Collects what is referred to by a schema that shares its value with another one.
fn find_shared(schema: &Value, alone: bool, shared: &mut BTreeSet<String>) {
    let Value::Object(members) = schema else { return };
    if let Some(Value::String(target)) = members.get("$ref") {
        let beside = members.keys().any(|key| key == "properties" || SAME_VALUE.contains(&key.as_str()));
        if !alone || beside {
            shared.insert(target.clone());
        }
    }
    for (name, member) in members {
        let Some(within) = alone_within(members, name, alone) else { continue };
        match member {
            Value::Array(parts) => parts.iter().for_each(|part| find_shared(part, within, shared)),
            Value::Object(parts) if by_name(name) => parts.values().for_each(|part| find_shared(part, within, shared)),
            member => find_shared(member, within, shared),
        }
    }
}

fn close_value(schema: &mut Value, alone: bool, path: &str, shared: &BTreeSet<String>) {
    let alone = alone && !shared.contains(path);
    let Value::Object(members) = schema else { return };
    let within: Vec<(String, bool)> =
        members.keys().filter_map(|name| Some((name.clone(), alone_within(members, name, alone)?))).collect();
    for (name, within) in within {
        match &mut members[&name] {
            Value::Array(parts) => parts.iter_mut().for_each(|part| close_value(part, within, "", shared)),
            Value::Object(parts) if by_name(&name) => {
                for (key, part) in parts.iter_mut() {
                    close_value(part, within, &format!("{path}/{name}/{key}"), shared);
                }
            }
            member => close_value(member, within, "", shared),
        }
    }
    if alone && can_close(members) {
        members.insert("additionalProperties".to_owned(), json!(false));
    }
}

fn can_close(members: &Members) -> bool {
    let Some(Value::Object(properties)) = members.get("properties") else { return false };
    let required = members.get("required").and_then(Value::as_array).into_iter().flatten();
    let known = required.filter_map(Value::as_str).all(|name| properties.contains_key(name));
    !properties.is_empty() && known && !is_mixed(members) && !members.keys().any(|key| OPEN.contains(&key.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(mut schema: Value) -> Value {
        close(&mut schema);
        schema
    }

    #[test]
    fn an_object_with_listed_properties_ends() {
        let inner = json!({"type": "object", "properties": {"b": {"type": "integer"}}});
        let schema = json!({
            "type": "object", "required": ["a"],
            "properties": {"a": {"type": "array", "items": inner}, "c": {"anyOf": [inner, {"type": "null"}]}},
            "$defs": {"d": inner},
        });
        let got = closed(schema);
        for place in ["", "/properties/a/items", "/properties/c/anyOf/0", "/$defs/d"] {
            assert_eq!(got.pointer(place).expect("there")["additionalProperties"], json!(false), "{place}");
        }
    }

    /// Each of these has objects that need a member which they do not list, or may.
    #[test]
    fn an_object_that_may_have_more_stays_open() {
        let a = json!({"type": "object", "properties": {"a": {}}});
        let b = json!({"type": "object", "properties": {"b": {}}});
        for schema in [
            json!({"type": "object"}),
            json!({"type": "object", "properties": {}}),
            json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}}),
            json!({"type": "object", "properties": {"a": {}}, "required": ["b"]}),
            json!({"type": "object", "properties": {"a": {}}, "patternProperties": {"^x": {}}}),
            json!({"type": "object", "properties": {"a": {}}, "minProperties": 2}),
            json!({"allOf": [a, b]}),
            json!({"properties": {"a": {}}, "anyOf": [b]}),
            json!({"$ref": "#/$defs/d", "properties": {"a": {}}, "$defs": {"d": b}}),
            json!({"allOf": [{"$ref": "#/$defs/d"}, a], "$defs": {"d": b}}),
            json!({"allOf": [{"properties": {"x": a}}, {"properties": {"x": b}}]}),
            json!({"const": {"properties": {"a": {"properties": {"b": 1}}}}}),
            json!({"type": "object", "not": a}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
