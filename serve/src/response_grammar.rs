//! The grammar of a whole answer: reasoning, calls and content, each in its place and form.

use llguidance::api::GrammarWithLexer;

use crate::structured::grammar::ResponseFormat;
use crate::tools::Calls;

/// What an answer consists of.
pub(crate) struct ResponseGrammar {
    pub(crate) thoughts: ReasoningMode,
    pub(crate) body: Body,
}

/// What comes before the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReasoningMode {
    None,
    /// The model may begin with reasoning.
    Possible,
    /// The prompt has begun it.
    Begun,
}

/// An answer behind its reasoning.
pub(crate) enum Body {
    ResponseFormat(ResponseFormat),
    Calls(Calls),
    Either(ResponseFormat, Calls),
    /// Any text, in which calls begin wherever their marker stands.
    Text(Calls),
}

/// Terminals and rules that are the same in all answers. A lazy rule ends where its text first can, and wins against `TEXT`
/// there: what begins like a call is one. A text that opens an answer is no reasoning.
const COMMON: &str = r#"
TEXT: /(.|\n)*/
GAP: /[ \t\r\n]{1,4}/
THOUGHT: /[ \t\r\n]*<think>(.|\n)*/
OPENING: TEXT & ~THOUGHT
think[lazy]: THOUGHT "</think>"
think_at_once[lazy]: "<think>" TEXT "</think>"
thought_on[lazy]: TEXT "</think>"
marker[lazy]: TEXT "<tool_call>"
opening_marker[lazy]: OPENING "<tool_call>"
"#;

impl ResponseGrammar {
    /// The grammars, of which the first is the answer's.
    pub(crate) fn grammars(self) -> Vec<GrammarWithLexer> {
        let (form, calls, text) = match self.body {
            Body::ResponseFormat(form) if self.thoughts == ReasoningMode::None => return vec![form.grammar()],
            Body::ResponseFormat(form) => (Some(form), None, false),
            Body::Calls(calls) => (None, Some(calls), false),
            Body::Either(form, calls) => (Some(form), Some(calls), false),
            Body::Text(calls) => (None, Some(calls), true),
        };
        let several = calls.as_ref().is_some_and(|calls| calls.several);
        let start = match (self.thoughts, text) {
            (ReasoningMode::None, _) => "start: body",
            // White space before reasoning could go on for ever where nothing else may come.
            (ReasoningMode::Possible, false) => "start: (think_at_once GAP?)? body",
            (ReasoningMode::Begun, false) => "start: thought_on GAP? body",
            // Where any text may come, reasoning need not end.
            (ReasoningMode::Possible, true) if several => {
                "start: think body | THOUGHT | OPENING | opening_marker in_call body"
            }
            (ReasoningMode::Possible, true) => "start: think body | THOUGHT | OPENING | opening_marker in_call",
            (ReasoningMode::Begun, true) => "start: thought_on body | TEXT",
        };
        let body = match (form.is_some(), calls.is_some(), text, several) {
            (_, _, true, true) => "body: (marker in_call)* TEXT",
            (_, _, true, false) => "body: TEXT | marker in_call",
            (true, false, ..) => "body: @form",
            (true, true, _, true) => "body: @form | call (\"\\n\" call)*",
            (true, true, ..) => "body: @form | call",
            (false, _, _, true) => "body: call (\"\\n\" call)*",
            (false, ..) => "body: call",
        };
        let call = calls.map(|calls| {
            let object = calls.object;
            format!(
                "call: \"<tool_call>\" in_call\nin_call: \"\\n\" object \"\\n</tool_call>\"\nobject: %json {object}\n"
            )
        });
        let lark = format!("{start}\n{body}\n{}{COMMON}", call.unwrap_or_default());
        let form = form.map(|form| GrammarWithLexer { name: Some("form".to_owned()), ..form.grammar() });
        [GrammarWithLexer::from_lark(lark)].into_iter().chain(form).collect()
    }
}
