//! With which token a chat template ends an answer, and whether that ends a completion of the model.
//!
//! Base models often carry the chat template of their instruction-tuned sibling and name another end-of-sequence token, so
//! that their answers run on behind the end of the turn.

use runtime::files::ModelFiles;

use crate::Error;
use crate::prompt::render;
use data::Message;

/// An answer whose end is looked for.
const ANSWER: &str = "Hello.";

/// The token that ends an answer, where it is none of the model's end-of-sequence tokens.
pub fn missing_eos(files: &ModelFiles) -> Option<String> {
    let (tokenizer, template) = (files.tokenizer.as_ref()?, files.chat_template.as_ref()?);
    let turns = [Message::new("user", "Hi"), Message::new("assistant", ANSWER)];
    let text = render(template, &turns, false).ok()?;
    let (_, end) = text.rsplit_once(ANSWER)?;
    let ids = tokenizer.encode(end, false).ok()?;
    if ids.iter().any(|id| files.config.eos_token_ids.contains(id)) {
        return None;
    }
    ids.into_iter().find(|&id| tokenizer.is_special(id) || tokenizer.is_added(id)).and_then(|id| tokenizer.token(id))
}

/// The error of a model whose answers end with `token`, or the text of a note about it; `hint` is what to set.
pub fn error(files: &ModelFiles, token: String, hint: String) -> Error {
    let spell = |id: &u32| files.tokenizer.as_ref().and_then(|t| t.token(*id)).unwrap_or_else(|| id.to_string());
    let eos: Vec<String> = files.config.eos_token_ids.iter().map(spell).collect();
    let eos = if eos.is_empty() { "none".to_owned() } else { eos.join(", ") };
    Error::TurnEnd { model: files.path.clone(), token, eos, hint }
}
