//! The form of an answer as vLLM's clients ask for it: `structured_outputs`, and the older `guided_...`.

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::Fields;
use crate::openapi::schema::{Members, any_of, boolean, exactly, list, null, some, text};
use crate::structured::grammar::{ResponseFormat, describe_schema};

const FIELD: &str = "structured_outputs";
/// The older fields and what each is called in the newer one.
const GUIDED: [(&str, &str); 5] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
    ("guided_json_object", "json_object"),
];

impl ResponseFormat {
    /// Takes the form, and says which field asks for it.
    pub(crate) fn take_structured(fields: &mut Fields) -> Result<Option<(Self, &'static str)>, ApiError> {
        // One library decides which tokens may come; clients that name another get the same form.
        fields.take::<String>("guided_decoding_backend")?;
        fields.only("guided_whitespace_pattern", &[], "JSON is written with the white space of Python's json.dumps")?;
        let mut found: Option<(Self, &'static str)> = None;
        if let Some(Fields(object)) = fields.take(FIELD)? {
            found = Some((Self::of_structured(object)?, FIELD));
        }
        for (field, kind) in GUIDED {
            let Some(value) = fields.take::<Value>(field)? else { continue };
            let Some(form) = Self::of_kind(kind, &value).map_err(|why| wrong(field, &why))? else { continue };
            if let Some((_, other)) = found {
                return Err(wrong(field, &format!("`{other}` gives the answer a form, too; send one of them")));
            }
            found = Some((form, field));
        }
        Ok(found)
    }

    /// An object with one kind of form; `null` is absence, and so is a setting that is off.
    fn of_structured(mut object: Map<String, Value>) -> Result<Self, ApiError> {
        object.retain(|_, value| !value.is_null());
        // Nothing falls back to another library here.
        object.shift_remove("disable_fallback");
        let mut form = None;
        for (kind, value) in &object {
            match (Self::of_kind(kind, value).map_err(|why| wrong(FIELD, &format!("`{kind}` {why}")))?, &form) {
                (Some(_), Some(_)) => return Err(wrong(FIELD, "one of its kinds of form can be honoured")),
                (Some(one), None) => form = Some(one),
                (None, _) => {}
            }
        }
        form.ok_or_else(|| wrong(FIELD, "an object with one of json, json_object, regex, choice, grammar is needed"))
    }

    /// A form of this kind; `None` where it is switched off.
    fn of_kind(kind: &str, value: &Value) -> Result<Option<Self>, String> {
        let form = match (kind, value) {
            ("json", Value::Object(_) | Value::Bool(_)) => Self::Schema(value.clone()),
            // Some clients send a schema as text.
            ("json", Value::String(text)) => match serde_json::from_str(text) {
                Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Self::Schema(schema),
                _ => return Err("is text that is no JSON schema".to_owned()),
            },
            ("json_object", Value::Bool(true)) => Self::Schema(json!({"type": "object"})),
            ("json_object", Value::Bool(false)) => return Ok(None),
            ("regex", Value::String(regex)) => Self::Regex(regex.clone()),
            ("grammar", Value::String(lark)) => Self::Lark(lark.clone()),
            ("choice", Value::Array(choices)) if !choices.is_empty() && choices.iter().all(Value::is_string) => {
                let choices: Vec<String> = choices.iter().map(Value::to_string).collect();
                Self::Lark(format!("start: {}", choices.join(" | ")))
            }
            ("json" | "json_object" | "regex" | "grammar" | "choice", _) => {
                return Err("has a value of the wrong type".to_owned());
            }
            _ => return Err("is not known here; json, json_object, regex, choice and grammar are".to_owned()),
        };
        Ok(Some(form))
    }
}

fn wrong(field: &'static str, what: &str) -> ApiError {
    ApiError::invalid(field, format!("`{field}`: {what}"))
}

/// The fields that [`ResponseFormat::take_structured`] takes.
pub(crate) fn describe_structured() -> Members {
    let one = |name, schema, words: &str| Members::new().always(name, schema, words).closed();
    let json = || any_of([describe_schema(), text()]);
    let grammar = "In llguidance's Lark dialect.";
    let object = any_of([
        one("json", json(), "A JSON schema, or its text."),
        one("json_object", exactly(true), "Any JSON object."),
        one("regex", text(), ""),
        one("choice", some(text(), None), ""),
        one("grammar", text(), grammar),
    ]);
    Members::new()
        .maybe(FIELD, object, "The answer has this form.")
        .maybe("guided_json", json(), "`structured_outputs.json`.")
        .maybe("guided_json_object", boolean(), "`structured_outputs.json_object`.")
        .maybe("guided_regex", text(), "`structured_outputs.regex`.")
        .maybe("guided_choice", list(text()), "`structured_outputs.choice`.")
        .maybe("guided_grammar", text(), grammar)
        .maybe("guided_decoding_backend", text(), "Accepted; it cannot change the form.")
        .maybe("guided_whitespace_pattern", null(), "Nothing but `null` is honoured.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(body: &str) -> Result<Option<(ResponseFormat, &'static str)>, ApiError> {
        ResponseFormat::take_structured(&mut Fields::parse(body.as_bytes()).expect("an object"))
    }

    #[test]
    fn old_and_new_fields_ask_for_the_same_forms() {
        let schema = ResponseFormat::Schema(json!({"type": "object"}));
        let lark = |text: &str| ResponseFormat::Lark(text.to_owned());
        for (body, form, field) in [
            (r#"{"structured_outputs": {"json": {"type": "object"}, "regex": null}}"#, schema.clone(), FIELD),
            (
                r#"{"structured_outputs": {"json": "{\"type\": \"object\"}", "json_object": false}}"#,
                schema.clone(),
                FIELD,
            ),
            (r#"{"guided_json": {"type": "object"}, "guided_regex": null}"#, schema.clone(), "guided_json"),
            (r#"{"guided_json_object": true, "guided_decoding_backend": "xgrammar"}"#, schema, "guided_json_object"),
            (r#"{"guided_choice": ["a", "b\""]}"#, lark(r#"start: "a" | "b\"""#), "guided_choice"),
            (r#"{"guided_regex": "a+"}"#, ResponseFormat::Regex("a+".to_owned()), "guided_regex"),
            (r#"{"guided_grammar": "start: \"a\""}"#, lark("start: \"a\""), "guided_grammar"),
        ] {
            assert_eq!(take(body).expect(body), Some((form, field)), "{body}");
        }
        assert_eq!(take("{}").expect("absent"), None);
        for (body, field) in [
            (r#"{"structured_outputs": {"json": {}, "regex": "a"}}"#, FIELD),
            (r#"{"structured_outputs": {}}"#, FIELD),
            (r#"{"structured_outputs": {"structural_tag": "{}"}}"#, FIELD),
            (r#"{"structured_outputs": {"regex": 1}}"#, FIELD),
            (r#"{"structured_outputs": {"regex": "a"}, "guided_regex": "b"}"#, "guided_regex"),
            (r#"{"guided_choice": []}"#, "guided_choice"),
            (r#"{"guided_json": "no JSON"}"#, "guided_json"),
        ] {
            assert_eq!(take(body).expect_err(body).param.as_deref(), Some(field), "{body}");
        }
    }
}
