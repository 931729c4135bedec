//! `generation_config.json`: what transformers does with each of its keys (5.24), and what is done with it here.
//!
//! | keys | here |
//! |---|---|
//! | `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty` | sampling parameters |
//! | `no_repeat_ngram_size`, `encoder_no_repeat_ngram_size`, `bad_words_ids`, `suppress_tokens`, `begin_suppress_tokens`, `min_new_tokens`, `min_length`, `forced_bos_token_id`, `forced_eos_token_id` | [`GenerationRules`] |
//! | `max_new_tokens` | [`GenerationRules`]; it wins over a length that is given as one of the whole sequence |
//! | those of [`NOT_IMPLEMENTED`] | refused by name where they change what transformers generates |
//! | `eos_token_id`, `bos_token_id`, `pad_token_id` | the model's configuration |
//! | all others | change no token: outputs, caches, compilation, assisted generation of the same tokens, versions |
//!
//! Evaluation and `arle generate` generate by all of it. A server takes the sampling parameters as defaults, as vLLM does,
//! and rollouts are samples of the student itself: both say what they leave out.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::sampler::TokenMask;
use crate::weights::gguf::GgufFile;
use crate::{Error, Result};

/// Settings of `generation_config.json` or GGUF metadata.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// `false` means greedy.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Mass of the nucleus.
    pub top_p: Option<f64>,
    /// Number of candidates.
    pub top_k: Option<usize>,
    /// Least probability relative to the best.
    pub min_p: Option<f64>,
    /// Divisor of the logits of tokens that were seen.
    pub repetition_penalty: Option<f64>,
    /// What else decides which token may come next.
    pub rules: GenerationRules,
    /// Keys that change what transformers generates and that nothing here does.
    not_implemented: Vec<NotImplemented>,
}

/// What decides which token may come next, besides sampling.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerationRules {
    /// No so many tokens in a row occur twice.
    pub no_repeat_ngram: usize,
    /// No so many tokens in a row of the prompt occur after it.
    pub no_repeat_prompt_ngram: usize,
    /// Sequences that never occur.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that never occur.
    pub suppress: Vec<u32>,
    /// Tokens that do not begin a generation.
    pub begin_suppress: Vec<u32>,
    /// Tokens before an end, of the generation.
    pub min_new_tokens: usize,
    /// Tokens before an end, of the prompt and the generation.
    pub min_length: usize,
    /// The token after a prompt of one.
    pub forced_first: Option<u32>,
    /// The last token that the length allows; of several the lowest, since transformers makes them equally likely.
    pub forced_last: Option<u32>,
    /// Tokens of a generation, whatever length of the whole sequence is requested.
    pub max_new_tokens: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
struct NotImplemented {
    path: PathBuf,
    key: &'static str,
    value: Value,
    /// Whether greedy generations are the same without it.
    sampling_only: bool,
}

/// Keys, the values that change nothing, and whether they matter to sampling alone.
const NOT_IMPLEMENTED: [(&str, &[&str], bool); 17] = [
    ("num_beams", &["1"], false),
    ("num_beam_groups", &["1"], false),
    ("diversity_penalty", &["0", "0.0"], false),
    ("constraints", &[], false),
    ("force_words_ids", &[], false),
    ("penalty_alpha", &["0", "0.0"], false),
    ("dola_layers", &[], false),
    ("guidance_scale", &["1", "1.0"], false),
    ("sequence_bias", &["[]", "{}"], false),
    ("encoder_repetition_penalty", &["1", "1.0"], false),
    ("exponential_decay_length_penalty", &[], false),
    ("watermarking_config", &[], false),
    ("stop_strings", &["[]"], false),
    ("max_time", &[], false),
    ("token_healing", &["false"], false),
    ("typical_p", &["1", "1.0"], true),
    ("top_h", &[], true),
];
/// Of these 0 is as good as nothing, and values of 1 and more are none that transformers takes.
const CUTOFFS: [&str; 2] = ["epsilon_cutoff", "eta_cutoff"];

impl GenerationDefaults {
    pub(super) fn from_hf(path: &Path, config: Option<&Value>) -> Result<Self> {
        let Some(config) = config else { return Ok(Self::default()) };
        let keys = GenerationKeys { path, config };
        Ok(Self {
            do_sample: keys.get("do_sample", "true or false")?,
            temperature: keys.get("temperature", "a number")?,
            top_p: keys.get("top_p", "a number")?,
            top_k: keys.get("top_k", "a number of tokens")?,
            min_p: keys.get("min_p", "a number")?,
            repetition_penalty: keys.get("repetition_penalty", "a number")?,
            rules: GenerationRules::from_hf(&keys)?,
            not_implemented: keys.not_implemented(),
        })
    }

    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let number = |name: &str| {
            let key = format!("general.sampling.{name}");
            file.get(&key).map(|_| file.f64(&key)).transpose()
        };
        Ok(Self {
            temperature: number("temp")?,
            top_p: number("top_p")?,
            top_k: file.get("general.sampling.top_k").map(|_| file.usize("general.sampling.top_k")).transpose()?,
            min_p: number("min_p")?,
            repetition_penalty: number("penalty_repeat")?,
            ..Self::default()
        })
    }

    /// Whether a generation can be made as transformers makes it, greedily or by `sampling`.
    ///
    /// # Errors
    /// The first key that would change it and is not implemented.
    pub fn check(&self, sampling: bool) -> Result<()> {
        let matters = |one: &&NotImplemented| sampling || !one.sampling_only;
        self.not_implemented.iter().find(matters).map_or(Ok(()), |one| {
            let want = "transformers generates other tokens with it, which is not implemented; take the key out, or pass \
                        --ignore-generation-config";
            Err(Error::bad_key(&one.path, one.key, &one.value, want))
        })
    }

    /// Keys, with their values, that change which tokens a generation has, parameters of sampling aside.
    #[must_use]
    pub fn beside_sampling(&self) -> Vec<String> {
        let others = self.not_implemented.iter().map(|one| format!("{} = {}", one.key, one.value));
        self.rules.named().chain(others).collect()
    }

    /// [`Self::beside_sampling`] and the penalty: all that a sample of the model itself has not.
    #[must_use]
    pub fn changes(&self) -> Vec<String> {
        let penalty = self.repetition_penalty.filter(|penalty| *penalty != 1.0);
        let penalty = penalty.map(|penalty| format!("repetition_penalty = {penalty}"));
        penalty.into_iter().chain(self.beside_sampling()).collect()
    }
}

/// The keys of the file; `null` is as good as absent.
struct GenerationKeys<'a> {
    path: &'a Path,
    config: &'a Value,
}

impl GenerationKeys<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn get<T: DeserializeOwned>(&self, key: &str, what: &str) -> Result<Option<T>> {
        let read = |value: &Value| {
            let bad = |_| Error::bad_key(self.path, key, value, format!("{what} is needed"));
            serde_json::from_value(value.clone()).map_err(bad)
        };
        self.value(key).map(read).transpose()
    }

    fn list<T: DeserializeOwned>(&self, key: &str, what: &str) -> Result<Vec<T>> {
        Ok(self.get(key, what)?.unwrap_or_default())
    }

    fn not_implemented(&self) -> Vec<NotImplemented> {
        let fixed = NOT_IMPLEMENTED.into_iter().filter_map(|(key, neutral, sampling_only)| {
            let value = self.value(key).filter(|value| !neutral.contains(&value.to_string().as_str()))?;
            Some((key, value, sampling_only))
        });
        let cutoffs = CUTOFFS.into_iter().filter_map(|key| {
            Some((key, self.value(key).filter(|value| value.as_f64().is_none_or(|v| v > 0.0 && v < 1.0))?, true))
        });
        let one = |(key, value, sampling_only): (&'static str, &Value, bool)| NotImplemented {
            path: self.path.to_owned(),
            key,
            value: value.clone(),
            sampling_only,
        };
        fixed.chain(cutoffs).map(one).collect()
    }
}

impl GenerationRules {
    fn from_hf(keys: &GenerationKeys) -> Result<Self> {
        let count = |key: &str| Ok::<usize, Error>(keys.get(key, "a number of tokens")?.unwrap_or_default());
        let one_or_more = |value: Value| match value {
            Value::Array(_) => value,
            one => Value::Array(vec![one]),
        };
        let last = keys.value("forced_eos_token_id").cloned().map(one_or_more);
        let last = last.map(|value| {
            let bad = |_| Error::bad_key(keys.path, "forced_eos_token_id", &value, "token ids are needed");
            serde_json::from_value(value.clone()).map_err(bad)
        });
        Ok(Self {
            no_repeat_ngram: count("no_repeat_ngram_size")?,
            no_repeat_prompt_ngram: count("encoder_no_repeat_ngram_size")?,
            bad_words: keys.list("bad_words_ids", "a list of lists of token ids")?,
            suppress: keys.list("suppress_tokens", "a list of token ids")?,
            begin_suppress: keys.list("begin_suppress_tokens", "a list of token ids")?,
            min_new_tokens: count("min_new_tokens")?,
            min_length: if keys.value("min_new_tokens").is_some() { 0 } else { count("min_length")? },
            forced_first: keys.get("forced_bos_token_id", "a token id")?,
            forced_last: last.transpose()?.and_then(|ids: Vec<u32>| ids.into_iter().min()),
            max_new_tokens: keys.get("max_new_tokens", "a number of tokens")?,
        })
    }

    /// Those that change something, as they stand in the file.
    pub fn named(&self) -> impl Iterator<Item = String> {
        let number = |key: &str, n: usize| (n > 0).then(|| format!("{key} = {n}"));
        let ids = |key: &str, ids: &[u32]| (!ids.is_empty()).then(|| format!("{key} = {ids:?}"));
        let words = (!self.bad_words.is_empty()).then(|| format!("bad_words_ids = {:?}", self.bad_words));
        [
            number("no_repeat_ngram_size", self.no_repeat_ngram),
            number("encoder_no_repeat_ngram_size", self.no_repeat_prompt_ngram),
            words,
            ids("suppress_tokens", &self.suppress),
            ids("begin_suppress_tokens", &self.begin_suppress),
            number("min_new_tokens", self.min_new_tokens),
            number("min_length", self.min_length),
            self.forced_first.map(|id| format!("forced_bos_token_id = {id}")),
            self.forced_last.map(|id| format!("forced_eos_token_id = {id}")),
            number("max_new_tokens", self.max_new_tokens.unwrap_or_default()),
        ]
        .into_iter()
        .flatten()
    }

    /// What these rules allow after `prompt`, of at most `max_tokens` more; nothing where they allow everything. `eos` ends
    /// a generation.
    #[must_use]
    pub fn mask(&self, prompt: &[u32], eos: &[u32], max_tokens: usize) -> Option<Box<dyn TokenMask>> {
        let length_alone = Self { max_new_tokens: self.max_new_tokens, ..Self::default() };
        if *self == length_alone {
            return None;
        }
        let rules = self.clone();
        Some(Box::new(RulesMask {
            rules,
            tokens: prompt.to_vec(),
            prompt: prompt.len(),
            eos: eos.to_vec(),
            max_tokens,
        }))
    }
}

/// [`GenerationRules`] during one generation.
struct RulesMask {
    rules: GenerationRules,
    tokens: Vec<u32>,
    /// Length of the prompt.
    prompt: usize,
    eos: Vec<u32>,
    max_tokens: usize,
}

impl RulesMask {
    /// The only token that may come next, where the rules name it.
    fn forced(&self) -> Option<u32> {
        let is_last = self.tokens.len() - self.prompt + 1 == self.max_tokens;
        let first = self.rules.forced_first.filter(|_| self.tokens.len() == 1);
        first.or(self.rules.forced_last.filter(|_| is_last))
    }

    fn forbidden(&self, forbid: &mut impl FnMut(u32)) {
        let (rules, generated) = (&self.rules, self.tokens.len() - self.prompt);
        self.repeated(rules.no_repeat_ngram, &self.tokens, forbid);
        self.repeated(rules.no_repeat_prompt_ngram, &self.tokens[..self.prompt], forbid);
        for word in &rules.bad_words {
            // A word that ends generations is left alone, as in transformers.
            if let [before @ .., last] = &word[..]
                && (before.is_empty() || word.len() <= self.tokens.len())
                && self.tokens.ends_with(before)
                && !(before.is_empty() && self.eos.contains(last))
            {
                forbid(*last);
            }
        }
        rules.suppress.iter().copied().for_each(&mut *forbid);
        // After a token that is forced, the generation begins behind it.
        let begin = usize::from(self.prompt <= 1 && rules.forced_first.is_some());
        if generated == begin {
            rules.begin_suppress.iter().copied().for_each(&mut *forbid);
        }
        if generated < rules.min_new_tokens || self.tokens.len() < rules.min_length {
            self.eos.iter().copied().for_each(&mut *forbid);
        }
    }

    /// What would complete a run of `n` tokens that is in `among` already.
    fn repeated(&self, n: usize, among: &[u32], forbid: &mut impl FnMut(u32)) {
        if n == 0 || self.tokens.len() + 1 < n {
            return;
        }
        let last = &self.tokens[self.tokens.len() + 1 - n..];
        among.windows(n).filter(|run| run.starts_with(last)).for_each(|run| forbid(run[n - 1]));
    }
}

impl TokenMask for RulesMask {
    fn allowed(&mut self, bits: &mut [u32]) {
        let place = |id: u32| (id as usize / 32, 1 << (id % 32));
        if let Some(forced) = self.forced() {
            let (word, bit) = place(forced);
            if let Some(word) = bits.get_mut(word) {
                *word |= bit;
            }
            return;
        }
        bits.fill(u32::MAX);
        self.forbidden(&mut |id| {
            let (word, bit) = place(id);
            if let Some(word) = bits.get_mut(word) {
                *word &= !bit;
            }
        });
    }

    fn accept(&mut self, token: u32) {
        self.tokens.push(token);
    }
}

#[cfg(test)]
mod tests;
