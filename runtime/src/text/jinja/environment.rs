//! What chat templates can use: transformers' environment, on top of Jinja's.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::values::{Arguments, TextParts};
use crate::text::python::{self, JsonStyle};
use crate::text::strftime;

/// The filter of what a namespace takes in.
pub(super) const STORABLE: &str = "_storable";

/// Values nest no deeper in a namespace or in JSON.
const DEEPEST: usize = 128;

/// Bytes of a format of dates, and digits of a width in another one.
const LONGEST_FORMAT: usize = 1000;
const LONGEST_WIDTH: usize = 4;

/// Bytes that one unit of fuel stands for.
const BYTES_PER_FUEL: usize = 64;

/// transformers' environment: its block trimming, `tojson`, `raise_exception`, `strftime_now`, and Python's
/// methods and spellings of values.
pub(in crate::text) fn transformers() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default());
    environment.set_unknown_method_callback(python_method);
    environment.set_formatter(format_value);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", to_string);
    environment.add_filter("pprint", to_string);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_test("string", is_string);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(invalid(message))
    });
    environment.add_function("strftime_now", |format: String| match format.len() {
        0..=LONGEST_FORMAT => strftime::now(&format).map_err(invalid),
        length => Err(invalid(format!("strftime_now: {length} bytes; at most {LONGEST_FORMAT} are a format"))),
    });
    environment
}

pub(super) fn invalid(message: impl Into<String>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Arguments of a call that came as text may be taken as such.
fn is_string(value: &Value) -> bool {
    value.kind() == ValueKind::String || value.downcast_object_ref::<Arguments>().is_some()
}

/// `str(value)`.
fn to_string(state: &State, value: &Value) -> Result<String, minijinja::Error> {
    match value.kind() {
        _ if value.downcast_object_ref::<Arguments>().is_some() => Ok(value.to_string()),
        _ if value.downcast_object_ref::<TextParts>().is_some() => Ok(value.to_string()),
        ValueKind::Seq | ValueKind::Map => Ok(python::repr(&as_json(state, value, 0)?)),
        ValueKind::Number if !value.is_integer() => Ok(python::float_repr(f64::try_from(value.clone())?)),
        ValueKind::Bool | ValueKind::None => Ok(python::repr(&as_json(state, value, 0)?)),
        _ => Ok(value.to_string()),
    }
}

/// Methods of Python's strings, lists and dictionaries.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let text = match value.downcast_object_ref::<Arguments>() {
        Some(arguments) if !matches!(method, "get" | "items" | "keys" | "values") => {
            Some(Value::from(arguments.text.as_str()))
        }
        _ => None,
    };
    let value = text.as_ref().unwrap_or(value);
    if value.downcast_object_ref::<TextParts>().is_some() && method != "count" {
        return Err(invalid(format!("a list of text parts has no method `{method}`")));
    }
    if let Some(text) = value.as_str() {
        state.consume_fuel((text.len() / BYTES_PER_FUEL) as u64)?;
    }
    match (value.as_str(), method) {
        (Some(text), "format") if has_wide_field(text) => {
            Err(invalid(format!("format: a width has more than {LONGEST_WIDTH} digits, or is an argument itself")))
        }
        (Some(text), "title") if args.is_empty() => Ok(python::title(text).into()),
        (Some(text), "rsplit" | "partition" | "rpartition" | "removeprefix" | "removesuffix") => {
            cut(text, method, args)
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// Methods of a string that take it apart at a text.
fn cut(text: &str, method: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let (at, most) = match args {
        [at] => (at.as_str(), None),
        [at, most] if method == "rsplit" => (at.as_str(), usize::try_from(most.clone()).ok()),
        _ => (None, None),
    };
    let at = at.filter(|at| !at.is_empty() || method.starts_with("remove"));
    let at = at.ok_or_else(|| invalid(format!("{method} takes the text to look for")))?;
    let three = |parts: Option<(&str, &str)>, whole: [&str; 3]| {
        Value::from(parts.map_or(whole, |(before, after)| [before, at, after]).map(Value::from).to_vec())
    };
    Ok(match method {
        "partition" => three(text.split_once(at), [text, "", ""]),
        "rpartition" => three(text.rsplit_once(at), ["", "", text]),
        "removeprefix" => text.strip_prefix(at).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(at).unwrap_or(text).into(),
        _ => {
            let parts = text.rsplitn(most.map_or(usize::MAX, |most| most.saturating_add(1)), at);
            let mut parts: Vec<Value> = parts.map(Value::from).collect();
            parts.reverse();
            parts.into()
        }
    })
}

/// As Jinja (markupsafe) escapes HTML.
fn escape(text: String) -> String {
    let entity = |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '\'' => Some("&#39;"),
        '"' => Some("&#34;"),
        _ => None,
    };
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match entity(c) {
            Some(entity) => out.push_str(entity),
            None => out.push(c),
        }
        out
    })
}

/// Whether a format needs more text than its arguments have.
fn has_wide_field(format: &str) -> bool {
    let digits = |part: &str| part.bytes().filter(u8::is_ascii_digit).count();
    format
        .split('{')
        .skip(1)
        .any(|field| field.ends_with(':') || digits(field.split('}').next().unwrap_or(field)) > LONGEST_WIDTH)
}

/// `str(value)` for what `{{ }}` prints.
fn format_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    if let Some(arguments) = value.downcast_object_ref::<Arguments>() {
        return out.write_str(&arguments.text).map_err(minijinja::Error::from);
    }
    if value.downcast_object_ref::<TextParts>().is_some() {
        return Err(invalid("a list of text parts is printed as a whole"));
    }
    let text = match value.kind() {
        ValueKind::Seq | ValueKind::Map => python::repr(&as_json(state, value, 0)?),
        ValueKind::Number if !value.is_integer() => python::float_repr(f64::try_from(value.clone())?),
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(&text).map_err(minijinja::Error::from)
}

/// A value as JSON has it.
fn as_json(state: &State, value: &Value, depth: usize) -> Result<Json, minijinja::Error> {
    // A node takes about as long as it takes to write out a few bytes.
    state.consume_fuel(1)?;
    if depth > DEEPEST {
        return Err(invalid(format!("a value is nested more than {DEEPEST} deep")));
    }
    if value.downcast_object_ref::<Arguments>().is_some_and(|arguments| arguments.object.is_none()) {
        return Err(invalid("the arguments of a call are no JSON object, and the template needs one"));
    }
    let key = |key: &Value| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.map(|item| as_json(state, &item, depth + 1)).collect::<Result<_, _>>().map(Json::Array)
        }
        ValueKind::Map => {
            let entry = |name: Value| Ok((key(&name), as_json(state, &value.get_item(&name)?, depth + 1)?));
            value.try_iter()?.map(entry).collect::<Result<_, _>>().map(Json::Object)
        }
        ValueKind::String => Ok(Json::from(value.as_str().unwrap_or_default())),
        _ => serde_json::to_value(value).map_err(|e| invalid(e.to_string())),
    }
}

/// transformers' `tojson` filter, which is `json.dumps` and escapes no HTML.
fn to_json(state: &State, value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    if value.is_undefined() {
        return Err(invalid("tojson of an undefined value"));
    }
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) if width.is_none() => None,
        Some(width) => Some(" ".repeat(usize::try_from(width)?.min(DEEPEST))),
    };
    let separators = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => None,
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(other) => return Err(invalid(format!("tojson: {} separators; 2 are needed", other.len()))),
    };
    let style = JsonStyle {
        indent,
        separators,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(python::json_dumps(&as_json(state, &value, 0)?, &style))
}

/// Lets through what a namespace may hold: no namespace, and nothing nested too deep.
pub(super) fn storable(state: &State, value: Value) -> Result<Value, minijinja::Error> {
    check_storable(state, &value, 0, &mut 0)?;
    Ok(value)
}

fn check_storable(state: &State, value: &Value, depth: usize, seen: &mut u64) -> Result<(), minijinja::Error> {
    // To look at some values takes as long as one step.
    *seen += 1;
    if seen.is_multiple_of(8) {
        state.consume_fuel(1)?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    // The type has no public name.
    if object.type_name().ends_with("::Namespace") {
        return Err(invalid("a namespace cannot hold a namespace"));
    }
    if depth > DEEPEST {
        return Err(invalid(format!("a value in a namespace is nested more than {DEEPEST} deep")));
    }
    let by_key = value.kind() == ValueKind::Map;
    if !by_key && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(());
    }
    for item in value.try_iter()? {
        let item = if by_key { value.get_item(&item)? } else { item };
        check_storable(state, &item, depth + 1, seen)?;
    }
    Ok(())
}
