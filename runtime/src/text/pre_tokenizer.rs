//! How text is cut before merging: what `tokenizer.ggml.pre` names, in the terms of `tokenizer.json`.
//!
//! The patterns are those of each model's own `tokenizer.json`; which name means which model is llama.cpp's list.

use serde_json::{Value, json};

/// A cut, and what goes with it.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    pub(super) normalizer: Value,
    pub(super) steps: Vec<Value>,
    /// Whole words of the vocabulary need no merges (tiktoken's rule).
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool,
}

/// The names, for messages.
pub(super) const NAMES: &str = "default, gpt-2, smollm, qwen2, deepseek-r1-qwen, qwen35, llama-bpe, smaug-bpe, dbrx, gpt-4o, \
     llama4, tekken, deepseek-llm, deepseek-coder, deepseek-v3 and others that mean one of these";

/// Letters of deepseek-llm's words: those of scripts with upper and lower case. Escaped, because some have another form that
/// editors and tools put in their place.
const CASED: &str = "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}-\
     \u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\
     \u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\
     \u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\
     \u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}\
     -\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\
     \u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\
     \u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\
     \u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\
     \u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\
     \u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\
     \u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}";

impl PreTokenizer {
    /// What a name means; `None` for one whose cut is not known exactly.
    pub(super) fn of(name: &str) -> Option<Self> {
        let plain = |steps| Self { normalizer: Value::Null, steps, ignore_merges: false, add_bos: false };
        let nfc = |pattern: &str| Self { normalizer: json!({"type": "NFC"}), ..plain(cut(&[pattern])) };
        let tiktoken = |pattern: &str| Self { ignore_merges: true, add_bos: true, ..plain(cut(&[pattern])) };
        Some(match name {
            "gpt-2" | "mellum" | "a.x-4.0" | "exaone4" => plain(vec![byte_level(true)]),
            "smollm" | "starcoder" | "refact" | "mellum2" => plain(vec![digits(), byte_level(true)]),
            // llama.cpp's own cut for files that do not say which model they are.
            "default" => plain(cut(&[
                r"[\p{P}\$\+<=>\^~\|]+",
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                r"\p{N}+",
                "[0-9][0-9][0-9]",
            ])),
            "qwen2" | "deepseek-r1-qwen" | "megrez" | "kormo" | "f2llmv2" => nfc(&cl100k(r"\p{L}", r"\p{N}")),
            "qwen35" => nfc(&cl100k(r"\p{L}\p{M}", r"\p{N}")),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "midm-2.0" | "lfm2" => {
                tiktoken(&cl100k(r"\p{L}", r"\p{N}{1,3}"))
            }
            // The same cut by tokenizers that were saved before tiktoken's rule.
            "smaug-bpe" | "dbrx" => plain(cut(&[&cl100k(r"\p{L}", r"\p{N}{1,3}")])),
            "gpt-4o" | "llama4" | "kanana2" => plain(cut(&[&o200k(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")])),
            "tekken" => tiktoken(&o200k("", r"\p{N}")),
            "deepseek-llm" => plain(in_order(
                &["[\r\n]", &format!(r"\s?[{CASED}]+"), r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+"],
                Some(digits()),
            )),
            "deepseek-coder" => {
                plain(in_order(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"], Some(digits())))
            }
            "deepseek-v3" => plain(cut(&[
                r"\p{N}{1,3}",
                "[一-龥぀-ゟ゠-ヿ]+",
                concat!(
                    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
                    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
                ),
            ])),
            _ => return None,
        })
    }
}

/// Cuts by the patterns in order, then bytes.
fn cut(patterns: &[&str]) -> Vec<Value> {
    in_order(patterns, None)
}

fn in_order(patterns: &[&str], then: Option<Value>) -> Vec<Value> {
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    patterns.iter().map(split).chain(then).chain([byte_level(false)]).collect()
}

fn digits() -> Value {
    json!({"type": "Digits", "individual_digits": true})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// tiktoken's cl100k pattern with the family's letters of words and rule for digits.
fn cl100k(letters: &str, digits: &str) -> String {
    let word = if letters == r"\p{L}" { letters.to_owned() } else { format!("[{letters}]") };
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{word}+|{digits}| ?[^\s{letters}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// tiktoken's o200k pattern, which cuts where lower case is followed by upper case.
fn o200k(contractions: &str, digits: &str) -> String {
    let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
    let before = r"[^\r\n\p{L}\p{N}]?";
    format!(
        r"{before}{upper}*{lower}+{contractions}|{before}{upper}+{lower}*{contractions}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

#[cfg(test)]
mod tests {
    use tokenizers::{
        NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
        PreTokenizer as _, PreTokenizerWrapper,
    };

    use super::*;

    /// The pieces that `name` cuts a text into, as it spells bytes.
    fn pieces(name: &str, text: &str) -> Vec<String> {
        let pre = PreTokenizer::of(name).unwrap();
        let mut normalized = NormalizedString::from(text);
        if !pre.normalizer.is_null() {
            let normalizer: NormalizerWrapper = serde_json::from_value(pre.normalizer).unwrap();
            normalizer.normalize(&mut normalized).unwrap();
        }
        let steps: PreTokenizerWrapper =
            serde_json::from_value(json!({"type": "Sequence", "pretokenizers": pre.steps})).unwrap();
        let mut cut = PreTokenizedString::from(normalized);
        steps.pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        splits.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
    }

    /// Cuts by the tokenizers of the models themselves, see `scripts/fixtures/make_cut.py`.
    #[test]
    fn cuts_equal_those_of_the_models_tokenizers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/cuts.json");
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let names = fixture["cuts"].as_object().unwrap();
        assert!(names.len() >= 8);
        for (name, cuts) in names {
            for (text, want) in fixture["strings"].as_array().unwrap().iter().zip(cuts.as_array().unwrap()) {
                let text = text.as_str().unwrap();
                assert_eq!(json!(pieces(name, text)), *want, "{name}: {text:?}");
            }
            let merges = fixture["ignore_merges"][name].as_bool().unwrap_or(false);
            assert_eq!(PreTokenizer::of(name).unwrap().ignore_merges, merges, "{name}");
        }
    }

    #[test]
    fn tekken_cuts_before_capitals_and_every_digit() {
        assert_eq!(pieces("tekken", "HelloWorld don't 12"), ["Hello", "World", "Ġdon", "'t", "Ġ", "1", "2"]);
        assert_eq!(pieces("gpt-4o", "HelloWorld don't 12"), ["Hello", "World", "Ġdon't", "Ġ", "12"]);
    }
}
