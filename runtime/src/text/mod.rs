//! Text and token ids: tokenizers, incremental decoding, chat templates.

mod chat;
mod cover;
mod detokenizer;
mod gguf;
mod python;
mod strftime;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use detokenizer::Detokenizer;
pub use tokenizer::Tokenizer;
