//! The descriptions of `POST /v1/messages` and of its counting.

use serde_json::json;

use super::VERSIONS;
use super::request::NO_EFFECT;
use crate::api::envelope::describe_versions;
use crate::openapi::Operation;
use crate::openapi::schema::{
    Members, Schema, any, any_of, at_most, boolean, count, exactly, integer, list, map, named, null, nullable, one_of,
    some, some_text, text,
};
use crate::sampling::{self, MAX_STOPS};

/// The schema of errors.
const ERROR: &str = "MessagesError";

pub(crate) fn describe() -> Operation {
    let event = Members::new()
        .always("type", text(), "`message_start`, ... : the name of the event.")
        .maybe("index", count(), "Of the block.")
        .maybe("message", named("Message"), "")
        .maybe("content_block", block(), "")
        .maybe("delta", map(any()), "")
        .maybe("usage", usage(), "")
        .maybe("error", map(any()), "");
    let stop = at_most(MAX_STOPS, some_text());
    let body = Members::new()
        .and(describe_question())
        .always("max_tokens", count(), "Of the answer, at most; the context may end it earlier.")
        .maybe("stop_sequences", stop, "Texts that end the answer and are no part of it.")
        .maybe("stream", boolean(), "The message as server-sent events.")
        .and(sampling::describe().without("stop"))
        .and(describe_no_effect());
    common(Operation::new("createMessage", "Answers a conversation, in Anthropic's form"))
        .reads(body)
        .submits()
        .answers(named("Message"))
        .streams_typed("MessageEvent", event.open())
        .defines("Message", message())
        .defines(ERROR, error())
}

pub(crate) fn describe_count() -> Operation {
    let answer = Members::new().always("input_tokens", count(), "");
    common(Operation::new("countMessageTokens", "How many tokens the prompt of a message has"))
        .reads(describe_question().and(describe_no_effect()))
        .answers(answer.closed())
}

fn common(operation: Operation) -> Operation {
    operation
        .query("beta", text(), "Accepted; a request says what it wants by its fields.")
        .header("anthropic-version", one_of(&VERSIONS), "The form of the API.")
        .header("anthropic-beta", text(), "Accepted; a request says what it wants by its fields.")
        .header("x-api-key", text(), "A key, as an alternative to `Authorization`.")
        .finds_model()
        .fails_as(ERROR)
}

/// What the prompt depends on.
fn describe_question() -> Members {
    let form = Members::new().always("type", one_of(&["json_schema"]), "").always("schema", map(any()), "");
    let config = Members::new().maybe("effort", text(), "`high`, or what the chat template knows.").maybe(
        "format",
        form.closed(),
        "The answer has this form; where tools are offered it may be a call instead.",
    );
    Members::new()
        .always("model", text(), "")
        .always("messages", some(turn(), None), "The conversation.")
        .maybe("system", texts(), "A system message before it.")
        .maybe("tools", list(tool()), "Functions that the model may call.")
        .maybe("tool_choice", tool_choice(), "`any` and `tool` are enforced.")
        .maybe("thinking", thinking(), "Left out, there is none where the chat template has a choice.")
        .maybe("output_config", config.sent(), "")
        .maybe("chat_template_kwargs", map(any()), "Variables for the chat template.")
}

fn describe_no_effect() -> Members {
    let edit = exactly(json!({"type": "clear_thinking_20251015", "keep": "all"}));
    let nothing = "Nothing but `null` is honoured.";
    NO_EFFECT
        .iter()
        .fold(Members::new(), |members, name| members.maybe(name, any(), "Accepted; it cannot change an answer here."))
        .maybe("speed", exactly("standard"), "There is one.")
        .maybe("container", null(), nothing)
        .maybe("mcp_servers", exactly(json!([])), "This server calls no others.")
        .maybe(
            "context_management",
            Members::new().maybe("edits", list(edit), "").sent(),
            "Nothing is left out of a conversation.",
        )
}

fn kind(name: &str) -> Members {
    Members::new().always("type", one_of(&[name]), "")
}

fn text_block() -> Schema {
    kind("text")
        .always("text", text(), "")
        .maybe("cache_control", any(), "Accepted; every prompt is cached.")
        .maybe("citations", exactly(json!([])), "")
        .sent()
}

fn texts() -> Schema {
    any_of([text(), list(text_block())])
}

fn turn() -> Schema {
    let cached = |members: Members| members.maybe("cache_control", any(), "Accepted; every prompt is cached.").sent();
    let thought = kind("thinking").always("thinking", text(), "").maybe("signature", text(), "Not checked.").sent();
    let call = kind("tool_use").always("id", text(), "").always("name", text(), "").always("input", map(any()), "");
    let result = kind("tool_result")
        .always("tool_use_id", text(), "That of a call before it.")
        .maybe("content", texts(), "")
        .maybe("is_error", boolean(), "Accepted; the content says what went wrong.");
    let said = |role: &str, blocks: Vec<Schema>| {
        let content = any_of([text(), list(any_of(blocks))]);
        Members::new().always("role", one_of(&[role]), "").always("content", content, "").sent()
    };
    any_of([
        said("user", vec![text_block(), cached(result)]),
        said("assistant", vec![text_block(), thought, cached(call.maybe("caller", any(), ""))]),
        said("system", vec![text_block()]),
    ])
}

fn tool() -> Schema {
    Members::new()
        .maybe("type", one_of(&["custom"]), "")
        .always("name", some_text(), "")
        .maybe("description", text(), "For the chat template.")
        .always("input_schema", map(any()), "A JSON schema of the input.")
        .maybe("strict", boolean(), "The input of any call keeps to the schema.")
        .maybe("cache_control", any(), "Accepted; every prompt is cached.")
        .maybe("eager_input_streaming", boolean(), "Accepted; input is sent as it comes.")
        .maybe("defer_loading", exactly(false), "All tools are in the prompt.")
        .maybe("allowed_callers", exactly(json!(["direct"])), "")
        .maybe("input_examples", exactly(json!([])), "Say it in `description`.")
        .sent()
}

fn tool_choice() -> Schema {
    let single =
        |members: Members| members.maybe("disable_parallel_tool_use", boolean(), "One call and no more.").sent();
    let any = Members::new().always("type", one_of(&["auto", "any", "none"]), "");
    any_of([single(any), single(kind("tool").always("name", text(), ""))])
}

fn thinking() -> Schema {
    let shown = |members: Members| members.maybe("display", one_of(&["summarized"]), "It is shown as it is.").sent();
    let enabled = kind("enabled").always("budget_tokens", integer(1..), "Less than `max_tokens`.");
    any_of([shown(enabled), shown(kind("adaptive")), kind("disabled").sent()])
}

/// A block of an answer.
fn block() -> Schema {
    let called = kind("tool_use").always("id", text(), "").always("name", text(), "").always("input", map(any()), "");
    any_of([
        kind("text").always("text", text(), "").open(),
        kind("thinking").always("thinking", text(), "").always("signature", text(), "").open(),
        called.open(),
    ])
}

fn usage() -> Schema {
    let details = Members::new().always("thinking_tokens", count(), "").closed();
    Members::new()
        .always("input_tokens", count(), "All of the prompt, cached or not.")
        .always("cache_creation_input_tokens", count(), "0: nobody pays for it.")
        .always("cache_read_input_tokens", count(), "0: nobody pays for it.")
        .always("output_tokens", count(), "")
        .always("output_tokens_details", details, "")
        .always("service_tier", one_of(&["standard"]), "")
        .closed()
}

fn message() -> Schema {
    let reasons =
        ["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded", "pause_turn"];
    Members::new()
        .always("id", text(), "")
        .always("type", one_of(&["message"]), "")
        .always("role", one_of(&["assistant"]), "")
        .always("model", text(), "The name that the request used.")
        .always("content", list(block()), "")
        .always("stop_reason", nullable(one_of(&reasons)), "")
        .always("stop_sequence", nullable(text()), "The text that ended it.")
        .always("usage", usage(), "")
        .maybe("weights_versions", describe_versions(), "")
        .closed()
}

fn error() -> Schema {
    let error = Members::new().always("type", text(), "Anthropic's class of errors.").always("message", text(), "");
    Members::new()
        .always("type", one_of(&["error"]), "")
        .always("error", error.closed(), "")
        .maybe("request_id", nullable(text()), "")
        .closed()
}
