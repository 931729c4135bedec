//! Chat templates: Jinja as transformers runs it.

use std::path::Path;

use minijinja::value::{Kwargs, Serde, Value as JinjaValue, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::python::{self, JsonStyle};
use super::strftime;
use super::tokenizer::Tokenizer;
use crate::weights::gguf::GgufFile;
use crate::{Error, Result, read};

/// One message of a conversation: an object with a `role` and, mostly, `content`; any other field
/// (`tool_calls`, `reasoning_content`, ...) reaches the template as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message with text.
    pub fn new(role: &str, content: &str) -> Self {
        Self(Map::from_iter([("role".into(), json!(role)), ("content".into(), json!(content))]))
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said, if it is text.
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = String;

    fn try_from(fields: Map<String, Value>) -> Result<Self, String> {
        match fields.get("role") {
            Some(Value::String(_)) => Ok(Self(fields)),
            Some(other) => Err(format!("the role of a message is {other}; a string is needed")),
            None => Err("a message has no \"role\"".into()),
        }
    }
}

/// Turns a conversation into the text that a model was trained on.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    has_tool_template: bool,
    /// `bos_token`, `eos_token`, ... which templates may use.
    special_tokens: Map<String, Value>,
}

const DEFAULT: &str = "chat";
const WITH_TOOLS: &str = "chat with tools";

impl ChatTemplate {
    /// Compiles a template; `tokenizer` gives it the spellings of special tokens.
    pub fn new(source: &str, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let mut environment = environment();
        add_template(&mut environment, DEFAULT, source)?;
        let special_tokens = tokenizer.map(Tokenizer::named_tokens).unwrap_or_default();
        Ok(Self { source: source.to_owned(), environment, has_tool_template: false, special_tokens })
    }

    /// From `chat_template.jinja`, `tokenizer_config.json` or `chat_template.json` of a directory, in this
    /// order; `None` if there is no template.
    pub fn from_dir(dir: &Path, tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        let source = read::if_there(read::text(&dir.join("chat_template.jinja"), read::CONFIGURATION))?;
        if let Some(source) = source {
            return Self::new(&source, tokenizer).map(Some);
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let path = dir.join(name);
            let Some(config) = read::if_there(read::json::<Value>(&path))? else { continue };
            match config.get("chat_template") {
                None | Some(Value::Null) => {}
                Some(Value::String(source)) => return Self::new(source, tokenizer).map(Some),
                Some(named) => return Self::from_named(&path, named, tokenizer).map(Some),
            }
        }
        Ok(None)
    }

    /// From the metadata of a GGUF file; `None` if it has no template.
    pub fn from_gguf(file: &GgufFile, tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        if file.get("tokenizer.chat_template").is_none() {
            return Ok(None);
        }
        Self::new(file.str("tokenizer.chat_template")?, tokenizer).map(Some)
    }

    /// A list of templates: "default", and "tool_use" for conversations with tools.
    fn from_named(path: &Path, named: &Value, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
            template: String,
        }
        let named = Vec::<Named>::deserialize(named)
            .map_err(|e| Error::bad_key(path, "chat_template", "malformed", e.to_string()))?;
        let find = |name: &str| named.iter().find(|n| n.name == name).map(|n| n.template.as_str());
        let Some(default) = find("default") else {
            return Err(Error::missing_key(path, "chat_template: name = \"default\""));
        };
        let mut template = Self::new(default, tokenizer)?;
        if let Some(source) = find("tool_use") {
            add_template(&mut template.environment, WITH_TOOLS, source)?;
            template.has_tool_template = true;
        }
        Ok(template)
    }

    /// The (default) template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. `tools` are function definitions; `extra` are further variables that the
    /// template knows (`enable_thinking`, ...).
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tools: Option<&Value>,
        extra: &Map<String, Value>,
    ) -> Result<String> {
        let name = if tools.is_some() && self.has_tool_template { WITH_TOOLS } else { DEFAULT };
        let mut variables = self.special_tokens.clone();
        variables.extend(extra.clone());
        variables.insert("messages".into(), json!(messages));
        variables.insert("tools".into(), tools.cloned().unwrap_or_default());
        variables.entry("documents").or_insert(Value::Null);
        variables.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        let template = self.environment.get_template(name).map_err(template_error)?;
        template.render(Serde(&variables)).map_err(template_error)
    }
}

fn template_error(error: minijinja::Error) -> Error {
    Error::ChatTemplate(error.to_string())
}

fn add_template(environment: &mut Environment<'static>, name: &'static str, source: &str) -> Result<()> {
    environment.add_template_owned(name, plain_generation_blocks(source)).map_err(template_error)
}

/// transformers' environment: its block trimming, `tojson`, `raise_exception`, `strftime_now`, and Python's
/// methods and spellings of values.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default());
    environment.set_unknown_method_callback(python_method);
    environment.set_formatter(format_value);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<JinjaValue, minijinja::Error> {
        Err(invalid(message))
    });
    environment.add_function("strftime_now", |format: String| strftime::now(&format).map_err(invalid));
    environment
}

/// Methods of Python's strings, lists and dictionaries.
fn python_method(
    state: &mut State,
    value: &JinjaValue,
    method: &str,
    args: &[JinjaValue],
) -> Result<JinjaValue, minijinja::Error> {
    match (value.as_str(), method) {
        (Some(text), "title") if args.is_empty() => Ok(python::title(text).into()),
        _ => unknown_method_callback(state, value, method, args),
    }
}

fn invalid(message: impl Into<String>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message.into())
}

/// `str(value)` for what `{{ }}` prints.
fn format_value(out: &mut Output, state: &mut State, value: &JinjaValue) -> Result<(), minijinja::Error> {
    let text = match value.kind() {
        ValueKind::Seq | ValueKind::Map => python::repr(&as_json(value)?),
        ValueKind::Number if !value.is_integer() => python::float_repr(f64::try_from(value.clone())?),
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(&text).map_err(minijinja::Error::from)
}

fn as_json(value: &JinjaValue) -> Result<Value, minijinja::Error> {
    serde_json::to_value(value).map_err(|e| invalid(e.to_string()))
}

/// transformers' `tojson` filter, which is `json.dumps` and escapes no HTML.
fn to_json(value: JinjaValue, options: Kwargs) -> Result<String, minijinja::Error> {
    if value.is_undefined() {
        return Err(invalid("tojson of an undefined value"));
    }
    let indent = match options.get::<Option<JinjaValue>>("indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) if width.is_none() => None,
        Some(width) => Some(" ".repeat(usize::try_from(width)?)),
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
    Ok(python::json_dumps(&as_json(&value)?, &style))
}

/// `{% generation %}` marks what the model wrote and prints nothing itself: the blocks become `if true`,
/// which keeps their whitespace control.
fn plain_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (open, close) = (start + 2, start + length);
        let inner = &rest[open..close];
        let replacement = match inner.trim_matches(['-', '+']).trim() {
            "generation" => inner.replacen("generation", "if true", 1),
            "endgeneration" => inner.replacen("endgeneration", "endif", 1),
            _ => inner.to_owned(),
        };
        out.push_str(&rest[..open]);
        out.push_str(&replacement);
        out.push_str("%}");
        rest = &rest[close + 2..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let messages = [Message::new("user", "<é> \"q\"")];
        let extra = Map::from_iter([
            ("flag".into(), json!(true)),
            ("number".into(), json!(1e-5)),
            ("list".into(), json!(["a", null, 1.0])),
        ]);
        ChatTemplate::new(source, None)?.render(&messages, true, None, &extra)
    }

    #[test]
    fn prints_as_python_does() {
        let got =
            render("{{ flag }} {{ number }} {{ list }} {{ none }} {{ nothing }}|{{ messages[0] | tojson }}").unwrap();
        assert_eq!(got, r#"True 1e-05 ['a', None, 1.0] None |{"role": "user", "content": "<é> \"q\""}"#);
    }

    #[test]
    fn generation_blocks_keep_their_whitespace_control() {
        let got =
            render("a\n{%- generation -%}\n b \n{%- endgeneration %}\nc {% generation %}d{% endgeneration %}").unwrap();
        assert_eq!(got, "ab c d".replacen("b ", "b", 1));
    }

    #[test]
    fn loop_controls_and_raise_exception() {
        assert_eq!(
            render("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}").unwrap(),
            "1"
        );
        let message = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert!(message.contains("roles must alternate"), "{message}");
        assert!(render("{% if %}").is_err());
        assert!(render("{{ strftime_now('%Q') }}").unwrap_err().to_string().contains("%Q"));
        assert_eq!(render("{{ strftime_now('%Y') }}").unwrap().len(), 4);
    }

    #[test]
    fn a_message_needs_a_role() {
        assert!(serde_json::from_value::<Message>(json!({"content": "x"})).unwrap_err().to_string().contains("role"));
        assert!(serde_json::from_value::<Message>(json!({"role": 1})).is_err());
        let kept = json!({"content": null, "role": "assistant", "tool_calls": [{"name": "f"}]});
        let message: Message = serde_json::from_value(kept.clone()).unwrap();
        assert_eq!((message.role(), message.content()), ("assistant", None));
        assert_eq!(serde_json::to_value(&message).unwrap(), kept);
    }
}
