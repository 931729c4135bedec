//! What a model's text is made of: reasoning between `<think>` and `</think>`, calls between `<tool_call>` and `</tool_call>`
//! (the form of Qwen, Hermes, SmolLM and others), and content.
//!
//! The text arrives in pieces. However it is cut, the same parts come out: a piece that may be the beginning of a marker is
//! held until that is decided, and a call is complete when its JSON object is, whatever its strings contain.

use serde::Deserialize;
use serde_json::value::RawValue;

pub(crate) const THINK: &str = "<think>";
pub(crate) const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";

/// The next part of an answer. Neighbouring texts of one kind belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Content(String),
    Reasoning(String),
    Call(Call),
}

/// A function to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON, as the model wrote it.
    pub(crate) arguments: String,
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Markers {
    pub(crate) reasoning: bool,
    pub(crate) calls: bool,
}

/// Takes a text apart as it comes.
#[derive(Debug, Clone)]
pub(crate) struct Parser {
    markers: Markers,
    state: State,
    /// Text that is not decided yet.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far: reasoning may begin.
    Start,
    /// Inside reasoning, before anything but white space, which is dropped.
    ReasoningStart,
    Reasoning,
    /// Behind reasoning or a call, before anything else: white space is dropped.
    Between,
    Content,
    /// Inside a call.
    Call(Scan),
    /// Behind a call's object, before its end marker.
    CallEnd,
}

/// How far a JSON object has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Scan {
    bytes: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// What became of an object.
enum Scanned {
    Open(Scan),
    /// It ends before this byte.
    Complete(usize),
    /// It does not begin with a brace.
    NoObject,
}

impl Parser {
    /// `prompt_thinks`: the prompt ends inside reasoning.
    pub(crate) fn new(markers: Markers, prompt_thinks: bool) -> Self {
        let state = match (markers.reasoning, prompt_thinks) {
            (true, true) => State::ReasoningStart,
            (true, false) => State::Start,
            (false, _) => State::Content,
        };
        Self { markers, state, held: String::new() }
    }

    /// Whether what comes next is reasoning, as far as is known.
    pub(crate) fn is_reasoning(&self) -> bool {
        matches!(self.state, State::ReasoningStart | State::Reasoning)
    }

    /// Whether what comes next is content, as far as is known.
    pub(crate) fn is_content(&self) -> bool {
        matches!(self.state, State::Start | State::Content)
    }

    /// Appends text; returns the parts that are certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// The text has ended; returns what was held. A call that is not complete is content, as it was written.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let part = match self.state {
            State::Start | State::Content => Part::Content(held),
            State::Reasoning => Part::Reasoning(held.trim_end().to_owned()),
            State::Call(_) => Part::Content(format!("{CALL}{held}")),
            State::ReasoningStart | State::Between | State::CallEnd => Part::Content(String::new()),
        };
        let empty = matches!(&part, Part::Content(text) | Part::Reasoning(text) if text.is_empty());
        if empty { vec![] } else { vec![part] }
    }

    /// One step; whether another one may follow.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::ReasoningStart => self.skip_white_space(State::Reasoning),
            State::Between => self.skip_white_space(State::Content),
            State::Reasoning => self.text(Some(THINK_END), State::Between, Part::Reasoning, parts),
            State::Content => {
                let marker = self.markers.calls.then_some(CALL);
                self.text(marker, State::Call(Scan::default()), Part::Content, parts)
            }
            State::Call(scan) => self.call(scan, parts),
            State::CallEnd => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(CALL_END) {
                    self.held = rest.to_owned();
                    return self.go_if(true, State::Between);
                }
                // A model that forgets the end marker has closed its object all the same.
                self.go_if(!CALL_END.starts_with(text), State::Between)
            }
        }
    }

    fn skip_white_space(&mut self, next: State) -> bool {
        self.held = self.held.trim_start().to_owned();
        self.go_if(!self.held.is_empty(), next)
    }

    fn go_if(&mut self, go: bool, state: State) -> bool {
        if go {
            self.state = state;
        }
        go
    }

    fn start(&mut self) -> bool {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(THINK) {
            self.held = rest.to_owned();
            return self.go_if(true, State::ReasoningStart);
        }
        self.go_if(!THINK.starts_with(text), State::Content)
    }

    /// Emits text up to `marker`, or up to what may be its beginning. White space before a marker is dropped, so white space
    /// at the end is held as well.
    fn text(&mut self, marker: Option<&str>, next: State, part: fn(String) -> Part, parts: &mut Vec<Part>) -> bool {
        let found = marker.and_then(|marker| self.held.find(marker).map(|at| (at, at + marker.len())));
        let end = match (found, marker) {
            (Some((at, _)), _) => at,
            (None, Some(marker)) => possible_start(&self.held, marker),
            (None, None) => self.held.len(),
        };
        let certain = if marker.is_some() { self.held[..end].trim_end().len() } else { end };
        if certain > 0 {
            parts.push(part(self.held[..certain].to_owned()));
        }
        match found {
            Some((_, behind)) => {
                self.held.drain(..behind);
                self.state = next;
                true
            }
            None => {
                self.held.drain(..certain);
                false
            }
        }
    }

    fn call(&mut self, scan: Scan, parts: &mut Vec<Part>) -> bool {
        match scan.read(&self.held) {
            Scanned::Open(scan) => {
                self.state = State::Call(scan);
                false
            }
            Scanned::Complete(end) => {
                let object: String = self.held.drain(..end).collect();
                match parse(&object) {
                    Some(call) => {
                        parts.push(Part::Call(call));
                        self.state = State::CallEnd;
                    }
                    None => {
                        parts.push(Part::Content(format!("{CALL}{object}")));
                        self.state = State::Content;
                    }
                }
                true
            }
            Scanned::NoObject => {
                parts.push(Part::Content(CALL.to_owned()));
                self.state = State::Content;
                true
            }
        }
    }
}

/// Where the longest end of `text` begins that `marker` begins with.
fn possible_start(text: &str, marker: &str) -> usize {
    let last = text.len().saturating_sub(marker.len() - 1);
    let mut starts = text.char_indices().map(|(at, _)| at).filter(|&at| at >= last);
    starts.find(|&at| marker.starts_with(&text[at..])).unwrap_or(text.len())
}

impl Scan {
    /// Goes on where it stopped.
    fn read(mut self, text: &str) -> Scanned {
        while let Some(&byte) = text.as_bytes().get(self.bytes) {
            self.bytes += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' if self.depth > 0 => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' => self.depth += 1,
                b'}' if self.depth == 1 => return Scanned::Complete(self.bytes),
                b'}' => self.depth = self.depth.saturating_sub(1),
                b' ' | b'\n' | b'\r' | b'\t' => {}
                _ if self.depth == 0 => return Scanned::NoObject,
                _ => {}
            }
            if byte == b'}' && self.depth == 0 {
                return Scanned::NoObject;
            }
        }
        Scanned::Open(self)
    }
}

/// A call's object; `None` where it is no JSON or names no function.
fn parse(object: &str) -> Option<Call> {
    #[derive(Deserialize)]
    struct Object {
        name: String,
        #[serde(alias = "parameters")]
        arguments: Option<Box<RawValue>>,
    }
    let Object { name, arguments } = serde_json::from_str(object).ok()?;
    let arguments = arguments.map_or_else(|| "{}".to_owned(), |raw| raw.get().to_owned());
    // Some models write the arguments as JSON in a string.
    let arguments = serde_json::from_str::<String>(&arguments).unwrap_or(arguments);
    Some(Call { name, arguments })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Markers = Markers { reasoning: true, calls: true };

    /// Parts of a text that arrives as `pieces`, neighbours of one kind joined.
    fn parts<'a>(pieces: impl IntoIterator<Item = &'a str>, thinks: bool) -> Vec<Part> {
        let mut parser = Parser::new(ALL, thinks);
        let mut all: Vec<Part> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
        all.extend(parser.finish());
        let mut joined: Vec<Part> = Vec::new();
        for part in all {
            match (joined.last_mut(), part) {
                (Some(Part::Content(a)), Part::Content(b)) | (Some(Part::Reasoning(a)), Part::Reasoning(b)) => {
                    a.push_str(&b)
                }
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn content(text: &str) -> Part {
        Part::Content(text.to_owned())
    }

    fn reasoning(text: &str) -> Part {
        Part::Reasoning(text.to_owned())
    }

    fn call(name: &str, arguments: &str) -> Part {
        Part::Call(Call { name: name.to_owned(), arguments: arguments.to_owned() })
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let text = "<think>\nHm, {\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"}</tool_call>\\\"\"}}\n</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>";
        let f = call("f", "{\"x\": \"}</tool_call>\\\"\"}");
        assert_eq!(parts([text], false), [reasoning("Hm, {"), content("I look."), f, call("g", "{}")]);
        assert_eq!(parts(["so\n</think>yes"], true), [reasoning("so"), content("yes")]);
        assert_eq!(parts(["cut off"], true), [reasoning("cut off")]);
    }

    #[test]
    fn what_is_no_call_is_content() {
        for text in [
            "<tool_call>\n{\"name\": \"f\", \"argu",
            "<tool_call> f(x)",
            "<tool_call>{\"no\": \"name\"}</tool_call>",
            "<tool_call>}",
            "a < b, <tool_cal",
            "late <think>",
        ] {
            let text_parts = parts([text], false);
            let [Part::Content(got)] = &text_parts[..] else { panic!("{text}: {text_parts:?}") };
            assert_eq!(got.split_whitespace().collect::<String>(), text.split_whitespace().collect::<String>());
        }
        let plain = Markers { reasoning: false, calls: false };
        let mut parser = Parser::new(plain, false);
        let all = [parser.push("<think> <tool_call>{\"name\": \"f\"} "), parser.finish()].concat();
        assert_eq!(all, [content("<think> <tool_call>{\"name\": \"f\"} ")]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn pieces_do_not_matter(
            fragments in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": {\"x\": [1, \"}\\\"{\"]}}",
                "{\"name\": \"g\"}", "<", "<tool", "\"", "\\", "{", "}", " ", "\n", "é", "text", "_call>", "</",
            ]), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            thinks in any::<bool>(),
        ) {
            let text = fragments.concat();
            let borders: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| borders[cut.index(borders.len())]).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
            prop_assert_eq!(parts(pieces, thinks), parts([text.as_str()], thinks));
        }
    }
}
