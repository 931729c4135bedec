//! `tools`, `tool_choice`: which functions the model is told of, and whether its calls are looked for.

use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::models::ServedModel;

/// Functions that the model may call.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// As the chat template gets them; `None` when the model must not call.
    pub(super) offered: Option<Value>,
    /// Only the first call counts.
    pub(super) single: bool,
}

impl Tools {
    pub(super) fn take(fields: &mut Fields, model: &ServedModel) -> Result<Self, ApiError> {
        let tools: Vec<Value> = fields.take("tools")?.unwrap_or_default();
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        tools.iter().enumerate().try_for_each(|(index, tool)| check(index, tool))?;
        let wanted = match fields.take::<Value>("tool_choice")? {
            None => !tools.is_empty(),
            Some(choice) if choice == "none" => false,
            Some(choice) if choice == "auto" => !tools.is_empty(),
            Some(choice) => {
                let message = format!(
                    "`tool_choice` = {choice} is not supported: a call cannot be forced; send \"auto\" or \"none\""
                );
                return Err(ApiError::unsupported("tool_choice", message));
            }
        };
        if !wanted {
            return Ok(Self::default());
        }
        if !model.chat_template()?.source().contains("tools") {
            let message = format!("the chat template of {} has no place for tools", model.name());
            return Err(ApiError::unsupported("tools", message));
        }
        Ok(Self { offered: Some(json!(tools)), single: !parallel })
    }
}

/// A function with a name, whose arguments nobody vouches for.
fn check(index: usize, tool: &Value) -> Result<(), ApiError> {
    let refuse = |field: &str, why: &str| {
        let name = format!("tools[{index}].{field}");
        Err(ApiError::invalid(name.clone(), format!("`{name}`: {why}")))
    };
    if tool["type"] != "function" {
        return refuse("type", "only \"function\" is supported");
    }
    let function = &tool["function"];
    if !function["name"].as_str().is_some_and(|name| !name.is_empty()) {
        return refuse("function.name", "a name is needed");
    }
    if !(function["parameters"].is_object() || function["parameters"].is_null()) {
        return refuse("function.parameters", "a JSON schema is needed");
    }
    match &function["strict"] {
        Value::Null | Value::Bool(false) => Ok(()),
        _ => refuse("function.strict", "arguments are not constrained to the schema; send false"),
    }
}
