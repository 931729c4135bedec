//! Chat templates: Jinja as transformers runs it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use minijinja::value::{Serde, Value as JinjaValue};
use serde_json::{Map, Value, json};

use super::folder::TextFiles;
use super::jinja::{self, TemplateError, Templates};
use super::message::Message;
use super::tokenizer::Tokenizer;
use super::value_forms::{Conversation, ValueForm};
use crate::weights::gguf::GgufFile;
use crate::{Error, Result};

/// How a rendered conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With its last message.
    Closed,
    /// Where an answer of the assistant begins (transformers' `add_generation_prompt`).
    Answer,
    /// Inside its last message, whose text goes on (transformers' `continue_final_message`).
    Continue,
}

/// Stands at the end of the message that goes on while it is rendered; transformers' own mark, whose last character shows
/// whether a template cuts white space off.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Turns a conversation into the text that a model was trained on.
pub struct ChatTemplate {
    source: String,
    templates: Templates,
    has_tool_template: bool,
    /// All templates of the source by name, where it names them.
    named: Vec<(String, String)>,
    /// `bos_token`, `eos_token`, ... which templates may use.
    special_tokens: Map<String, Value>,
}

const DEFAULT: &str = "chat";
const WITH_TOOLS: &str = "chat with tools";

impl ChatTemplate {
    /// Compiles a template; `tokenizer` gives it the spellings of special tokens.
    pub fn new(source: &str, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        Self::compile(source, None, tokenizer)
    }

    fn compile(source: &str, tool_use: Option<&str>, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let with_tools = tool_use.map(|source| (WITH_TOOLS, source.to_owned()));
        let sources = [(DEFAULT, source.to_owned())].into_iter().chain(with_tools).collect();
        Ok(Self {
            source: source.to_owned(),
            templates: Templates::new(jinja::transformers(), sources).map_err(template_error)?,
            has_tool_template: tool_use.is_some(),
            named: vec![],
            special_tokens: tokenizer.map(Tokenizer::named_tokens).unwrap_or_default(),
        })
    }

    /// Gives a template another spelling of a special token, such as `eos_token`.
    pub(crate) fn set_special(&mut self, name: &str, token: &str) {
        self.special_tokens.insert(name.to_owned(), json!(token));
    }

    /// From the files of a directory; `None` if there is no template.
    pub fn from_dir(dir: &Path, tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        Self::from_files(dir, &TextFiles::read(dir)?, tokenizer)
    }

    /// From the files of the directory `dir`; `None` if there is no template.
    pub(crate) fn from_files(dir: &Path, files: &TextFiles, tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        Self::from_named(dir, files.templates(dir)?, tokenizer)
    }

    /// From the metadata of a GGUF file, which has named templates under keys of their own; `None` if it has none.
    pub fn from_gguf(file: &GgufFile, tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        const KEY: &str = "tokenizer.chat_template";
        let mut named = Vec::new();
        if file.get(KEY).is_some() {
            named.push(("default".to_owned(), file.str(KEY)?.to_owned()));
        }
        for name in file.keys_under(&format!("{KEY}.")) {
            named.push((name.to_owned(), file.str(&format!("{KEY}.{name}"))?.to_owned()));
        }
        Self::from_named(file.path(), named, tokenizer)
    }

    /// Templates by name: "default", "tool_use" for conversations with tools, and others that are only kept.
    fn from_named(path: &Path, named: Vec<(String, String)>, tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        if named.is_empty() {
            return Ok(None);
        }
        let find = |name: &str| named.iter().find(|(n, _)| n == name).map(|(_, source)| source.as_str());
        let Some(default) = find("default") else {
            return Err(Error::missing_key(path, "chat_template: name = \"default\""));
        };
        let template = Self::compile(default, find("tool_use"), tokenizer)?;
        Ok(Some(Self { named, ..template }))
    }

    /// What `chat_template` of `tokenizer_config.json` has to be: the template, or a list of named ones.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self.named.len() {
            0 | 1 => json!(self.source),
            _ => self.named.iter().map(|(name, source)| json!({"name": name, "template": source})).collect(),
        }
    }

    /// The (default) template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. `tools` are function definitions; `extra` are further variables that the
    /// template knows (`enable_thinking`, ...).
    ///
    /// Values are given as transformers gives them: a field that is `null` is absent. Where the template fails with them, or
    /// leaves out a text or a call, it is given them in the other forms that templates ask for.
    ///
    /// # Errors
    /// What the template refuses or cannot use; a template without an end; a last message that cannot go on.
    pub fn render(
        &self,
        messages: &[Message],
        ending: Ending,
        tools: Option<&Value>,
        extra: &Map<String, Value>,
    ) -> Result<String> {
        let Some((last, before)) = messages.split_last().filter(|_| ending == Ending::Continue) else {
            if ending == Ending::Continue {
                return Err(Error::ChatTemplate("there is no message that could go on".into()));
            }
            return self.render_text(messages, ending == Ending::Answer, tools, extra);
        };
        let mut marked = last.clone();
        if !marked.append(MARK) {
            let what = format!("the last message ({}) has no text that could go on", last.role());
            return Err(Error::ChatTemplate(what));
        }
        let text = self.render_text(&[before, &[marked]].concat(), false, tools, extra)?;
        match text.rfind(MARK.trim_end()) {
            // White space at the end of the message is what the template cuts off.
            Some(at) if text[at..].starts_with(MARK) => Ok(text[..at].to_owned()),
            Some(at) => Ok(text[..at].trim_end().to_owned()),
            None => Err(Error::ChatTemplate("the template leaves out the last message, so it cannot go on".into())),
        }
    }

    fn render_text(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tools: Option<&Value>,
        extra: &Map<String, Value>,
    ) -> Result<String> {
        let name = if tools.is_some() && self.has_tool_template { WITH_TOOLS } else { DEFAULT };
        let mut variables = self.special_tokens.clone();
        variables.extend(extra.clone());
        variables.insert("tools".into(), tools.cloned().unwrap_or_default());
        variables.entry("documents").or_insert(Value::Null);
        variables.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        let conversation = Arc::new(Conversation::new(messages, self.source.contains("developer")));
        let variables = Arc::new(variables);
        let bytes = conversation.bytes();
        let render = |conversation: &Arc<Conversation>, form| {
            let (messages, variables) = (Arc::clone(conversation), Arc::clone(&variables));
            let values = move || {
                let given = variables.iter().map(|(name, value)| (name.clone(), JinjaValue::from(Serde(value))));
                JinjaValue::from_pairs(given.chain([("messages".to_owned(), messages.values(form))]))
            };
            self.templates.render(name, bytes, values)
        };
        let (mut incomplete, mut refusal): (Option<String>, _) = (None, None);
        let mut reads_texts = None;
        let begun = Instant::now();
        for form in conversation.forms() {
            if let Some(text) = incomplete.as_ref().filter(|_| form.lists_texts()) {
                let reads = || {
                    let of_words = render(&Arc::new(conversation.with_words()), ValueForm::default());
                    of_words.is_ok_and(|of_words| conversation.reads_missing_texts(text, &of_words))
                };
                if *reads_texts.get_or_insert_with(reads) {
                    break;
                }
            }
            match render(&conversation, form) {
                Ok(text) if conversation.is_mistaken(form, &text) => {
                    let what = "the template needs content, or arguments of a call, of another form than they have";
                    refusal.get_or_insert_with(|| TemplateError::Refused(what.to_owned()));
                }
                Ok(text) if conversation.is_whole(&text) => return Ok(text),
                Ok(text) => drop(incomplete.get_or_insert(text)),
                Err(excess @ TemplateError::Excess(_)) => return Err(template_error(excess)),
                Err(error) => drop(refusal.get_or_insert(error)),
            }
            if begun.elapsed() > jinja::TIME_LIMIT {
                let what = format!("the forms of its values take longer than {} s", jinja::TIME_LIMIT.as_secs());
                return Err(template_error(TemplateError::Excess(what)));
            }
        }
        match (incomplete, refusal) {
            // What it leaves out in every form it leaves out on purpose.
            (Some(text), _) => Ok(text),
            (None, Some(error)) => Err(template_error(error)),
            (None, None) => unreachable!("a form was refused, or there is a text"),
        }
    }
}

fn template_error(error: TemplateError) -> Error {
    Error::ChatTemplate(error.to_string())
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
        ChatTemplate::new(source, None)?.render(&messages, Ending::Answer, None, &extra)
    }

    #[test]
    fn prints_as_python_does() {
        let got =
            render("{{ flag }} {{ number }} {{ list }} {{ none }} {{ nothing }}|{{ messages[0] | tojson }}").unwrap();
        assert_eq!(got, r#"True 1e-05 ['a', None, 1.0] None |{"role": "user", "content": "<é> \"q\""}"#);
    }

    /// Values by jinja2 3.1.
    #[test]
    fn takes_texts_apart_as_python_does() {
        for (source, wanted) in [
            ("{{ 'a b c'.rsplit(' ', 1) }}{{ 'a'.rsplit('x') }}", "['a b', 'c']['a']"),
            ("{{ 'a=b=c'.partition('=') | join('|') }} {{ 'a=b=c'.rpartition('=') | join('|') }}", "a|=|b=c a=b|=|c"),
            ("{{ 'x'.partition('=') | join('|') }} {{ 'x'.rpartition('=') | join('|') }}", "x|| ||x"),
            (
                "{{ 'prefix'.removeprefix('pre') }}{{ 'file.py'.removesuffix('.py') }}{{ 'a'.removesuffix('b') }}",
                "fixfilea",
            ),
            ("{{ '<b a=\"1\">\\'&' | e }}", "&lt;b a=&#34;1&#34;&gt;&#39;&amp;"),
        ] {
            assert_eq!(render(source).unwrap(), wanted, "{source}");
        }
        assert!(render("{{ 'a'.partition('') }}").unwrap_err().to_string().contains("partition"));
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
}
