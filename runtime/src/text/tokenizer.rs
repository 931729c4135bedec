//! One tokenizer, whichever file it came from.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{LazyLock, OnceLock};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::DecoderWrapper;

use super::folder::TextFiles;
use super::special_tokens;
use super::token_count::MinTokenCount;
use crate::{Error, Result, caught};

/// Turns text into token ids and back, exactly as Hugging Face's `tokenizer.json` defines it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer_config.json` and what other files say instead, without the chat template.
    config: Map<String, Value>,
    special: BTreeSet<u32>,
    vocab_size: usize,
    fingerprint: OnceLock<String>,
    min_count: OnceLock<Option<MinTokenCount>>,
}

impl Tokenizer {
    /// From a directory with `tokenizer.json` and, usually, `tokenizer_config.json`.
    ///
    /// # Errors
    /// Files that are missing, malformed, or contradict each other.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_files(dir, &TextFiles::read(dir)?)
    }

    /// From the files of the directory `dir`.
    pub(crate) fn from_files(dir: &Path, files: &TextFiles) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let missing = || Error::Io { path: path.clone(), source: std::io::ErrorKind::NotFound.into() };
        let bytes = files.bytes("tokenizer.json").ok_or_else(missing)?;
        let made = caught(|| {
            let inner = tokenizers::Tokenizer::from_bytes(bytes);
            let mut inner = inner.map_err(|e| Error::bad_file(&path, e.to_string()))?;
            let config = special_tokens::apply(dir, files, &mut inner)?;
            let tokenizer = Self::new(inner, config);
            tokenizer.probe();
            Ok(tokenizer)
        });
        made.map_err(|panic| Error::bad_file(&path, format!("the tokenizers library fails on it: {panic}")))?
    }

    /// Encodes what some files make the library panic at: short texts, and pieces alone and together.
    fn probe(&self) {
        for text in ["", " ", "a", "  \n\u{e9}1"] {
            let _ = self.inner.encode_fast(text, true).map(|encoding| self.inner.decode(encoding.get_ids(), true));
        }
        let size = u32::try_from(self.vocab_size).unwrap_or(u32::MAX);
        for id in (0..size.min(512)).chain(size.saturating_sub(64)..size) {
            for ids in [&[id][..], &[id, id]] {
                let _ = self.inner.decode(ids, false);
            }
        }
    }

    /// From the parsed contents of the two files.
    pub(super) fn from_json(tokenizer: &Value, config: Map<String, Value>) -> Result<Self> {
        let made = caught(|| {
            let inner = tokenizers::Tokenizer::from_bytes(tokenizer.to_string());
            inner.map(|inner| Self::new(inner, config)).map_err(|e| Error::Tokenizer(e.to_string()))
        });
        made.map_err(|panic| Error::Tokenizer(format!("the tokenizers library fails on it: {panic}")))?
    }

    fn new(mut inner: tokenizers::Tokenizer, mut config: Map<String, Value>) -> Self {
        config.remove("chat_template");
        // A tokenizer file may carry the cut-off and padding of its training; a text is never cut here.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        Self {
            special: added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect(),
            vocab_size: inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1),
            inner,
            config,
            fingerprint: OnceLock::new(),
            min_count: OnceLock::new(),
        }
    }

    /// Token ids of a text. Special tokens written in the text become their ids; `add_special` adds those
    /// that the tokenizer puts around every text (such as a first `<s>`).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = caught(|| self.inner.encode_fast(text, add_special)).map_err(Error::Tokenizer)?;
        Ok(encoding.map_err(|e| Error::Tokenizer(e.to_string()))?.get_ids().to_vec())
    }

    /// Token ids of a text that goes on after another: not those that it has when it begins a text, which some vocabularies
    /// put a space before.
    ///
    /// # Errors
    /// What cannot be encoded.
    pub fn encode_inside(&self, text: &str) -> Result<Vec<u32>> {
        // A line end is no part of a longer token in the vocabularies that begin a text with a space.
        let before = self.encode("\n", false)?;
        let both = self.encode(&format!("\n{text}"), false)?;
        match both.strip_prefix(before.as_slice()) {
            Some(inside) => Ok(inside.to_vec()),
            None => self.encode(text, false),
        }
    }

    /// Those of a text's tokens that are not put around it.
    ///
    /// # Errors
    /// What cannot be encoded.
    pub fn own_tokens(&self, text: &str, ids: &[u32]) -> Result<std::ops::Range<usize>> {
        let own = self.encode(text, false)?;
        let first = if own.is_empty() { 0 } else { ids.windows(own.len()).position(|part| part == own).unwrap_or(0) };
        Ok(first..first + own.len())
    }

    /// Whether a text has more than `most` tokens for sure: of a text that is far longer this is known long before
    /// [`Self::encode`] would be through. Never true of another one.
    pub fn surely_exceeds(&self, text: &str, most: usize) -> bool {
        // What is not much longer is left to `encode`.
        text.len() / 4 > most && self.exceeds(text, most)
    }

    /// [`Self::surely_exceeds`] of a text of any length.
    pub(super) fn exceeds(&self, text: &str, most: usize) -> bool {
        let min_count = self.min_count.get_or_init(|| MinTokenCount::new(&self.inner)).as_ref();
        min_count.is_some_and(|min_count| min_count.exceeds(&self.inner, text, most))
    }

    /// Text of token ids; bytes that are not UTF-8 become U+FFFD. Ids beyond the vocabulary, which models
    /// with a padded embedding can produce, are no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = caught(|| self.inner.decode(ids, skip_special)).map_err(Error::Tokenizer)?;
        text.map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Spelling of an id in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Bytes that a token adds inside a text; `None` for an id beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let piece = self.token(id)?;
        if self.is_special(id) {
            Some(piece.into_bytes())
        } else if self.is_byte_level() {
            Some(piece_bytes(&piece))
        } else if self.is_byte_piece(id) {
            u8::from_str_radix(&piece[3..5], 16).ok().map(|byte| vec![byte])
        } else {
            // SentencePiece spells a space like this.
            Some(piece.replace('\u{2581}', " ").into_bytes())
        }
    }

    /// Whether the token was added to the vocabulary, so that text has other tokens only where its spelling stands.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().contains_key(&id)
    }

    /// Makes a token the end-of-text token.
    pub(crate) fn set_eos(&mut self, token: &str) {
        self.config.insert("eos_token".to_owned(), Value::from(token));
    }

    /// Whether `decode` leaves the id out when it skips special tokens.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The end-of-text token of the configuration.
    pub fn eos(&self) -> Option<u32> {
        self.named("eos_token").and_then(|token| self.id(token))
    }

    /// The beginning-of-text token of the configuration.
    pub fn bos(&self) -> Option<u32> {
        self.named("bos_token").and_then(|token| self.id(token))
    }

    fn named(&self, key: &str) -> Option<&str> {
        spelling(self.config.get(key)?)
    }

    /// Every named special token with its spelling, for chat templates.
    pub fn named_tokens(&self) -> Map<String, Value> {
        special_tokens::spellings(&self.config)
    }

    /// Sum (SHA-256, hexadecimal) over vocabulary, merges, added tokens and normaliser: equal for two
    /// tokenizers that map ids to the same pieces in the same way.
    pub fn fingerprint(&self) -> &str {
        self.fingerprint.get_or_init(|| fingerprint(&self.inner))
    }

    /// Whether every token is a run of bytes, so that decoding is joining them.
    pub(super) fn is_byte_level(&self) -> bool {
        matches!(self.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }

    /// Whether the token stands for one raw byte of a text (`<0x0A>`), so that its neighbours decide how it decodes.
    pub(super) fn is_byte_piece(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template, or a list of named ones, if given) so
    /// that transformers loads the same tokenizer from `dir`. For a tokenizer that is in no such files: see [`TextFiles`].
    pub fn save_files(&self, dir: &Path, chat_template: Option<&Value>) -> Result<()> {
        let path = dir.join("tokenizer.json");
        let text = self.inner.to_string(true).map_err(|e| Error::Tokenizer(e.to_string()))?;
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        let mut config = self.config.clone();
        if let Some(template) = chat_template {
            config.insert("chat_template".into(), template.clone());
        }
        let path = dir.join("tokenizer_config.json");
        let text = format!("{:#}\n", Value::Object(config));
        std::fs::write(&path, text).map_err(Error::io(&path))
    }
}

/// A token's text: plain, or in the `content` of an object.
fn spelling(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn fingerprint(tokenizer: &tokenizers::Tokenizer) -> String {
    let mut sum = Sha256::new();
    let mut field = |bytes: &[u8]| {
        sum.update((bytes.len() as u64).to_le_bytes());
        sum.update(bytes);
    };
    let mut vocab: Vec<_> = tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    vocab.sort_unstable();
    for (id, token) in &vocab {
        field(&id.to_le_bytes());
        field(token.as_bytes());
    }
    let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    added.sort_unstable_by_key(|(id, _)| *id);
    for (id, token) in &added {
        field(&id.to_le_bytes());
        field(&[u8::from(token.special)]);
    }
    let model = serde_json::to_value(tokenizer.get_model()).unwrap_or_default();
    for key in ["type", "merges", "scores"] {
        field(model.get(key).map(Value::to_string).unwrap_or_default().as_bytes());
    }
    let normalizer = tokenizer.get_normalizer().and_then(|n| serde_json::to_string(n).ok());
    field(normalizer.unwrap_or_default().as_bytes());
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of a byte-level piece, which spells every byte as a printable character: printable Latin-1 stands
/// for itself, the other bytes for U+0100 and up in order. A piece with a character outside this alphabet
/// (an added token) is its own text.
pub(super) fn piece_bytes(piece: &str) -> Vec<u8> {
    static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
        let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let (itself, other): (Vec<u8>, Vec<u8>) = (0..=255).partition(printable);
        let stand_ins = ('\u{100}'..).zip(other);
        itself.into_iter().map(|byte| (char::from(byte), byte)).chain(stand_ins).collect()
    });
    let bytes: Option<Vec<u8>> = piece.chars().map(|c| BYTE_OF.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
}
