//! Text and token ids: tokenizers, incremental decoding, chat templates.

mod chat;
mod cover;
mod declared;
mod detokenizer;
mod folder;
mod forms;
mod gguf;
mod jinja;
mod message;
mod pre_tokenizer;
mod python;
mod strftime;
mod tokenizer;

pub use chat::{ChatTemplate, Ending};
pub use detokenizer::Detokenizer;
pub use folder::TextFiles;
pub use jinja::{TemplateError, Templates};
pub use message::Message;
pub use tokenizer::Tokenizer;
