//! `prompt` and `input` as requests give them: texts, or token ids.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::openapi::schema::{Schema, any_of, some, text, token_id};

/// `prompt` and `input`: a text, some texts, the ids of one prompt, or of some.
#[derive(Debug)]
pub(crate) enum Input {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

/// An element of a list of inputs.
enum Element {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
}

const INPUT: &str = "a string, a list of strings, a list of token ids or a list of such lists";

/// Reads an [`Input`] in one go: to try one form after the other would keep several copies of millions of ids.
struct ReadInput;
/// Reads an [`Element`].
struct ReadElement;

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadInput)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadElement)
    }
}

impl<'de> Visitor<'de> for ReadInput {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(INPUT)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Input, E> {
        Ok(Input::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Input, A::Error> {
        let mut input = match list.next_element()? {
            None => return Ok(Input::Ids(vec![])),
            Some(Element::Id(id)) => Input::Ids(vec![id]),
            Some(Element::Text(text)) => Input::Texts(vec![text]),
            Some(Element::Ids(ids)) => Input::IdLists(vec![ids]),
        };
        while let Some(element) = list.next_element()? {
            match (&mut input, element) {
                (Input::Ids(ids), Element::Id(id)) => ids.push(id),
                (Input::Texts(texts), Element::Text(text)) => texts.push(text),
                (Input::IdLists(lists), Element::Ids(ids)) => lists.push(ids),
                _ => return Err(de::Error::custom(format!("its elements are of several kinds; expected {INPUT}"))),
            }
        }
        Ok(input)
    }
}

impl<'de> Visitor<'de> for ReadElement {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{INPUT}; an id is from 0 to {}", u32::MAX)
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
        let id = u32::try_from(id).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))?;
        Ok(Element::Id(id))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Element, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(Element::Ids)
    }
}

/// An [`Input`]. Every prompt has to have at least one token.
pub(crate) fn describe_input() -> Schema {
    any_of([text(), some(text(), None), some(token_id(), None), some(some(token_id(), None), None)])
}
