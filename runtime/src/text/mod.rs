//! Text and token ids: tokenizers, incremental decoding, chat templates.

mod chat;
mod detokenizer;
mod folder;
mod gguf;
mod jinja;
mod message;
mod pre_tokenizer;
mod python;
mod special_tokens;
mod strftime;
mod token_count;
mod tokenizer;
mod value_forms;

pub use chat::{ChatTemplate, Ending};
pub use detokenizer::Detokenizer;
pub use folder::TextFiles;
pub use jinja::{TemplateError, Templates};
pub use message::Message;
pub use tokenizer::Tokenizer;
