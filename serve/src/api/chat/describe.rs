//! The description of `POST /v1/chat/completions`.

use serde_json::json;

use crate::api::envelope::{
    describe_chunk_usage, describe_finish, describe_object, describe_streaming, describe_versions,
};
use crate::fields::{VERBOSITY, describe_no_effect};
use crate::logprobs::{describe_chat_entry, describe_names};
use crate::openapi::Operation;
use crate::openapi::schema::{
    Members, Schema, any, any_of, boolean, count, exactly, integer, list, map, named, null, nullable, one_of,
    some_text, text, token_id,
};
use crate::prompt::{describe_encoding, describe_ending, describe_messages};
use crate::prompt_logprobs;
use crate::reasoning::describe_budget;
use crate::sampling::{self, MAX_ALTERNATIVES};
use crate::structured::grammar::describe_format;
use crate::structured::structured_outputs::describe_structured;

pub(crate) fn describe() -> Operation {
    let whole = Members::new()
        .always("index", count(), "")
        .always("message", message(), "")
        .always("logprobs", logprobs(), "")
        .always("finish_reason", describe_finish(), "")
        .always("weights_versions", describe_versions(), "")
        .maybe("token_ids", list(token_id()), "");
    let piece = Members::new()
        .always("index", count(), "")
        .always("delta", delta(), "")
        .always("logprobs", logprobs(), "")
        .always("finish_reason", nullable(describe_finish()), "")
        .maybe("token_ids", list(token_id()), "");
    let answer = about_prompt(describe_object("chat.completion", whole.closed())).always("usage", named("Usage"), "");
    let chunk = about_prompt(describe_object("chat.completion.chunk", piece.closed()));
    Operation::new("createChatCompletion", "Answers a conversation")
        .reads(body())
        .finds_model()
        .submits()
        .answers(answer.closed())
        .streams("ChatCompletionChunk", chunk.maybe("usage", describe_chunk_usage(), "").closed())
        .defines("ChatLogprob", describe_chat_entry())
}

pub(super) fn body() -> Members {
    let nothing = "Nothing but `null` is honoured.";
    Members::new()
        .maybe("model", text(), "The first one when it is left out.")
        .always("messages", describe_messages(), "The conversation.")
        .maybe("n", integer(1..), "Answers.")
        .maybe(
            "max_completion_tokens",
            count(),
            "When it is left out, --default-max-tokens or the rest of the context.",
        )
        .maybe("max_tokens", count(), "The older name of `max_completion_tokens`.")
        .and(sampling::describe())
        .and(describe_streaming())
        .maybe("logprobs", boolean(), "ln p of every token.")
        .maybe("top_logprobs", integer(0..=MAX_ALTERNATIVES as i128), "Alternatives to each token; needs `logprobs`.")
        .and(prompt_logprobs::describe_field())
        .maybe("return_token_ids", boolean(), "Token ids of prompt and answer.")
        .and(describe_names())
        .and(describe_encoding("it does not when this is left out, since the template writes them"))
        .and(describe_ending())
        .maybe("tools", list(tool()), "Functions that the model may call.")
        .maybe("tool_choice", tool_choice(), "`required`, a named function and the allowed tools are enforced.")
        .maybe("parallel_tool_calls", boolean(), "Whether more than one call counts.")
        .maybe("response_format", describe_format(), "The answer has this form.")
        .and(describe_structured())
        .and(describe_budget())
        .maybe("reasoning_effort", text(), "`none`, `medium`, or what the chat template knows.")
        .maybe("modalities", exactly(json!(["text"])), "Only text is generated.")
        .maybe("audio", any(), "Accepted; without audio among the modalities it has no use.")
        .maybe("functions", exactly(json!([])), "`tools` replaced it.")
        .maybe("function_call", exactly("none"), "`tool_choice` replaced it.")
        .maybe("chat_template", null(), nothing)
        .maybe("web_search_options", null(), nothing)
        .maybe("moderation", null(), nothing)
        .maybe("verbosity", exactly(VERBOSITY), "Answers are as long as the model makes them.")
        .and(describe_no_effect())
}

fn tool() -> Schema {
    let function = Members::new()
        .always("name", some_text(), "")
        .maybe("description", any(), "For the chat template.")
        .maybe("parameters", nullable(map(any())), "A JSON schema of the arguments.")
        .maybe("strict", nullable(boolean()), "The arguments of any call keep to the schema.")
        .open();
    Members::new().always("type", one_of(&["function"]), "").always("function", function, "").open()
}

fn tool_choice() -> Schema {
    let function = || Members::new().always("name", text(), "").open();
    let named = || Members::new().always("type", one_of(&["function"]), "").always("function", function(), "").open();
    let some = Members::new().always("mode", one_of(&["auto", "required"]), "").always("tools", list(named()), "");
    let allowed =
        Members::new().always("type", one_of(&["allowed_tools"]), "").always("allowed_tools", some.open(), "");
    any_of([one_of(&["none", "auto", "required"]), named(), allowed.open()])
}

fn call() -> Schema {
    let function = Members::new().always("name", text(), "").always("arguments", text(), "JSON.").closed();
    Members::new()
        .always("id", text(), "")
        .always("type", one_of(&["function"]), "")
        .always("function", function, "")
        .closed()
}

/// A call in a chunk: the first one of a call has its id and name, those after it more of its arguments.
fn call_delta() -> Schema {
    let function = Members::new().maybe("name", text(), "").always("arguments", text(), "The next piece of the JSON.");
    Members::new()
        .always("index", count(), "")
        .maybe("id", text(), "")
        .maybe("type", one_of(&["function"]), "")
        .always("function", function.closed(), "")
        .closed()
}

fn message() -> Schema {
    Members::new()
        .always("role", one_of(&["assistant"]), "")
        .always("content", nullable(text()), "`null` where there are only calls.")
        .always("refusal", null(), "")
        .maybe("reasoning_content", text(), "What the model thought.")
        .maybe("tool_calls", list(call()), "")
        .closed()
}

fn delta() -> Schema {
    Members::new()
        .maybe("role", one_of(&["assistant"]), "")
        .maybe("content", text(), "")
        .maybe("reasoning_content", text(), "")
        .maybe("tool_calls", list(call_delta()), "")
        .closed()
}

fn logprobs() -> Schema {
    let content = list(named("ChatLogprob"));
    nullable(Members::new().always("content", content, "").always("refusal", null(), "").closed())
}

fn about_prompt(object: Members) -> Members {
    object.maybe("prompt_token_ids", list(token_id()), "").maybe("prompt_logprobs", named("PromptLogprobs"), "")
}
