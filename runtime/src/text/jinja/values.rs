//! Values of a conversation that a template may take in more than one form.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};

/// Arguments of a call that came as text: an object where a template looks into them or renders them as JSON, and that text,
/// to the letter, where it prints them.
#[derive(Debug)]
pub(in crate::text) struct Arguments {
    /// As they came.
    pub(in crate::text) text: String,
    /// The parsed text; `None` if it is no JSON object.
    pub(in crate::text) object: Option<Value>,
}

impl Object for Arguments {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.object.is_some() { ObjectRepr::Map } else { ObjectRepr::Plain }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.object.as_ref()?.as_object()?.get_value(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let keys = self.object.as_ref().and_then(|object| object.try_iter().ok());
        Enumerator::Values(keys.map(Iterator::collect).unwrap_or_default())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Stands for a list of text parts that a template takes for one text.
pub(in crate::text) const WHOLE_LIST: &str = "\u{0}list of text parts\u{0}";

/// Content that came as a list of text parts. A template that prints it as a whole does not know such lists.
#[derive(Debug)]
pub(in crate::text) struct TextParts(pub(in crate::text) Vec<Value>);

impl Object for TextParts {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = i64::try_from(key.clone()).ok()?;
        let index = if index < 0 { index + self.0.len() as i64 } else { index };
        self.0.get(usize::try_from(index).ok()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WHOLE_LIST)
    }
}
