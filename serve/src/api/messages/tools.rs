//! `tools` and `tool_choice`, as chat has them.

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::models::Model;
use crate::tools::{Given, Tools};

/// What a tool may have.
const KNOWN: &[&str] = &["type", "name", "description", "input_schema", "strict", "cache_control"];

pub(super) fn take(fields: &mut Fields, model: &Model) -> Result<Tools, ApiError> {
    let tools: Vec<Value> = fields.take("tools")?.unwrap_or_default();
    let tools = tools.iter().enumerate().map(|(index, tool)| nested(index, tool)).collect::<Result<_, _>>()?;
    let (choice, parallel) = match fields.take::<Map<String, Value>>("tool_choice")? {
        None => (None, None),
        Some(choice) => chosen(&choice)?,
    };
    Tools::new(Given { tools, choice, parallel, place: "", objects: true }, model)
}

/// A function as chat has it. What a tool has besides is refused by name.
fn nested(index: usize, tool: &Value) -> Result<Value, ApiError> {
    let refuse = |field: &str, why: &str| {
        let place = format!("tools[{index}]{field}");
        Err(ApiError::invalid(place.clone(), format!("`{place}`: {why}")))
    };
    let Value::Object(tool) = tool else { return refuse("", "an object is needed") };
    match tool.get("type") {
        None | Some(Value::Null) => {}
        Some(kind) if kind == "custom" => {}
        // The check of all tools says why.
        Some(kind) => return Ok(json!({"type": kind})),
    }
    for (name, value) in tool {
        let neutral = match name.as_str() {
            // Arguments are sent as they come.
            "eager_input_streaming" => value.is_boolean(),
            "defer_loading" => *value == json!(false),
            "allowed_callers" => *value == json!(["direct"]),
            "input_examples" => *value == json!([]),
            name => KNOWN.contains(&name),
        };
        if !neutral && !value.is_null() {
            let place = format!("tools[{index}].{name}");
            return Err(ApiError::unsupported(
                place.clone(),
                format!("`{place}` = {value} is not supported; remove it"),
            ));
        }
    }
    let Some(schema @ Value::Object(_)) = tool.get("input_schema") else {
        return refuse(".input_schema", "a JSON schema is needed");
    };
    let mut function = json!({"name": tool.get("name"), "parameters": schema});
    for name in ["description", "strict"] {
        if let Some(value) = tool.get(name).filter(|value| !value.is_null()) {
            function[name] = value.clone();
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

/// The choice, and whether there may be several calls.
fn chosen(choice: &Map<String, Value>) -> Result<(Option<Value>, Option<bool>), ApiError> {
    let refuse = |why: String| Err(ApiError::invalid("tool_choice", format!("`tool_choice`: {why}")));
    let known = ["type", "name", "disable_parallel_tool_use"];
    if let Some(name) = choice.iter().find(|(name, value)| !value.is_null() && !known.contains(&name.as_str())) {
        return refuse(format!("unknown field `{}`; remove it", name.0));
    }
    let parallel = match choice.get("disable_parallel_tool_use") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(disabled)) => Some(!disabled),
        Some(other) => return refuse(format!("`disable_parallel_tool_use` is {other}; true or false is needed")),
    };
    let mode = match choice.get("type").and_then(Value::as_str) {
        Some("auto") => json!("auto"),
        Some("any") => json!("required"),
        Some("none") => json!("none"),
        Some("tool") => json!({"type": "function", "function": {"name": choice.get("name")}}),
        _ => return refuse("`type` must be auto, any, tool or none".to_owned()),
    };
    Ok((Some(mode), parallel))
}
