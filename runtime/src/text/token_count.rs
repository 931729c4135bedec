//! How many tokens a text has at least, without making them.

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{ModelWrapper, OffsetReferential, OffsetType};

use super::tokenizer::piece_bytes;

/// The pieces of a vocabulary of which each token of a text is one, so that no text has fewer tokens than it takes pieces.
pub(super) struct MinTokenCount {
    /// Sorted.
    pieces: Vec<Vec<u8>>,
    /// Bytes of the longest.
    longest: usize,
}

impl MinTokenCount {
    /// `None` where a token may stand for more of a text than its piece, or nothing for a part of it.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        let is_set = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
        if is_set(&model.continuing_subword_prefix) || is_set(&model.end_of_word_suffix) {
            return None;
        }
        let cuts = tokenizer.get_pre_tokenizer();
        if cuts.is_some_and(|cuts| !keeps_all(cuts)) {
            return None;
        }
        // Such a token takes the white space beside it.
        if tokenizer.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip) {
            return None;
        }
        let vocab = tokenizer.get_vocab(false);
        let by_bytes = cuts.is_some_and(maps_bytes);
        let bytes = |piece: &String| if by_bytes { piece_bytes(piece) } else { piece.clone().into_bytes() };
        let mut pieces: Vec<Vec<u8>> = vocab.keys().map(bytes).collect();
        pieces.sort_unstable();
        // What has no token of its own has one for every byte.
        let complete = if by_bytes {
            (0..=u8::MAX).all(|byte| pieces.binary_search(&vec![byte]).is_ok())
        } else {
            model.byte_fallback && (0..=u8::MAX).all(|byte| vocab.contains_key(&format!("<0x{byte:02X}>")))
        };
        let longest = pieces.iter().map(Vec::len).max().filter(|_| complete)?;
        Some(Self { pieces, longest })
    }

    /// Whether a text has more than `most` tokens for sure.
    pub(super) fn exceeds(&self, tokenizer: &tokenizers::Tokenizer, text: &str, most: usize) -> bool {
        let added = tokenizer.get_added_vocabulary();
        let parts = added.extract_and_normalize::<NormalizerWrapper>(tokenizer.get_normalizer(), text);
        let mut count = 0;
        for (text, _, tokens) in parts.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            count += match tokens {
                Some(tokens) => tokens.len(),
                None => self.fewest(text.as_bytes(), most.saturating_sub(count)),
            };
            if count > most {
                return true;
            }
        }
        false
    }

    /// Pieces that it takes to come to the end of a text, where a piece may begin anywhere before the end of the last one;
    /// counted up to one more than `most`.
    fn fewest(&self, text: &[u8], most: usize) -> usize {
        let (mut count, mut first, mut reach) = (0, 0, 0);
        while reach < text.len() && count <= most {
            let mut next = reach + 1;
            // Pieces from before `first` were looked at for the last step.
            for start in (first..=reach).rev() {
                if start + self.longest <= next {
                    break;
                }
                next = next.max(start + self.longest_at(&text[start..]));
            }
            (first, reach) = (reach + 1, next);
            count += 1;
        }
        count
    }

    /// Bytes of the longest piece that a text begins with; at least one.
    fn longest_at(&self, text: &[u8]) -> usize {
        let (mut pieces, mut longest) = (&self.pieces[..], 1);
        for (at, byte) in text.iter().enumerate() {
            // Those that are as the text up to this byte; the shortest comes first.
            let begin = pieces.partition_point(|piece| piece.get(at) < Some(byte));
            let end = pieces.partition_point(|piece| piece.get(at) <= Some(byte));
            pieces = &pieces[begin..end];
            match pieces.first() {
                None => break,
                Some(first) if first.len() == at + 1 => longest = at + 1,
                Some(_) => {}
            }
        }
        longest
    }
}

/// Whether all of a text is in what it is cut into, and nothing else.
fn keeps_all(cuts: &PreTokenizerWrapper) -> bool {
    match cuts {
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().all(keeps_all),
        PreTokenizerWrapper::ByteLevel(level) => !level.add_prefix_space,
        PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
        PreTokenizerWrapper::Punctuation(split) => split.behavior != SplitDelimiterBehavior::Removed,
        PreTokenizerWrapper::Digits(_) => true,
        _ => false,
    }
}

/// Whether the pieces are bytes, written as characters.
fn maps_bytes(cuts: &PreTokenizerWrapper) -> bool {
    match cuts {
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().any(maps_bytes),
        PreTokenizerWrapper::ByteLevel(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use crate::text::Tokenizer;
    use crate::weights::gguf::GgufFile;

    /// Byte-level and SentencePiece ones, with and without a normaliser.
    static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let open = |name| GgufFile::open(&fixtures.join("gguf").join(name)).expect("a file");
        let files = ["spm.gguf", "bpe-gpt-2.gguf", "bpe-llama-bpe.gguf", "bpe-smollm.gguf", "bpe-qwen2.gguf"];
        let from_gguf = files.map(|name| Tokenizer::from_gguf(&open(name)).expect("a tokenizer"));
        let qwen3 = Tokenizer::from_dir(&fixtures.join("text/qwen3-small")).expect("a tokenizer");
        from_gguf.into_iter().chain([qwen3]).collect()
    });

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A text of few tokens is never counted as one of more: words of the vocabulary, added tokens, compositions, runs, noise.
        #[test]
        fn no_text_is_said_to_be_longer_than_it_is(
            parts in prop::collection::vec(
                prop_oneof![
                    any::<u32>().prop_map(|id| (Some(id), String::new())),
                    "[ -~\\n]{0,6}|\\PC{0,3}| {1,40}|(e\u{301}){1,9}|[\u{1100}\u{1161}\u{11a8}\u{338}\u{212b}]{0,6}|(the ){1,9}"
                        .prop_map(|text| (None, text)),
                ],
                0..40,
            ),
        ) {
            for tokenizer in &*TOKENIZERS {
                let size = tokenizer.vocab_size() as u32;
                let word = |id: u32| tokenizer.decode(&[id % size], false).expect("text");
                let text: String = parts.iter().map(|(id, text)| id.map_or_else(|| text.clone(), word)).collect();
                let count = tokenizer.encode(&text, false).expect("ids").len();
                for most in count..count + 3 {
                    prop_assert!(!tokenizer.exceeds(&text, most), "{:?} has {} tokens", text, count);
                }
            }
        }
    }

    /// Texts that are far too long are recognised at once, without their tokens.
    #[test]
    fn far_too_long_texts_are_told() {
        for tokenizer in &*TOKENIZERS {
            for piece in ["the sea ", "x", "\n", "caf\u{301}e ", "\u{65e5}\u{672c}", "12", "<|im_end|>"] {
                let text = piece.repeat(1 << 20);
                assert!(tokenizer.surely_exceeds(&text, 4096), "{piece:?}");
            }
            assert!(!tokenizer.surely_exceeds("the sea ", 4096) && !tokenizer.surely_exceeds("", 0));
        }
    }
}
