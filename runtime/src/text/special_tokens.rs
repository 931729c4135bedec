//! Special and added tokens that the files beside `tokenizer.json` declare, by the rules of transformers 5.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::folder::TextFiles;
use crate::{Error, Result, read};

/// transformers' names of special tokens, in the order in which it adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// What a tokenizer class has where its configuration has none.
const CLASS_DEFAULTS: [(&str, &[&str]); 2] = [
    ("Qwen2Tokenizer", &["eos_token", "unk_token", "pad_token"]),
    ("GPT2Tokenizer", &["bos_token", "eos_token", "unk_token"]),
];
/// The token of all those defaults.
const DEFAULT_TOKEN: &str = "<|endoftext|>";

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// Adds to `inner` what the files of the folder `dir` declare, and makes special what they declare so. Returns
/// `tokenizer_config.json` with the values of `special_tokens_map.json` in their place.
///
/// # Errors
/// A file that is malformed; a token that `inner` has under another id; a key that changes how text is read and is not
/// implemented.
pub(super) fn apply(dir: &Path, files: &TextFiles, inner: &mut tokenizers::Tokenizer) -> Result<Map<String, Value>> {
    let mut config = files.object(dir, CONFIG)?;
    if let Some(value @ Value::Bool(true)) = config.get("split_special_tokens") {
        let want = "special tokens in a text are always read as such; set it to false";
        return Err(Error::bad_key(&dir.join(CONFIG), "split_special_tokens", value, want));
    }
    if let Some(listed) = config.get("added_tokens_decoder") {
        let origin = dir.join(CONFIG);
        add_listed(&origin, decoder(&origin, listed)?, inner)?;
    } else {
        // transformers does not read these where the list is.
        config.extend(files.object(dir, MAP)?);
        let origin = dir.join(ADDED);
        let special: Vec<String> = named(&config).into_iter().map(|(_, token)| token.content).collect();
        add_listed(&origin, encoder(&origin, &files.object(dir, ADDED)?, &special)?, inner)?;
    }
    if inner.token_to_id(DEFAULT_TOKEN).is_some() {
        for name in class_defaults(dir, &config)? {
            config.entry(*name).or_insert_with(|| json!(DEFAULT_TOKEN));
        }
    }
    for (_, token) in named(&config) {
        if !inner.get_added_vocabulary().get_vocab().contains_key(&token.content) {
            add(inner, token)?;
        }
    }
    Ok(config)
}

/// Adds tokens under the ids that the file `origin` gives them.
fn add_listed(origin: &Path, listed: Vec<(u32, AddedToken)>, inner: &mut tokenizers::Tokenizer) -> Result<()> {
    for (id, token) in listed {
        let content = token.content.clone();
        let refuse = |want: String| Error::bad_key(origin, "added tokens", format!("{id} = {content:?}"), want);
        match inner.token_to_id(&content) {
            Some(known) if known != id => return Err(refuse(format!("tokenizer.json has it as {known}"))),
            _ => add(inner, token)?,
        }
        if inner.token_to_id(&content) != Some(id) {
            return Err(refuse("ids must continue those of tokenizer.json".to_owned()));
        }
    }
    Ok(())
}

/// The names of the tokens that the tokenizer's class has by default.
fn class_defaults(dir: &Path, config: &Map<String, Value>) -> Result<&'static [&'static str]> {
    let class = match config.get("tokenizer_class").and_then(Value::as_str) {
        Some(class) => class.trim_end_matches("Fast").to_owned(),
        None => class_of_model(dir)?,
    };
    Ok(CLASS_DEFAULTS.iter().find(|(known, _)| *known == class).map_or(&[], |(_, names)| names))
}

/// The class that transformers takes for a model whose tokenizer names none.
fn class_of_model(dir: &Path) -> Result<String> {
    let path = dir.join("config.json");
    let Some(config) = read::if_there(read::json::<Value>(&path))? else { return Ok(String::new()) };
    Ok(match config.get("model_type").and_then(Value::as_str) {
        Some("qwen2" | "qwen3") => "Qwen2Tokenizer".to_owned(),
        _ => String::new(),
    })
}

/// `added_tokens_decoder`: id to token.
fn decoder(path: &Path, value: &Value) -> Result<Vec<(u32, AddedToken)>> {
    let bad = |entry: &Value| Error::bad_key(path, "added_tokens_decoder", entry, "an id with its content is needed");
    let entries = value.as_object().ok_or_else(|| bad(value))?;
    let one = |(id, entry): (&String, &Value)| {
        let id = id.parse().map_err(|_| bad(entry))?;
        let content = entry.get("content").and_then(Value::as_str).ok_or_else(|| bad(entry))?;
        let special = entry.get("special").and_then(Value::as_bool).unwrap_or(false);
        Ok((id, token(content, entry, special)))
    };
    let mut listed = entries.iter().map(one).collect::<Result<Vec<_>>>()?;
    listed.sort_by_key(|(id, _)| *id);
    Ok(listed)
}

/// `added_tokens.json`: token to id.
fn encoder(path: &Path, map: &Map<String, Value>, special: &[String]) -> Result<Vec<(u32, AddedToken)>> {
    let one = |(content, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| Error::bad_key(path, content, &map[content], "the id of the token is needed"))?;
        Ok((id, token(content, &Value::Null, special.contains(content))))
    };
    let mut listed = map.iter().map(one).collect::<Result<Vec<_>>>()?;
    listed.sort_by_key(|(id, _)| *id);
    Ok(listed)
}

/// Special tokens with their names in transformers' order: the common ones, those of the model, and nameless ones.
fn named(config: &Map<String, Value>) -> Vec<(String, AddedToken)> {
    let of_key = |(key, value): (&String, &Value)| Some((key.clone(), special(value)?));
    let usual = NAMED.iter().filter_map(|key| Some(((*key).to_owned(), special(config.get(*key)?)?)));
    let of_model = config.iter().filter(|(key, _)| is_model_specific(key)).filter_map(of_key);
    let extra = config.get("extra_special_tokens").filter(|extra| !is_empty(extra));
    let extra = extra.or_else(|| config.get("additional_special_tokens"));
    let in_object = extra.and_then(Value::as_object).into_iter().flatten().filter_map(of_key);
    let in_list = extra.and_then(Value::as_array).into_iter().flatten();
    let in_list = in_list.filter_map(|value| Some((String::new(), special(value)?)));
    usual.chain(of_model).chain(in_object).chain(in_list).collect()
}

/// Every named special token with its spelling.
pub(super) fn spellings(config: &Map<String, Value>) -> Map<String, Value> {
    let tokens = named(config).into_iter().filter(|(name, _)| !name.is_empty());
    tokens.map(|(name, token)| (name, json!(token.content))).collect()
}

fn is_model_specific(key: &str) -> bool {
    key.ends_with("_token") && !key.starts_with("add_") && !NAMED.contains(&key)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A special token: its text, or an object with its `content`.
fn special(value: &Value) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    Some(token(content, value, true))
}

fn token(content: &str, entry: &Value, special: bool) -> AddedToken {
    let flag = |key: &str| entry.get(key).and_then(Value::as_bool);
    AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special))
}

fn add(inner: &mut tokenizers::Tokenizer, token: AddedToken) -> Result<()> {
    let special = token.special;
    let added = if special { inner.add_special_tokens([token]) } else { inner.add_tokens([token]) };
    added.map(drop).map_err(|e| Error::Tokenizer(e.to_string()))
}
