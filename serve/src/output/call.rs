//! A call's object as it comes: `{"name": "f", "arguments": {...}}`, its members in any order.

use std::ops::Range;

use serde::de::IgnoredAny;

use super::Part;

/// How far an object has been read. Places are bytes of its text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    at: usize,
    /// Open braces.
    depth: usize,
    /// Open brackets of a value of the object itself.
    brackets: usize,
    in_string: bool,
    escaped: bool,
    place: Place,
    key: Key,
    name: Option<String>,
    /// Where the arguments begin.
    arguments: Option<usize>,
    /// All of them, once they are complete.
    whole: Option<Range<usize>>,
    /// Whether it is known to be a call and was said to be one; arguments were sent up to here.
    sent: Option<usize>,
}

/// What is expected next between the braces of the object itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Key,
    InKey(usize),
    Colon,
    Value,
    InValue(usize),
    Comma,
    /// It is no JSON: nothing more is recognized.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Key {
    #[default]
    Other,
    Name,
    Arguments,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Open,
    /// It ends before this byte.
    Complete(usize),
    /// It does not begin with a brace.
    NoObject,
}

impl Call {
    /// Reads on in the text of the object so far; what is certain is appended to `parts`.
    pub(crate) fn read(&mut self, text: &str, parts: &mut Vec<Part>) -> Read {
        while let Some(&byte) = text.as_bytes().get(self.at) {
            let here = self.at;
            self.at += 1;
            match self.byte(byte, here, text) {
                Read::Open => {}
                end => {
                    self.send(text, parts);
                    return end;
                }
            }
        }
        self.send(text, parts);
        Read::Open
    }

    /// Between the braces of the object itself, in no value of its own braces or brackets.
    fn is_outer(&self) -> bool {
        self.depth == 1 && self.brackets == 0
    }

    fn byte(&mut self, byte: u8, here: usize, text: &str) -> Read {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' if self.in_string => {
                self.in_string = false;
                self.string_ends(here + 1, text);
            }
            _ if self.in_string => {}
            b'}' if self.depth == 0 => return Read::NoObject,
            b' ' | b'\n' | b'\r' | b'\t' => self.scalar_ends(here, text),
            b'{' if self.depth == 0 => self.depth = 1,
            _ if self.depth == 0 => return Read::NoObject,
            b'}' => {
                self.scalar_ends(here, text);
                self.depth -= 1;
                match self.depth {
                    0 => return Read::Complete(here + 1),
                    _ => self.value_ends(here + 1, text),
                }
            }
            b'"' => {
                self.in_string = true;
                self.begins(here, Place::InKey(here));
            }
            b'{' => {
                self.begins(here, Place::Lost);
                self.depth += 1;
            }
            b'[' if self.depth == 1 => {
                self.begins(here, Place::Lost);
                self.brackets += 1;
            }
            b']' if self.depth == 1 => {
                self.brackets = self.brackets.saturating_sub(1);
                self.value_ends(here + 1, text);
            }
            b':' if self.is_outer() => self.goes(Place::Colon, Place::Value),
            b',' if self.is_outer() => {
                self.scalar_ends(here, text);
                self.goes(Place::Comma, Place::Key);
            }
            _ => self.begins(here, Place::Lost),
        }
        Read::Open
    }

    fn goes(&mut self, from: Place, to: Place) {
        self.place = if self.place == from { to } else { Place::Lost };
    }

    /// Something begins: a value where one is expected, `as_key` where a key is.
    fn begins(&mut self, here: usize, as_key: Place) {
        if !self.is_outer() {
            return;
        }
        self.place = match self.place {
            Place::Key => as_key,
            Place::Value => {
                if self.key == Key::Arguments && self.arguments.is_none() {
                    self.arguments = Some(here);
                }
                Place::InValue(here)
            }
            // The next letter of a number or a word.
            Place::InValue(start) if as_key == Place::Lost => Place::InValue(start),
            _ => Place::Lost,
        };
    }

    fn string_ends(&mut self, end: usize, text: &str) {
        match self.place {
            Place::InKey(start) if self.is_outer() => {
                self.key = match serde_json::from_str::<String>(&text[start..end]).as_deref() {
                    Ok("name") => Key::Name,
                    Ok("arguments" | "parameters") => Key::Arguments,
                    _ => Key::Other,
                };
                self.place = Place::Colon;
            }
            _ => self.value_ends(end, text),
        }
    }

    /// A number or a word ends where something else begins.
    fn scalar_ends(&mut self, end: usize, text: &str) {
        if matches!(self.place, Place::InValue(_)) {
            self.value_ends(end, text);
        }
    }

    fn value_ends(&mut self, end: usize, text: &str) {
        let (true, Place::InValue(start)) = (self.is_outer(), self.place) else { return };
        self.place = Place::Comma;
        match self.key {
            Key::Name if self.name.is_none() => match serde_json::from_str(&text[start..end]) {
                Ok(name) => self.name = Some(name),
                Err(_) => self.place = Place::Lost,
            },
            Key::Arguments if self.whole.is_none() => self.whole = Some(start..end),
            _ => {}
        }
    }

    /// Sends what is certain: with its name and the brace of its arguments an object is a call. What is written otherwise
    /// waits for the object's end.
    fn send(&mut self, text: &str, parts: &mut Vec<Part>) {
        let (Some(name), Some(start)) = (&self.name, self.arguments) else { return };
        if !text[start..].starts_with('{') {
            return;
        }
        if self.sent.is_none() {
            parts.push(Part::Call(name.clone()));
        }
        let (from, to) = (self.sent.unwrap_or(start), self.whole.as_ref().map_or(self.at, |whole| whole.end));
        if to > from {
            parts.push(Part::Arguments(text[from..to].to_owned()));
        }
        self.sent = Some(to);
    }

    /// Whether it was said to be a call.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent.is_some()
    }

    /// The object is complete; `false` where it is no JSON or names no function.
    pub(crate) fn complete(&self, object: &str, parts: &mut Vec<Part>) -> bool {
        if self.sent.is_none() {
            let Some(name) = self.name.clone().filter(|_| serde_json::from_str::<IgnoredAny>(object).is_ok()) else {
                return false;
            };
            let arguments = self.whole.clone().map(|whole| &object[whole]).filter(|arguments| *arguments != "null");
            // Some models write the arguments as JSON in a string.
            let arguments = arguments.map(|arguments| serde_json::from_str(arguments).unwrap_or(arguments.to_owned()));
            parts.extend([Part::Call(name), Part::Arguments(arguments.unwrap_or_else(|| "{}".to_owned()))]);
        }
        parts.push(Part::CallEnd);
        true
    }

    /// The length cut it. `only` is the function that it must be a call of, if there is but one.
    pub(crate) fn cut(&self, text: &str, only: Option<&str>, parts: &mut Vec<Part>) {
        let Some(name) = self.name.as_deref().or(only).filter(|_| self.sent.is_none()) else { return };
        parts.push(Part::Call(name.to_owned()));
        let Some(start) = self.arguments else { return };
        let arguments = &text[start..self.whole.as_ref().map_or(text.len(), |whole| whole.end)];
        // What is written as a string is as long as it can be read.
        let strings = (0..arguments.len()).rev().filter(|&end| arguments.is_char_boundary(end + 1));
        let read = match arguments.starts_with('"') {
            true => strings
                .take(LONGEST_ESCAPE)
                .find_map(|end| serde_json::from_str(&format!("{}\"", &arguments[..=end])).ok()),
            false => None,
        };
        parts.push(Part::Arguments(read.unwrap_or_else(|| arguments.to_owned())));
    }
}

/// Bytes of the longest escape of a string, `\ud83e\udd80`.
const LONGEST_ESCAPE: usize = 12;
