//! The description of `POST /v1/responses`.

use super::input::STATUSES;
use super::request::{LOGPROBS, OF_OTHER_ITEMS};
use crate::api::envelope::describe_versions;
use crate::fields::{VERBOSITY, describe_no_effect};
use crate::openapi::Operation;
use crate::openapi::schema::{
    Members, Schema, any, any_of, boolean, count, exactly, integer, list, map, named, null, nullable, one_of,
    some_text, text,
};
use crate::reasoning::describe_budget;
use crate::sampling::{self, MAX_ALTERNATIVES};
use crate::structured::grammar::describe_named_schema;

const STORED: &str = "Nothing but `null` is honoured: nothing is stored.";

pub(crate) fn describe() -> Operation {
    let event = Members::new()
        .always("type", text(), "`response.created`, ... : the name of the event.")
        .always("sequence_number", count(), "From 0.")
        .maybe("response", named("Response"), "")
        .maybe("output_index", count(), "")
        .maybe("item", item(), "");
    Operation::new("createResponse", "Answers a conversation, in the newer form")
        .reads(body())
        .finds_model()
        .submits()
        .answers(named("Response"))
        .streams_typed("ResponseEvent", event.open())
        .defines("Response", response())
}

fn body() -> Members {
    let nothing = "Nothing but `null` is honoured.";
    let include = [&[LOGPROBS], OF_OTHER_ITEMS].concat();
    let obfuscation = Members::new().maybe("include_obfuscation", boolean(), "Accepted; it changes no result.");
    Members::new()
        .maybe("model", text(), "The first one when it is left out.")
        .and(describe_conversation())
        .maybe("max_output_tokens", count(), "The rest of the context when it is left out.")
        .and(sampling::describe())
        .maybe("stream", boolean(), "The response as server-sent events.")
        .maybe("stream_options", obfuscation.sent(), "Needs `stream`.")
        .maybe("include", list(one_of(&include)), "The first is honoured; no item has what the others are about.")
        .maybe("top_logprobs", integer(0..=MAX_ALTERNATIVES as i128), "Needs log-probabilities in `include`.")
        .and(describe_question())
        .maybe("prompt", null(), STORED)
        .maybe("background", exactly(false), "Nothing is stored, so nothing could be fetched later.")
        .maybe("background_options", null(), nothing)
        .maybe("context_management", null(), nothing)
        .maybe("moderation", null(), nothing)
        .maybe("image", null(), nothing)
        .maybe("access_programs", null(), nothing)
        .maybe(
            "max_tool_calls",
            integer(i128::from(i64::MIN)..=i128::from(i64::MAX)),
            "Accepted; it limits tools that run on the server, of which there are none.",
        )
        .and(describe_no_effect())
        .maybe("metadata", map(text()), "Repeated in the response.")
}

/// The conversation to answer.
pub(super) fn describe_conversation() -> Members {
    Members::new().maybe("input", any_of([text(), list(input_item())]), "The conversation.").maybe(
        "instructions",
        text(),
        "A system message before it.",
    )
}

/// What else the prompt depends on.
pub(super) fn describe_question() -> Members {
    let verbose = "Answers are as long as the model makes them.";
    Members::new()
        .maybe("tools", list(tool()), "Functions that the model may call.")
        .maybe("tool_choice", tool_choice(), "`required`, a named function and the allowed tools are enforced.")
        .maybe("parallel_tool_calls", boolean(), "Whether more than one call counts.")
        .maybe(
            "text",
            Members::new().maybe("format", format(), "").maybe("verbosity", exactly(VERBOSITY), verbose).sent(),
            "",
        )
        .maybe("reasoning", reasoning(), "")
        .and(describe_budget())
        .maybe("previous_response_id", null(), STORED)
        .maybe("conversation", null(), STORED)
        .maybe("truncation", exactly("disabled"), "Nothing is left out of a conversation.")
}

fn input_item() -> Schema {
    let part = |kinds: &[&str], member: &'static str| {
        Members::new().always("type", one_of(kinds), "").always(member, text(), "").open()
    };
    let parts = || {
        let texts = part(&["input_text", "output_text", "reasoning_text"], "text");
        list(any_of([texts, part(&["refusal"], "refusal")]))
    };
    let content = || any_of([text(), parts()]);
    let kind = |name: &str| Members::new().always("type", one_of(&[name]), "");
    let known = |members: Members| members.maybe("id", text(), "").maybe("status", one_of(STATUSES), "").sent();
    let message = Members::new()
        .maybe("type", one_of(&["message"]), "")
        .always("role", one_of(&["user", "assistant", "system", "developer"]), "`developer` is `system`.")
        .always("content", content(), "");
    let call = kind("function_call").always("call_id", text(), "").always("name", text(), "").always(
        "arguments",
        text(),
        "JSON as text.",
    );
    let output = kind("function_call_output").always("call_id", text(), "That of a call before it.");
    let thought = kind("reasoning").maybe("summary", list(any()), "").maybe("content", parts(), "");
    any_of([known(message), known(call), known(output.always("output", content(), "")), known(thought)])
}

fn tool() -> Schema {
    Members::new()
        .always("type", one_of(&["function"]), "")
        .always("name", some_text(), "")
        .maybe("description", any(), "For the chat template.")
        .maybe("parameters", map(any()), "A JSON schema of the arguments.")
        .maybe("strict", boolean(), "The arguments of any call keep to the schema.")
        .sent()
}

fn tool_choice() -> Schema {
    let named = || Members::new().always("type", one_of(&["function"]), "").always("name", text(), "").open();
    let allowed = Members::new()
        .always("type", one_of(&["allowed_tools"]), "")
        .always("mode", one_of(&["auto", "required"]), "")
        .always("tools", list(named()), "");
    any_of([one_of(&["none", "auto", "required"]), named(), allowed.open()])
}

fn format() -> Schema {
    let kind = |name: &str| Members::new().always("type", one_of(&[name]), "");
    any_of([kind("text").open(), kind("json_object").open(), describe_named_schema(kind("json_schema")).open()])
}

fn reasoning() -> Schema {
    let why = "Reasoning is given as it is.";
    Members::new()
        .maybe("effort", text(), "`none`, `medium`, or what the chat template knows.")
        .maybe("summary", exactly("auto"), why)
        .maybe("generate_summary", exactly("auto"), why)
        .maybe("context", exactly("auto"), "The chat template decides.")
        .maybe("mode", exactly("standard"), "There is no other.")
        .sent()
}

/// An item of the output.
fn item() -> Schema {
    Members::new()
        .always("type", one_of(&["message", "reasoning", "function_call"]), "")
        .always("id", text(), "")
        .always("status", one_of(STATUSES), "")
        .open()
}

fn response() -> Schema {
    let details = |name| Members::new().always(name, count(), "");
    let usage = Members::new()
        .always("input_tokens", count(), "")
        .always(
            "input_tokens_details",
            details("cached_tokens").always("cache_write_tokens", count(), "").closed(),
            "Found in the prefix cache.",
        )
        .always("output_tokens", count(), "")
        .always("output_tokens_details", details("reasoning_tokens").closed(), "")
        .always("total_tokens", count(), "");
    let reason = Members::new().always("reason", one_of(&["max_output_tokens"]), "").closed();
    Members::new()
        .always("id", text(), "")
        .always("object", one_of(&["response"]), "")
        .always("created_at", count(), "Seconds since 1970.")
        .always("completed_at", nullable(count()), "")
        .always("status", one_of(&["in_progress", "completed", "incomplete", "failed"]), "")
        .always("error", nullable(map(any())), "Why it failed.")
        .always("incomplete_details", nullable(reason), "")
        .always("model", text(), "The name that the request used.")
        .always("system_fingerprint", text(), "MODEL@VERSION of the weights.")
        .always("weights_versions", describe_versions(), "")
        .always("output", list(item()), "")
        .always("store", exactly(false), "Nothing is stored.")
        .always("usage", nullable(usage.closed()), "")
        .open()
}
