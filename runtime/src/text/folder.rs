//! The files of a model's folder that say how text becomes tokens: a tokenizer's and the chat templates'.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result, read};

/// What transformers reads, or may read, beside the weights. `vocab.json`, `merges.txt` and `tokenizer.model` are for
/// tokenizers of its own that have no `tokenizer.json`.
const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];
/// Templates besides the default one, as `NAME.jinja`.
const TEMPLATES: &str = "additional_chat_templates";

/// Those files as they are, so that a checkpoint carries every key of its source.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// By path below the folder.
    files: BTreeMap<String, Vec<u8>>,
}

impl TextFiles {
    /// Whether `name` is one of them, for what is taken from a repository.
    pub(crate) fn includes(name: &str) -> bool {
        FILES.contains(&name) || template_name(name).is_some()
    }

    /// Reads those that the folder `dir` has.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut take = |name: String| -> Result<()> {
            let path = dir.join(&name);
            if let Some(bytes) = read::if_there(read::bytes(&path, read::TOKENIZER))? {
                files.insert(name, bytes);
            }
            Ok(())
        };
        FILES.into_iter().try_for_each(|name| take(name.to_owned()))?;
        let templates = dir.join(TEMPLATES);
        if templates.is_dir() {
            for entry in std::fs::read_dir(&templates).map_err(Error::io(&templates))? {
                let name = entry.map_err(Error::io(&templates))?.file_name();
                let name = format!("{TEMPLATES}/{}", name.to_string_lossy());
                if template_name(&name).is_some() {
                    take(name)?;
                }
            }
        }
        Ok(Self { files })
    }

    /// Whether there is a tokenizer that is read here.
    pub(crate) fn has_tokenizer(&self) -> bool {
        self.files.contains_key("tokenizer.json")
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Writes them into the folder `dir`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
            }
            std::fs::write(&path, bytes).map_err(Error::io(&path))?;
        }
        Ok(())
    }

    /// A file's bytes.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// A file's JSON object; empty where there is no such file.
    pub(super) fn object(&self, dir: &Path, name: &str) -> Result<Map<String, Value>> {
        let Some(bytes) = self.bytes(name) else { return Ok(Map::new()) };
        serde_json::from_slice(bytes).map_err(|e| Error::bad_file(&dir.join(name), e.to_string()))
    }

    /// The chat templates by name, as transformers finds them: those in files of their own instead of those in
    /// `tokenizer_config.json`, and `chat_template.json` last. Empty where there are none.
    pub(super) fn templates(&self, dir: &Path) -> Result<Vec<(String, String)>> {
        let text = |name: &str, bytes: &[u8]| {
            let text = std::str::from_utf8(bytes);
            text.map(str::to_owned)
                .map_err(|e| Error::bad_file(&dir.join(name), format!("the template is not UTF-8: {e}")))
        };
        let mut own = Vec::new();
        if let Some(bytes) = self.bytes("chat_template.jinja") {
            own.push(("default".to_owned(), text("chat_template.jinja", bytes)?));
        }
        for (path, bytes) in &self.files {
            if let Some(name) = template_name(path) {
                own.push((name.to_owned(), text(path, bytes)?));
            }
        }
        if !own.is_empty() {
            return Ok(own);
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let config = self.object(dir, name)?;
            if let Some(value) = config.get("chat_template").filter(|value| !value.is_null()) {
                return named(&dir.join(name), value);
            }
        }
        Ok(vec![])
    }
}

/// `NAME` of `additional_chat_templates/NAME.jinja`.
fn template_name(path: &str) -> Option<&str> {
    path.strip_prefix(TEMPLATES)?.strip_prefix('/')?.strip_suffix(".jinja").filter(|name| !name.contains('/'))
}

/// One template, or a list or object of named ones.
fn named(path: &Path, value: &Value) -> Result<Vec<(String, String)>> {
    let bad = || {
        let want = "a template, or a list of objects with a name and a template, is needed";
        Error::bad_key(path, "chat_template", format_args!("{value:.60}"), want)
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned).ok_or_else(bad);
    match value {
        Value::String(source) => Ok(vec![("default".to_owned(), source.clone())]),
        Value::Array(list) => list.iter().map(|one| Ok((text(one.get("name"))?, text(one.get("template"))?))).collect(),
        Value::Object(map) => map.iter().map(|(name, source)| Ok((name.clone(), text(Some(source))?))).collect(),
        _ => Err(bad()),
    }
}
