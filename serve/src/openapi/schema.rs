//! Schemas in few words.

use std::ops::RangeBounds;

use serde_json::Value;
use utoipa::Number;
use utoipa::openapi::schema::{AdditionalProperties, AnyOfBuilder, ArrayBuilder, Schema as Inner, SchemaType, Type};
use utoipa::openapi::{ObjectBuilder, Ref, RefOr};

/// A schema, or the name of one.
pub(crate) type Schema = RefOr<Inner>;

fn of_type(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

/// Whatever JSON there is.
pub(crate) fn any() -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).into()
}

pub(crate) fn text() -> Schema {
    of_type(Type::String).into()
}

/// A text of at least one character.
pub(crate) fn some_text() -> Schema {
    of_type(Type::String).min_length(Some(1)).into()
}

/// A text of letters, digits, `_` and `-`.
pub(crate) fn word(most: usize) -> Schema {
    of_type(Type::String).pattern(Some(format!("^[a-zA-Z0-9_-]{{1,{most}}}$"))).into()
}

pub(crate) fn boolean() -> Schema {
    of_type(Type::Boolean).into()
}

/// `null` and nothing else.
pub(crate) fn null() -> Schema {
    of_type(Type::Null).into()
}

/// The borders of a range of whole numbers.
fn borders(range: &impl RangeBounds<i128>) -> [Option<i128>; 2] {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let low = match range.start_bound() {
        Included(&low) => Some(low),
        Excluded(&low) => Some(low + 1),
        Unbounded => None,
    };
    let high = match range.end_bound() {
        Included(&high) => Some(high),
        Excluded(&high) => Some(high - 1),
        Unbounded => None,
    };
    [low, high]
}

/// A whole number, written without a fraction.
pub(crate) fn integer(range: impl RangeBounds<i128>) -> Schema {
    let number = |value: i128| match isize::try_from(value) {
        Ok(value) => Number::Int(value),
        Err(_) => Number::UInt(usize::try_from(value).expect("limits have 64 bits")),
    };
    let [low, high] = borders(&range).map(|border| border.map(number));
    of_type(Type::Integer).minimum(low).maximum(high).into()
}

/// A number of things.
pub(crate) fn count() -> Schema {
    integer(0..)
}

/// The id of a token. How many there are depends on the model.
pub(crate) fn token_id() -> Schema {
    integer(0..1 << 32)
}

pub(crate) fn number(low: Option<f64>, high: Option<f64>) -> Schema {
    of_type(Type::Number).minimum(low).maximum(high).into()
}

/// A number above `low`.
pub(crate) fn number_above(low: f64, high: Option<f64>) -> Schema {
    of_type(Type::Number).exclusive_minimum(Some(low)).maximum(high).into()
}

pub(crate) fn list(of: impl Into<Schema>) -> Schema {
    ArrayBuilder::new().items(of.into()).into()
}

/// A list with at least one element.
pub(crate) fn some(of: impl Into<Schema>, most: Option<usize>) -> Schema {
    ArrayBuilder::new().items(of.into()).min_items(Some(1)).max_items(most).into()
}

/// A list of at most so many.
pub(crate) fn at_most(most: usize, of: impl Into<Schema>) -> Schema {
    ArrayBuilder::new().items(of.into()).max_items(Some(most)).into()
}

/// One of these texts.
pub(crate) fn one_of(values: &[&str]) -> Schema {
    of_type(Type::String).enum_values(Some(values.iter().copied())).into()
}

/// This value.
pub(crate) fn exactly(value: impl Into<Value>) -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).enum_values(Some([value.into()])).into()
}

/// Whatever fits one of these.
pub(crate) fn any_of(schemas: impl IntoIterator<Item = Schema>) -> Schema {
    schemas.into_iter().fold(AnyOfBuilder::new().schema_type(SchemaType::AnyValue), AnyOfBuilder::item).into()
}

pub(crate) fn nullable(schema: Schema) -> Schema {
    match schema {
        RefOr::T(Inner::Object(mut object)) if object.enum_values.is_none() => {
            object.schema_type = or_null(object.schema_type);
            object.into()
        }
        RefOr::T(Inner::Array(mut array)) => {
            array.schema_type = or_null(array.schema_type);
            RefOr::T(Inner::Array(array))
        }
        other => any_of([other, null()]),
    }
}

fn or_null(kind: SchemaType) -> SchemaType {
    match kind {
        SchemaType::Type(Type::Null) | SchemaType::AnyValue => kind,
        SchemaType::Type(kind) => SchemaType::Array(vec![kind, Type::Null]),
        SchemaType::Array(mut kinds) => {
            kinds.push(Type::Null);
            SchemaType::Array(kinds)
        }
    }
}

/// An object with any names.
pub(crate) fn map(of: Schema) -> Schema {
    of_type(Type::Object).additional_properties(Some(of)).into()
}

/// An object with names of this pattern.
pub(crate) fn map_from(pattern: &str, of: Schema) -> Schema {
    let names = of_type(Type::String).pattern(Some(pattern)).build();
    of_type(Type::Object).property_names(Some(names)).additional_properties(Some(of)).into()
}

/// The schema of this name among the document's components.
pub(crate) fn named(name: &str) -> Schema {
    Ref::from_schema_name(name).into()
}

/// The same schema, with words about it.
pub(crate) fn described(schema: Schema, words: &str) -> Schema {
    let words = words.to_owned();
    match schema {
        RefOr::T(Inner::Object(mut object)) => {
            object.description = Some(words);
            object.into()
        }
        RefOr::T(Inner::Array(mut array)) => {
            array.description = Some(words);
            RefOr::T(Inner::Array(array))
        }
        RefOr::T(Inner::AnyOf(mut any)) => {
            any.description = Some(words);
            RefOr::T(Inner::AnyOf(any))
        }
        RefOr::Ref(mut reference) => {
            reference.description = words;
            reference.into()
        }
        other => other,
    }
}

/// A server-sent event; `words` say what its data are.
pub(crate) fn event(words: &str) -> Schema {
    Members::new().always("data", text(), words).maybe("event", text(), "Its kind.").maybe("id", text(), "").closed()
}

struct Member {
    name: &'static str,
    schema: Schema,
    words: String,
    required: bool,
}

/// The members of an object, in a body or in an answer.
#[derive(Default)]
pub(crate) struct Members(Vec<Member>);

impl Members {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn with(mut self, name: &'static str, schema: impl Into<Schema>, words: &str, required: bool) -> Self {
        self.0.push(Member { name, schema: schema.into(), words: words.to_owned(), required });
        self
    }

    /// It is, or has to be, there.
    pub(crate) fn always(self, name: &'static str, schema: impl Into<Schema>, words: &str) -> Self {
        self.with(name, schema, words, true)
    }

    /// It may be absent.
    pub(crate) fn maybe(self, name: &'static str, schema: impl Into<Schema>, words: &str) -> Self {
        self.with(name, schema, words, false)
    }

    pub(crate) fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// Without the member of this name.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.retain(|member| member.name != name);
        self
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|member| member.name).collect()
    }

    fn build(self, nulls: bool, others: AdditionalProperties<Inner>) -> Schema {
        let mut object = of_type(Type::Object).additional_properties(Some(others));
        for Member { name, schema, words, required } in self.0 {
            let schema = if nulls && !required { nullable(schema) } else { schema };
            object = object.property(name, if words.is_empty() { schema } else { described(schema, &words) });
            if required {
                object = object.required(name);
            }
        }
        object.into()
    }

    /// An object that a client sends: `null` is the same as absence, and what is not listed is refused.
    pub(crate) fn sent(self) -> Schema {
        self.build(true, AdditionalProperties::RefOr(null()))
    }

    /// An object with these members and no other.
    pub(crate) fn closed(self) -> Schema {
        self.build(false, AdditionalProperties::FreeForm(false))
    }

    /// An object that may have others, too.
    pub(crate) fn open(self) -> Schema {
        self.build(false, AdditionalProperties::FreeForm(true))
    }
}
