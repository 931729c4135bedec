//! `tools`, `tool_choice`: which functions the model is told of, whether its calls are looked for, and what they look like.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::models::Model;
use crate::structured::grammar::bounded;

/// Functions that the model may call.
#[derive(Debug)]
pub(crate) struct Tools {
    /// As chat templates know them.
    tools: Vec<Value>,
    choice: Choice,
    /// Names of those that may be called; `None` is all.
    allowed: Option<Vec<String>>,
    parallel: bool,
    objects: bool,
}

/// What a request says about them, in the form of chat.
pub(crate) struct Given {
    pub(crate) tools: Vec<Value>,
    pub(crate) choice: Option<Value>,
    pub(crate) parallel: Option<bool>,
    /// What stands between `tools[0].` and `name` where the request came from.
    pub(crate) place: &'static str,
    /// The arguments of every call have to be an object, because the answer has them as one.
    pub(crate) objects: bool,
}

/// Whether calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    None,
    Auto,
    Required,
}

/// What `tool_choice` says.
struct Chosen {
    choice: Choice,
    /// Only these functions.
    allowed: Option<Vec<String>>,
    /// One call and no more.
    single: bool,
}

/// What one call looks like, and how many there may be.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Schema of the object between the markers.
    pub(crate) object: Value,
    pub(crate) several: bool,
}

impl Chosen {
    fn new(choice: Option<&Value>, tools: &[Value]) -> Result<Self, ApiError> {
        let invalid = |why: String| ApiError::invalid("tool_choice", format!("`tool_choice`: {why}"));
        let any = |choice| Self { choice, allowed: None, single: false };
        let chosen = match choice {
            None => any(Choice::Auto),
            Some(Value::String(mode)) if mode == "none" => any(Choice::None),
            Some(Value::String(mode)) => {
                any(mode_of(mode).ok_or_else(|| invalid(format!("\"{mode}\" is not none, auto or required")))?)
            }
            Some(choice) if choice["type"] == "allowed_tools" => {
                Self::among(&choice["allowed_tools"]).map_err(invalid)?
            }
            Some(choice) => {
                let name = function_name(choice).ok_or_else(|| invalid(format!("{choice} names no function")))?;
                Self { choice: Choice::Required, allowed: Some(vec![name]), single: true }
            }
        };
        for name in chosen.allowed.iter().flatten() {
            if !tools.iter().any(|tool| tool["function"]["name"] == json!(name)) {
                return Err(invalid(format!("`tools` has no function \"{name}\"")));
            }
        }
        let nothing = chosen.allowed.as_ref().map_or(tools.is_empty(), Vec::is_empty);
        match chosen.choice {
            Choice::Required if nothing => Err(invalid("\"required\" needs a tool to call".to_owned())),
            Choice::Auto if nothing => Ok(any(Choice::None)),
            _ => Ok(chosen),
        }
    }

    /// Chat's `allowed_tools`: a mode, and the functions that it is about.
    fn among(given: &Value) -> Result<Self, String> {
        let mode = given["mode"].as_str().and_then(mode_of);
        let choice = mode.ok_or_else(|| format!("the mode {} is not auto or required", given["mode"]))?;
        let tools = given["tools"].as_array().ok_or("a list of allowed tools is needed")?;
        let name = |tool| function_name(tool).ok_or_else(|| format!("the allowed tool {tool} names no function"));
        Ok(Self { choice, allowed: Some(tools.iter().map(name).collect::<Result<_, _>>()?), single: false })
    }
}

/// The modes in which calls may be made.
fn mode_of(mode: &str) -> Option<Choice> {
    match mode {
        "auto" => Some(Choice::Auto),
        "required" => Some(Choice::Required),
        _ => None,
    }
}

/// The function that a choice names.
fn function_name(choice: &Value) -> Option<String> {
    choice["function"]["name"].as_str().filter(|_| choice["type"] == "function").map(str::to_owned)
}

impl Tools {
    /// Chat's fields.
    pub(crate) fn take(fields: &mut Fields, model: &Model) -> Result<Self, ApiError> {
        let given = Given {
            tools: fields.take("tools")?.unwrap_or_default(),
            choice: fields.take("tool_choice")?,
            parallel: fields.take("parallel_tool_calls")?,
            place: "function.",
            objects: false,
        };
        Self::new(given, model)
    }

    pub(crate) fn new(given: Given, model: &Model) -> Result<Self, ApiError> {
        let Given { tools, choice, parallel, place, objects } = given;
        let Chosen { choice, allowed, single } = Chosen::new(choice.as_ref(), &tools)?;
        tools.iter().enumerate().try_for_each(|(index, tool)| check(index, tool, place))?;
        if choice != Choice::None && !model.chat_template()?.source().contains("tools") {
            let message = format!("the chat template of {} has no place for tools", model.name());
            return Err(ApiError::unsupported("tools", message));
        }
        Ok(Self { tools, choice, allowed, parallel: parallel.unwrap_or(true) && !single, objects })
    }

    /// As the chat template gets them, all of them whichever are allowed, so that the prompt stays the same; `None` when the
    /// model must not call.
    pub(crate) fn offered(&self) -> Option<Value> {
        (self.choice != Choice::None).then(|| json!(self.tools))
    }

    fn callable(&self) -> Vec<&Value> {
        let allowed = |tool: &&Value| {
            let names = self.allowed.as_ref();
            names.is_none_or(|names| names.iter().any(|name| tool["function"]["name"] == json!(name)))
        };
        self.tools.iter().filter(allowed).collect()
    }

    /// Whether only the first call counts.
    pub(crate) fn is_single(&self) -> bool {
        !self.parallel
    }

    /// The calls of which an answer must consist, by the schemas of their functions.
    pub(crate) fn demanded(&self) -> Result<Option<Calls>, ApiError> {
        (self.choice == Choice::Required).then(|| calls(&self.callable(), self.parallel, true)).transpose()
    }

    /// The only function that can be called where a call is demanded.
    pub(crate) fn only(&self) -> Option<Arc<str>> {
        match self.callable()[..] {
            [tool] if self.choice == Choice::Required => tool["function"]["name"].as_str().map(Into::into),
            _ => None,
        }
    }

    /// The calls that the model may make if it chooses to; arguments keep to the schemas of functions that are `strict`.
    pub(crate) fn possible(&self) -> Result<Option<Calls>, ApiError> {
        (self.choice == Choice::Auto).then(|| calls(&self.callable(), self.parallel, false)).transpose()
    }

    /// Whether a call that the model chooses to make is not free: its arguments have a form, or not all functions are allowed.
    pub(crate) fn are_bound(&self) -> bool {
        self.choice == Choice::Auto && (self.objects || self.allowed.is_some() || self.tools.iter().any(is_strict))
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
    Ok(Calls { object: bounded(json!({"anyOf": any, "$defs": definitions})), several })
}

/// Why a tool of another type is refused, and where clients that offer it by themselves are told not to.
fn not_a_function(kind: Option<&str>) -> String {
    let Some(kind) = kind else { return "\"function\" is needed".to_owned() };
    let what = match kind {
        "namespace" => {
            "functions are called by their own names only, not in groups; Codex CLI leaves its groups out with \
             `multi_agent = false` under `[features]` in config.toml (or `--disable multi_agent`) and without MCP servers and apps"
        }
        "tool_search" => "all tools are in the prompt, none is searched for; offer them without `defer_loading`",
        "custom" | "apply_patch" | "local_shell" | "shell" => {
            "arguments are JSON; offer it as a function with `parameters`, as clients do for models that they do not know"
        }
        _ if kind.starts_with("web_search") => {
            "nothing is searched here; turn it off in the client (Codex CLI: `web_search = \"disabled\"` in config.toml), or offer \
             a function that searches"
        }
        _ => "no tool runs on this server; turn it off in the client, or offer a function that does it",
    };
    format!("\"{kind}\" is not supported, only \"function\" is: {what}")
}

/// A function with a name.
fn check(index: usize, tool: &Value, place: &str) -> Result<(), ApiError> {
    let refuse = |field: &str, why: &str| {
        let name = format!("tools[{index}].{field}");
        Err(ApiError::invalid(name.clone(), format!("`{name}`: {why}")))
    };
    if tool["type"] != "function" {
        return refuse("type", &not_a_function(tool["type"].as_str()));
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
