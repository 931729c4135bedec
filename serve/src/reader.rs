//! Takes one answer apart, token by token, and counts what it finds.

use runtime::request::FinishReason;

use crate::output::{Markers, Parser, Part};

/// What to look for in an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) markers: Markers,
    /// The prompt ends inside reasoning.
    pub(crate) prompt_thinks: bool,
    /// Only the first call counts.
    pub(crate) single_call: bool,
}

/// One answer that is read.
#[derive(Debug)]
pub(crate) struct Reader {
    parser: Parser,
    single: bool,
    /// Calls so far.
    pub(crate) calls: usize,
    /// Tokens that came while reasoning went on.
    pub(crate) reasoning_tokens: usize,
}

impl Reader {
    pub(crate) fn new(reading: Reading) -> Self {
        let parser = Parser::new(reading.markers, reading.prompt_thinks);
        Self { parser, single: reading.single_call, calls: 0, reasoning_tokens: 0 }
    }

    /// Whether what comes next is content, as far as is known.
    pub(crate) fn is_content(&self) -> bool {
        self.parser.is_content()
    }

    /// The parts that are certain with this token's text.
    pub(crate) fn token(&mut self, text: &str) -> Vec<Part> {
        self.reasoning_tokens += usize::from(self.parser.is_reasoning());
        let parts = self.parser.push(text);
        self.counted(parts)
    }

    /// The last parts, for the text that was held back until the end.
    pub(crate) fn end(&mut self, text: &str) -> Vec<Part> {
        let mut parts = self.parser.push(text);
        parts.extend(self.parser.finish());
        self.counted(parts)
    }

    /// Counts the calls; behind an only call nothing counts.
    fn counted(&mut self, mut parts: Vec<Part>) -> Vec<Part> {
        let mut calls = self.calls;
        let single = self.single;
        parts.retain(|part| {
            let keep = !single || calls == 0;
            calls += usize::from(keep && matches!(part, Part::Call(_)));
            keep
        });
        self.calls = calls;
        parts
    }

    /// `tool_calls` instead of `stop` where there was one.
    pub(crate) fn reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop if self.calls > 0 => "tool_calls",
            reason => reason.as_str(),
        }
    }
}
