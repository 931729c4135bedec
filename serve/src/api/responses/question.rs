//! The fields of a response that its prompt depends on.

use std::sync::Arc;

use runtime::text::Ending;
use serde_json::{Map, Value, json};

use super::super::chat_request::Question;
use super::input;
use crate::api_error::ApiError;
use crate::fields::{Fields, NO_VERBOSITY, VERBOSITY};
use crate::models::Model;
use crate::prompt::{self, PromptEncoding};
use crate::reasoning::{Reasoning, USUAL_EFFORT};
use crate::structured::grammar::ResponseFormat;
use crate::tools::{Given, Tools};

/// Takes them; besides the question it returns what a response repeats of them.
pub(super) fn take(fields: &mut Fields, model: &Arc<Model>) -> Result<(Question, Map<String, Value>), ApiError> {
    fields.only("previous_response_id", &[], "responses are not stored; send the whole conversation in `input`")?;
    fields.only("conversation", &[], "conversations are not stored; send the whole conversation in `input`")?;
    fields.only("truncation", &[json!("disabled")], "nothing is left out of a conversation")?;
    let instructions: Option<String> = fields.take("instructions")?;
    let messages = input::messages(instructions.as_deref(), fields.take("input")?)?;
    let given: Vec<Value> = fields.take("tools")?.unwrap_or_default();
    let choice: Option<Value> = fields.take("tool_choice")?;
    let parallel: Option<bool> = fields.take("parallel_tool_calls")?;
    let (text, form) = form(fields)?;
    let mut thinking = Reasoning::take(fields, model)?;
    let reasoning = reasoning(fields, model, &mut thinking)?;
    let echo = json!({
        "instructions": instructions,
        "parallel_tool_calls": parallel.unwrap_or(true),
        "reasoning": reasoning,
        "text": text,
        "tool_choice": choice.clone().unwrap_or_else(|| json!("auto")),
        "tools": given.iter().map(echoed).collect::<Vec<_>>(),
    });
    let Value::Object(echo) = echo else { unreachable!("it is written as an object") };
    let tools = given.iter().enumerate().map(|(index, tool)| nested(index, tool)).collect::<Result<_, _>>()?;
    let question = Question {
        model: Arc::clone(model),
        messages: prompt::conversation(messages).map_err(|error| error.about("input"))?,
        field: "input",
        tools: Tools::new(
            Given { tools, choice: choice.map(nested_choice), parallel, place: "", objects: false },
            model,
        )?,
        form: form.map(|form| (form, "text")),
        thinking,
        ending: Ending::Answer,
        encoding: PromptEncoding::whole(false),
    };
    Ok((question, echo))
}

/// `text`: as the answer repeats it, and the form that it asks for.
fn form(fields: &mut Fields) -> Result<(Value, Option<ResponseFormat>), ApiError> {
    let mut text = fields.take::<Fields>("text")?.unwrap_or_default();
    let verbosity = json!(VERBOSITY);
    text.only("verbosity", std::slice::from_ref(&verbosity), NO_VERBOSITY).map_err(|error| error.below("text"))?;
    let format = text.take("format")?.unwrap_or_else(|| json!({"type": "text"}));
    text.finish().map_err(|error| error.below("text"))?;
    let form = ResponseFormat::of_format(&format, &format, "text.format", "")?;
    Ok((json!({"format": format}), form))
}

/// `reasoning`: as the answer repeats it.
fn reasoning(fields: &mut Fields, model: &Model, thinking: &mut Reasoning) -> Result<Value, ApiError> {
    let mut reasoning = fields.take::<Fields>("reasoning")?.unwrap_or_default();
    let effort: Option<String> = reasoning.take("effort").map_err(|error| error.below("reasoning"))?;
    thinking.effort(effort.as_deref(), "reasoning.effort", USUAL_EFFORT, model)?;
    for (field, usual) in [("summary", "auto"), ("generate_summary", "auto"), ("context", "auto"), ("mode", "standard")]
    {
        let why = "reasoning is given as it is, in the content of its item";
        reasoning.only(field, &[json!(usual)], why).map_err(|error| error.below("reasoning"))?;
    }
    reasoning.finish().map_err(|error| error.below("reasoning"))?;
    Ok(json!({"effort": effort, "summary": null}))
}

/// A function as chat has it. What a tool has besides is refused by name.
fn nested(index: usize, tool: &Value) -> Result<Value, ApiError> {
    let Value::Object(mut function) = tool.clone() else {
        let place = format!("tools[{index}]");
        return Err(ApiError::invalid(place.clone(), format!("`{place}`: an object is needed")));
    };
    function.retain(|_, value| !value.is_null());
    let kind = function.shift_remove("type");
    if kind.as_ref().is_some_and(|kind| kind == "function") {
        let known = ["name", "description", "parameters", "strict"];
        if let Some(key) = function.keys().find(|key| !known.contains(&key.as_str())) {
            let place = format!("tools[{index}].{key}");
            return Err(ApiError::unsupported(place.clone(), format!("`{place}` is not supported; remove it")));
        }
    }
    Ok(json!({"type": kind, "function": function}))
}

/// A named function, or those that are allowed, as chat has it.
fn nested_choice(choice: Value) -> Value {
    let named = |choice: &Value| json!({"type": choice["type"], "function": {"name": choice["name"]}});
    match &choice {
        Value::Object(_) if choice["type"] == "allowed_tools" => {
            let tools = choice["tools"].as_array().map(|tools| tools.iter().map(named).collect::<Vec<_>>());
            json!({"type": choice["type"], "allowed_tools": {"mode": choice["mode"], "tools": tools}})
        }
        Value::Object(_) => named(&choice),
        _ => choice,
    }
}

/// A function as the answer repeats it: what is left out is there as `null`.
fn echoed(tool: &Value) -> Value {
    let mut tool = tool.clone();
    if let Some(fields) = tool.as_object_mut() {
        for field in ["description", "parameters"] {
            fields.entry(field).or_insert(Value::Null);
        }
        fields.entry("strict").or_insert(json!(false));
    }
    tool
}
