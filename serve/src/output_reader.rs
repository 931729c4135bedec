//! Takes one answer apart, token by token, and counts what it finds.

use std::sync::Arc;

use runtime::request::FinishReason;

use crate::output::{Ending, Markers, Parser, Part};

/// What to look for in an answer.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) markers: Markers,
    /// The prompt ends inside reasoning.
    pub(crate) prompt_thinks: bool,
    /// Only the first call counts.
    pub(crate) single_call: bool,
    /// Nothing but calls can come behind reasoning.
    pub(crate) calls_only: bool,
    /// The only function that can be called then.
    pub(crate) only: Option<Arc<str>>,
}

/// One answer that is read.
#[derive(Debug)]
pub(crate) struct Reader {
    parser: Parser,
    reading: Reading,
    /// Calls so far.
    pub(crate) calls: usize,
    /// Those of them that are complete.
    complete: usize,
    /// Tokens that came while reasoning went on.
    pub(crate) reasoning_tokens: usize,
}

impl Reader {
    pub(crate) fn new(reading: Reading) -> Self {
        let parser = Parser::new(reading.markers, reading.prompt_thinks);
        Self { parser, reading, calls: 0, complete: 0, reasoning_tokens: 0 }
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
    pub(crate) fn end(&mut self, text: &str, reason: FinishReason) -> Vec<Part> {
        let parts = self.parser.push(text);
        let mut done = self.counted(parts);
        let ending = match reason {
            FinishReason::Stop => Ending::Whole,
            FinishReason::Length | FinishReason::Cancelled => {
                let only = self.reading.only.clone().filter(|_| self.calls == 0);
                Ending::Cut { calls_only: self.reading.calls_only, only }
            }
        };
        let parts = self.parser.finish(&ending);
        done.extend(self.counted(parts));
        done
    }

    /// Counts the calls; behind an only call nothing counts.
    fn counted(&mut self, mut parts: Vec<Part>) -> Vec<Part> {
        parts.retain(|part| {
            let keep = !self.reading.single_call || self.complete == 0;
            self.calls += usize::from(keep && matches!(part, Part::Call(_)));
            self.complete += usize::from(keep && *part == Part::CallEnd);
            keep
        });
        parts
    }

    /// `tool_calls` instead of `stop` where there was one, and none that a stop string cut.
    pub(crate) fn reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop if self.calls > 0 && self.complete == self.calls => "tool_calls",
            reason => reason.as_str(),
        }
    }
}
