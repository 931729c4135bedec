//! What a model's text is made of: reasoning between `<think>` and `</think>`, calls between `<tool_call>` and `</tool_call>`
//! (the form of Qwen, Hermes, SmolLM and others), and content.
//!
//! The text arrives in pieces. However it is cut, the same parts come out: a piece that may be the beginning of a marker is
//! held until that is decided, and a call is complete when its JSON object is, whatever its strings contain.

use std::sync::Arc;

mod call;

use call::{Call, Read};

pub(crate) const THINK: &str = "<think>";
pub(crate) const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";

/// The next part of an answer. Neighbouring texts of one kind belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Content(String),
    Reasoning(String),
    /// A call of this function begins.
    Call(String),
    /// JSON, as the model wrote it.
    Arguments(String),
    /// The call is complete.
    CallEnd,
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
    /// Text that is not decided yet; inside a call all of its object.
    held: String,
    /// How far that object was read.
    call: Call,
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
    Call,
    /// Behind a call's object, before its end marker.
    CallEnd,
}

/// Why a text ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself.
    Whole,
    /// There was room for no more.
    Cut {
        /// Nothing but calls could come.
        calls_only: bool,
        /// The only function that could be called.
        only: Option<Arc<str>>,
    },
}

impl Parser {
    /// `prompt_thinks`: the prompt ends inside reasoning.
    pub(crate) fn new(markers: Markers, prompt_thinks: bool) -> Self {
        let state = match (markers.reasoning, prompt_thinks) {
            (true, true) => State::ReasoningStart,
            (true, false) => State::Start,
            (false, _) => State::Content,
        };
        Self { markers, state, held: String::new(), call: Call::default() }
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

    /// The text has ended; returns what was held. A call whose function is known is one, complete or not. Another one is
    /// content, as it was written, or, where it was cut, nothing: half a marker says nothing to anyone.
    pub(crate) fn finish(&mut self, ending: &Ending) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let mut parts = Vec::new();
        match (self.state, ending) {
            (State::Call, _) if self.call.is_sent() => {}
            (State::Call, Ending::Cut { only, .. }) => self.call.cut(&held, only.as_deref(), &mut parts),
            (State::Call, Ending::Whole) => parts.push(Part::Content(format!("{CALL}{held}"))),
            (State::Start | State::Content | State::Between, Ending::Cut { calls_only: true, only }) => {
                // Of the marker there is not all, of the call not even the beginning.
                parts.extend(only.as_deref().map(|name| Part::Call(name.to_owned())));
            }
            (State::Start | State::Content, _) => parts.push(Part::Content(held)),
            (State::Reasoning, _) => parts.push(Part::Reasoning(held.trim_end().to_owned())),
            (State::ReasoningStart | State::Between | State::CallEnd, _) => {}
        }
        parts.retain(|part| !matches!(part, Part::Content(text) | Part::Reasoning(text) if text.is_empty()));
        parts
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
                self.text(marker, State::Call, Part::Content, parts)
            }
            State::Call => self.call(parts),
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

    fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let read = self.call.read(&self.held, parts);
        if read == Read::Open {
            return false;
        }
        let call = std::mem::take(&mut self.call);
        self.state = State::Content;
        match read {
            Read::Complete(end) => {
                let object: String = self.held.drain(..end).collect();
                match call.complete(&object, parts) {
                    true => self.state = State::CallEnd,
                    false => parts.push(Part::Content(format!("{CALL}{object}"))),
                }
            }
            _ => parts.push(Part::Content(CALL.to_owned())),
        }
        true
    }
}

/// Where the longest end of `text` begins that `marker` begins with.
fn possible_start(text: &str, marker: &str) -> usize {
    let last = text.len().saturating_sub(marker.len() - 1);
    let mut starts = text.char_indices().map(|(at, _)| at).filter(|&at| at >= last);
    starts.find(|&at| marker.starts_with(&text[at..])).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Markers = Markers { reasoning: true, calls: true };

    /// Parts of a text that arrives as `pieces`, neighbours of one kind joined.
    fn parts<'a>(pieces: impl IntoIterator<Item = &'a str>, thinks: bool, ending: &Ending) -> Vec<Part> {
        let mut parser = Parser::new(ALL, thinks);
        let mut all: Vec<Part> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
        all.extend(parser.finish(ending));
        let mut joined: Vec<Part> = Vec::new();
        for part in all {
            match (joined.last_mut(), part) {
                (Some(Part::Content(a)), Part::Content(b))
                | (Some(Part::Reasoning(a)), Part::Reasoning(b))
                | (Some(Part::Arguments(a)), Part::Arguments(b)) => a.push_str(&b),
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn cut(calls_only: bool, only: Option<&str>) -> Ending {
        Ending::Cut { calls_only, only: only.map(Into::into) }
    }

    fn content(text: &str) -> Part {
        Part::Content(text.to_owned())
    }

    fn reasoning(text: &str) -> Part {
        Part::Reasoning(text.to_owned())
    }

    fn begun(name: &str, arguments: &str) -> [Part; 2] {
        [Part::Call(name.to_owned()), Part::Arguments(arguments.to_owned())]
    }

    fn call(name: &str, arguments: &str) -> Vec<Part> {
        [&begun(name, arguments)[..], &[Part::CallEnd]].concat()
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let text = "<think>\nHm, {\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"}</tool_call>\\\"\"}}\n</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>";
        let f = call("f", "{\"x\": \"}</tool_call>\\\"\"}");
        let want = [vec![reasoning("Hm, {"), content("I look.")], f, call("g", "{}")].concat();
        assert_eq!(parts([text], false, &Ending::Whole), want);
        assert_eq!(parts(["so\n</think>yes"], true, &Ending::Whole), [reasoning("so"), content("yes")]);
        assert_eq!(parts(["cut off"], true, &Ending::Whole), [reasoning("cut off")]);
    }

    #[test]
    fn a_call_is_written_in_many_ways() {
        for (object, name, arguments) in [
            ("{\"arguments\": {\"a\": [{}, \"]\"]}, \"name\": \"f\"}", "f", "{\"a\": [{}, \"]\"]}"),
            ("{\"id\": [1, {\"name\": 2}], \"name\": \"g\\u0021\" , \"parameters\" : {} , \"x\": null}", "g!", "{}"),
            ("{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}", "f", "{\"a\": 1}"),
            ("{\"name\": \"f\", \"arguments\": [1, 2]}", "f", "[1, 2]"),
            ("{\"name\": \"f\", \"arguments\": null, \"x\": 1.5}", "f", "{}"),
            ("{\"x\": true, \"name\": \"f\"}", "f", "{}"),
        ] {
            assert_eq!(
                parts([&format!("<tool_call>{object}")[..]], false, &Ending::Whole),
                call(name, arguments),
                "{object}"
            );
        }
    }

    #[test]
    fn what_is_no_call_is_content() {
        for text in [
            "<tool_call>\n{\"name\": \"f\", \"argu",
            "<tool_call> f(x)",
            "<tool_call>{\"no\": \"name\"}</tool_call>",
            "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"f\" \"arguments\": {}}</tool_call>",
            "<tool_call>}",
            "a < b, <tool_cal",
            "late <think>",
        ] {
            let text_parts = parts([text], false, &Ending::Whole);
            let [Part::Content(got)] = &text_parts[..] else { panic!("{text}: {text_parts:?}") };
            assert_eq!(got.split_whitespace().collect::<String>(), text.split_whitespace().collect::<String>());
        }
        let plain = Markers { reasoning: false, calls: false };
        let mut parser = Parser::new(plain, false);
        let all = [parser.push("<think> <tool_call>{\"name\": \"f\"} "), parser.finish(&Ending::Whole)].concat();
        assert_eq!(all, [content("<think> <tool_call>{\"name\": \"f\"} ")]);
    }

    /// Wherever the length cuts a call, no marker is left of it: a call that has its name is one, with the arguments so far.
    #[test]
    fn a_call_that_is_cut_has_the_arguments_so_far() {
        let text = "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"a}\"}}\n</tool_call>";
        let (named, argued) = (text.find(", \"arg").expect("it is there"), text.find("{\"x").expect("it is there"));
        let (begins, ends) = (text.find("<tool").expect("it is there"), text.find("}\n").expect("it is there"));
        for end in begins + 11..text.len() {
            let want = match end {
                _ if end < named => vec![],
                _ if end <= argued => vec![Part::Call("f".to_owned())],
                _ if end <= ends => begun("f", &text[argued..end]).to_vec(),
                _ => call("f", "{\"x\": \"a}\"}"),
            };
            let got = parts([&text[..end]], false, &cut(false, None));
            assert_eq!(got, [vec![content("I look.")], want].concat(), "{}", &text[..end]);
        }
        // Where nothing but one call can come, that is what was cut.
        for end in 0..named - begins {
            let got = parts([&text[begins..begins + end]], false, &cut(true, Some("f")));
            assert_eq!(got, [Part::Call("f".to_owned())], "{end}");
            assert_eq!(parts([&text[begins..begins + end]], false, &cut(true, None)), [], "{end}");
        }
        assert_eq!(parts(["a <tool_"], false, &cut(false, None)), [content("a <tool_")], "it may be a text");
        let quoted = "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 12\\u00";
        assert_eq!(parts([quoted], false, &cut(false, None)), begun("f", "{\"a\": 12"));
        // What the model itself ended has begun to be a call, too.
        assert_eq!(parts([&text[begins..ends]], false, &Ending::Whole), begun("f", "{\"x\": \"a}\"}"));
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
            length in any::<bool>(),
        ) {
            let text = fragments.concat();
            let borders: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| borders[cut.index(borders.len())]).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
            let ending = if length { cut(false, None) } else { Ending::Whole };
            prop_assert_eq!(parts(pieces, thinks, &ending), parts([text.as_str()], thinks, &ending));
        }
    }
}
