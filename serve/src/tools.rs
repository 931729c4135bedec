//! `tools`, `tool_choice`: which functions the model is told of, whether its calls are looked for, and what they look like.

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::grammar::spaced;
use crate::models::Model;

/// Functions that the model may call.
#[derive(Debug)]
pub(crate) struct Tools {
    /// As chat templates know them.
    tools: Vec<Value>,
    choice: Choice,
    parallel: bool,
}

/// What a request says about them, in the form of chat.
pub(crate) struct Given {
    pub(crate) tools: Vec<Value>,
    pub(crate) choice: Option<Value>,
    pub(crate) parallel: Option<bool>,
    /// What stands between `tools[0].` and `name` where the request came from.
    pub(crate) place: &'static str,
}

/// What `tool_choice` says.
#[derive(Debug)]
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

/// What one call looks like, and how many there may be.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Schema of the object between the markers.
    pub(crate) object: Value,
    pub(crate) several: bool,
}

impl Choice {
    fn new(choice: Option<Value>, tools: &[Value]) -> Result<Self, ApiError> {
        let invalid = |why: String| ApiError::invalid("tool_choice", format!("`tool_choice`: {why}"));
        let choice = match choice {
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
    /// Chat's fields.
    pub(crate) fn take(fields: &mut Fields, model: &Model) -> Result<Self, ApiError> {
        let given = Given {
            tools: fields.take("tools")?.unwrap_or_default(),
            choice: fields.take("tool_choice")?,
            parallel: fields.take("parallel_tool_calls")?,
            place: "function.",
        };
        Self::new(given, model)
    }

    pub(crate) fn new(Given { tools, choice, parallel, place }: Given, model: &Model) -> Result<Self, ApiError> {
        let choice = Choice::new(choice, &tools)?;
        tools.iter().enumerate().try_for_each(|(index, tool)| check(index, tool, place))?;
        if !matches!(choice, Choice::None) && !model.chat_template()?.source().contains("tools") {
            let message = format!("the chat template of {} has no place for tools", model.name());
            return Err(ApiError::unsupported("tools", message));
        }
        Ok(Self { tools, choice, parallel: parallel.unwrap_or(true) })
    }

    /// As the chat template gets them; `None` when the model must not call.
    pub(crate) fn offered(&self) -> Option<Value> {
        (!matches!(self.choice, Choice::None)).then(|| json!(self.tools))
    }

    /// Whether only the first call counts.
    pub(crate) fn is_single(&self) -> bool {
        !self.parallel
    }

    /// The calls of which an answer must consist, by the schemas of their functions.
    pub(crate) fn demanded(&self) -> Result<Option<Calls>, ApiError> {
        match &self.choice {
            Choice::None | Choice::Auto => Ok(None),
            Choice::Required => calls(&self.tools.iter().collect::<Vec<_>>(), self.parallel, true).map(Some),
            Choice::Named(name) => {
                let named: Vec<&Value> =
                    self.tools.iter().filter(|tool| tool["function"]["name"] == json!(name)).collect();
                calls(&named, false, true).map(Some)
            }
        }
    }

    /// The calls that the model may make if it chooses to; arguments keep to the schemas of functions that are `strict`.
    pub(crate) fn possible(&self) -> Result<Option<Calls>, ApiError> {
        match self.choice {
            Choice::Auto => calls(&self.tools.iter().collect::<Vec<_>>(), self.parallel, false).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether a call that the model chooses to make must keep to a schema.
    pub(crate) fn any_strict(&self) -> bool {
        matches!(self.choice, Choice::Auto) && self.tools.iter().any(is_strict)
    }
}

fn is_strict(tool: &Value) -> bool {
    tool["function"]["strict"] == true
}

/// Calls of these functions; `all` keep to their schemas, or those that are strict.
fn calls(tools: &[&Value], several: bool, all: bool) -> Result<Calls, ApiError> {
    let mut definitions = Map::new();
    let mut one = |tool: &&Value| -> Result<Value, ApiError> {
        let function = &tool["function"];
        let mut arguments = match &function["parameters"] {
            parameters @ Value::Object(_) if all || is_strict(tool) => parameters.clone(),
            _ => json!({"type": "object"}),
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
    let any = tools.iter().map(&mut one).collect::<Result<Vec<_>, _>>()?;
    Ok(Calls { object: spaced(json!({"anyOf": any, "$defs": definitions})), several })
}

/// A function with a name.
fn check(index: usize, tool: &Value, place: &str) -> Result<(), ApiError> {
    let refuse = |field: &str, why: &str| {
        let name = format!("tools[{index}].{field}");
        Err(ApiError::invalid(name.clone(), format!("`{name}`: {why}")))
    };
    if tool["type"] != "function" {
        return refuse("type", "only \"function\" is supported");
    }
    let function = &tool["function"];
    if function["name"].as_str().is_none_or(str::is_empty) {
        return refuse(&format!("{place}name"), "a name is needed");
    }
    if !(function["parameters"].is_object() || function["parameters"].is_null()) {
        return refuse(&format!("{place}parameters"), "a JSON schema is needed");
    }
    match &function["strict"] {
        Value::Null | Value::Bool(_) => Ok(()),
        _ => refuse(&format!("{place}strict"), "true or false is needed"),
    }
}
