//! `tools`, `tool_choice`: which functions the model is told of, and whether its calls are looked for.

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::grammar::{Form, spaced};
use crate::models::Model;

/// Functions that the model may call.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// As the chat template gets them; `None` when the model must not call.
    pub(super) offered: Option<Value>,
    /// Only the first call counts.
    pub(super) single: bool,
    /// The form of an answer that must call.
    pub(super) forced: Option<Form>,
}

/// What `tool_choice` says.
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

impl Choice {
    fn take(fields: &mut Fields, tools: &[Value]) -> Result<Self, ApiError> {
        let invalid = |why: String| ApiError::invalid("tool_choice", format!("`tool_choice`: {why}"));
        let choice = match fields.take::<Value>("tool_choice")? {
            None if tools.is_empty() => Self::None,
            None => Self::Auto,
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => Self::None,
                "auto" if tools.is_empty() => Self::None,
                "auto" => Self::Auto,
                "required" => Self::Required,
                other => return Err(invalid(format!("\"{other}\" is not none, auto or required"))),
            },
            Some(choice) => match choice["function"]["name"].as_str().filter(|_| choice["type"] == "function") {
                Some(name) => Self::Named(name.to_owned()),
                None => return Err(invalid(format!("{choice} names no function"))),
            },
        };
        match &choice {
            Self::Required if tools.is_empty() => Err(invalid("\"required\" needs `tools`".to_owned())),
            Self::Named(name) if !tools.iter().any(|tool| tool["function"]["name"] == json!(name)) => {
                Err(invalid(format!("`tools` has no function \"{name}\"")))
            }
            _ => Ok(choice),
        }
    }
}

impl Tools {
    pub(super) fn take(fields: &mut Fields, model: &Model) -> Result<Self, ApiError> {
        let tools: Vec<Value> = fields.take("tools")?.unwrap_or_default();
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        let choice = Choice::take(fields, &tools)?;
        let forced = matches!(choice, Choice::Required | Choice::Named(_));
        tools.iter().enumerate().try_for_each(|(index, tool)| check(index, tool, forced))?;
        if matches!(choice, Choice::None) {
            return Ok(Self::default());
        }
        if !model.chat_template()?.source().contains("tools") {
            let message = format!("the chat template of {} has no place for tools", model.name());
            return Err(ApiError::unsupported("tools", message));
        }
        let forced = match &choice {
            Choice::None | Choice::Auto => None,
            Choice::Required => Some(calls(tools.iter().collect(), parallel)?),
            Choice::Named(name) => {
                Some(calls(tools.iter().filter(|tool| tool["function"]["name"] == json!(name)).collect(), false)?)
            }
        };
        Ok(Self { offered: Some(json!(tools)), single: !parallel, forced })
    }
}

/// The form of one call of these functions, or of some.
fn calls(tools: Vec<&Value>, several: bool) -> Result<Form, ApiError> {
    let mut definitions = Map::new();
    let mut one = |tool: &Value| -> Result<Value, ApiError> {
        let function = &tool["function"];
        let mut arguments = match &function["parameters"] {
            Value::Null => json!({"type": "object"}),
            parameters => parameters.clone(),
        };
        // What a schema defines for itself has to be at the root of the whole.
        if let Some(Value::Object(own)) = arguments.as_object_mut().and_then(|schema| schema.shift_remove("$defs")) {
            for (name, definition) in own {
                if definitions.get(&name).is_some_and(|other| *other != definition) {
                    let message = format!("two tools define `$defs.{name}` differently; rename one");
                    return Err(ApiError::unsupported("tools", message));
                }
                definitions.insert(name, definition);
            }
        }
        let properties = json!({"name": {"const": function["name"]}, "arguments": arguments});
        Ok(json!({
            "type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": false,
        }))
    };
    let any = tools.into_iter().map(&mut one).collect::<Result<Vec<_>, _>>()?;
    let schema = spaced(json!({"anyOf": any, "$defs": definitions}));
    let start = if several { "start: call (\"\\n\" call)*" } else { "start: call" };
    let call = "call: \"<tool_call>\\n\" object \"\\n</tool_call>\"";
    Ok(Form::Lark(format!("{start}\n{call}\nobject: %json {schema}\n")))
}

/// A function with a name. Its arguments follow the schema only in an answer that must call.
fn check(index: usize, tool: &Value, forced: bool) -> Result<(), ApiError> {
    let refuse = |field: &str, why: &str| {
        let name = format!("tools[{index}].{field}");
        Err(ApiError::invalid(name.clone(), format!("`{name}`: {why}")))
    };
    if tool["type"] != "function" {
        return refuse("type", "only \"function\" is supported");
    }
    let function = &tool["function"];
    if function["name"].as_str().is_none_or(str::is_empty) {
        return refuse("function.name", "a name is needed");
    }
    if !(function["parameters"].is_object() || function["parameters"].is_null()) {
        return refuse("function.parameters", "a JSON schema is needed");
    }
    match &function["strict"] {
        Value::Null | Value::Bool(false) => Ok(()),
        Value::Bool(true) if forced => Ok(()),
        _ => refuse(
            "function.strict",
            "only with `tool_choice` \"required\" or a named function do arguments keep to the schema",
        ),
    }
}
