//! Tokenizers from GGUF metadata, as the `tokenizer.json` that the model's own repository would hold.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::pre_tokenizer::{NAMES, PreTokenizer};
use super::tokenizer::Tokenizer;
use crate::weights::gguf::GgufFile;
use crate::{Error, Result};

// `tokenizer.ggml.token_type`
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

/// The vocabulary in id order; unused ids (padding of the embedding) are left out.
struct Vocab<'a> {
    tokens: Vec<(u32, &'a str, u64)>,
}

impl Tokenizer {
    /// From the metadata of a GGUF file: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`).
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let vocab = Vocab::read(file)?;
        let tokenizer = match file.str("tokenizer.ggml.model")? {
            "gpt2" => byte_level(file, &vocab)?,
            "llama" => sentencepiece(file, &vocab)?,
            other => return Err(Error::unsupported(file.path(), "tokenizer.ggml.model", other, "gpt2, llama")),
        };
        Self::from_json(&tokenizer, config(file, &vocab)?)
    }
}

impl<'a> Vocab<'a> {
    fn read(file: &'a GgufFile) -> Result<Self> {
        let tokens = file.array("tokenizer.ggml.tokens")?;
        let types = file.array("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(Error::bad_file(
                file.path(),
                format!("{} tokens, but {} token types", tokens.len(), types.len()),
            ));
        }
        let mut seen = HashMap::with_capacity(tokens.len());
        let mut vocab = Vec::with_capacity(tokens.len());
        for (id, (token, kind)) in (0u32..).zip(tokens.iter().zip(types)) {
            let (Some(token), Some(kind)) = (token.as_str(), kind.as_u64()) else {
                return Err(Error::bad_file(file.path(), format!("token {id} or its type is malformed")));
            };
            if kind == UNUSED {
                continue;
            }
            if let Some(first) = seen.insert(token, id) {
                return Err(Error::bad_file(file.path(), format!("tokens {first} and {id} are both {token:?}")));
            }
            vocab.push((id, token, kind));
        }
        Ok(Self { tokens: vocab })
    }

    fn json(&self) -> Map<String, Value> {
        self.tokens.iter().map(|&(id, token, _)| (token.to_owned(), json!(id))).collect()
    }

    fn token(&self, id: u32) -> Option<&'a str> {
        let at = self.tokens.binary_search_by_key(&id, |t| t.0).ok()?;
        Some(self.tokens[at].1)
    }

    /// Control tokens are special; user-defined ones are only never split.
    fn added_tokens(&self) -> Vec<Value> {
        let added = |kind| matches!(kind, UNKNOWN | CONTROL | USER_DEFINED);
        let entry = |&(id, content, kind): &(u32, &str, u64)| {
            json!({
                "id": id, "content": content, "special": kind != USER_DEFINED,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        self.tokens.iter().filter(|t| added(t.2)).map(entry).collect()
    }

    /// The token that a metadata key names by id.
    fn named(&self, file: &GgufFile, key: &str) -> Result<Option<(u32, &'a str)>> {
        if file.get(key).is_none() {
            return Ok(None);
        }
        let id = file.usize(key)?;
        match u32::try_from(id).ok().and_then(|id| Some((id, self.token(id)?))) {
            Some(found) => Ok(Some(found)),
            None => Err(Error::bad_key(file.path(), key, id, "the id of a token is needed")),
        }
    }
}

/// `tokenizer_config.json`: what transformers needs beside the tokenizer itself.
fn config(file: &GgufFile, vocab: &Vocab) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert(
        "model_max_length".into(),
        json!(file.usize(&format!("{}.context_length", file.str("general.architecture")?))?),
    );
    for (key, name) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some((_, token)) = vocab.named(file, &format!("tokenizer.ggml.{name}_token_id"))? {
            config.insert(key.into(), json!(token));
        }
    }
    Ok(config)
}

fn pre_tokenizer(file: &GgufFile) -> Result<PreTokenizer> {
    let name = file.str("tokenizer.ggml.pre")?;
    PreTokenizer::of(name).ok_or_else(|| Error::unsupported(file.path(), "tokenizer.ggml.pre", name, NAMES))
}

fn byte_level(file: &GgufFile, vocab: &Vocab) -> Result<Value> {
    let pre = pre_tokenizer(file)?;
    let mut merges = Vec::new();
    for (rank, merge) in file.array("tokenizer.ggml.merges")?.iter().enumerate() {
        // Byte-level pieces spell a space as U+0120, so the one real space separates them.
        let pair = merge.as_str().and_then(|m| m.split_once(' '));
        let Some((left, right)) = pair.filter(|(l, r)| !l.is_empty() && !r.is_empty() && !r.contains(' ')) else {
            return Err(Error::bad_file(file.path(), format!("merge {rank} is {merge:?}, not two pieces")));
        };
        merges.push(json!([left, right]));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocab.added_tokens(),
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.steps},
        "post_processor": post_processor(file, vocab, pre.add_bos)?,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocab.json(), "merges": merges,
        },
    }))
}

/// SentencePiece's BPE as transformers converts it: spaces become U+2581, unknown characters bytes.
fn sentencepiece(file: &GgufFile, vocab: &Vocab) -> Result<Value> {
    let Some((_, unknown)) = vocab
        .named(file, "tokenizer.ggml.unknown_token_id")?
        .or_else(|| vocab.tokens.iter().find(|t| t.2 == UNKNOWN).map(|&(id, token, _)| (id, token)))
    else {
        return Err(Error::missing_key(file.path(), "tokenizer.ggml.unknown_token_id"));
    };
    let byte_fallback = vocab.tokens.iter().filter(|t| t.2 == BYTE).count() == 256;
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let (mut before, mut after) = (vec![space], Vec::new());
    if file.bool_or("tokenizer.ggml.add_space_prefix", true)? {
        before.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        after.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    decoders.append(&mut after);
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocab.added_tokens(),
        "normalizer": {"type": "Sequence", "normalizers": before},
        "pre_tokenizer": null,
        "post_processor": post_processor(file, vocab, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": byte_fallback,
            "ignore_merges": false, "vocab": vocab.json(), "merges": merges_by_score(file, vocab)?,
        },
    }))
}

/// Merges in the order of their result's score, best first; this is how transformers converts such a
/// vocabulary, ties included (longer left piece, then longer right piece).
fn merges_by_score(file: &GgufFile, vocab: &Vocab) -> Result<Vec<Value>> {
    let scores = file.array("tokenizer.ggml.scores")?;
    let normal = |t: &&(u32, &str, u64)| t.2 == NORMAL;
    let ids: HashMap<&str, u32> = vocab.tokens.iter().filter(normal).map(|t| (t.1, t.0)).collect();
    let mut merges = Vec::new();
    for &(id, piece, _) in vocab.tokens.iter().filter(normal) {
        let Some(score) = scores.get(id as usize).and_then(|s| s.as_f64()).filter(|s| s.is_finite()) else {
            return Err(Error::bad_file(file.path(), format!("token {id} has no score")));
        };
        let mut local = Vec::new();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                local.push((l, r, score, left, right));
            }
        }
        local.sort_unstable_by_key(|m| (m.0, m.1));
        merges.append(&mut local);
    }
    merges.sort_by(|a, b| {
        let length = |piece: &str| piece.chars().count();
        b.2.total_cmp(&a.2).then(length(b.3).cmp(&length(a.3))).then(length(b.4).cmp(&length(a.4)))
    });
    Ok(merges.iter().map(|m| json!([m.3, m.4])).collect())
}

/// Tokens put around every text.
fn post_processor(file: &GgufFile, vocab: &Vocab, add_bos: bool) -> Result<Value> {
    let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    let mut pair = vec![json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 1}})];
    let mut special = Map::new();
    let wanted = [
        ("bos", file.bool_or("tokenizer.ggml.add_bos_token", add_bos)?),
        ("eos", file.bool_or("tokenizer.ggml.add_eos_token", false)?),
    ];
    for (name, _) in wanted.iter().filter(|(_, add)| *add) {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some((id, token)) = vocab.named(file, &key)? else {
            return Err(Error::missing_key(file.path(), key));
        };
        for template in [&mut single, &mut pair] {
            let at = if *name == "bos" { 0 } else { template.len() };
            template.insert(at, json!({"SpecialToken": {"id": token, "type_id": 0}}));
        }
        special.insert(token.into(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    if special.is_empty() {
        return Ok(Value::Null);
    }
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}))
}
