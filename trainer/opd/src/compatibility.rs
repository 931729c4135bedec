//! Whether a student and a teacher can be compared token by token: found out by asking both, not by comparing sizes. What
//! one has besides (padding of its head, a token that was added) is left out of the comparison.

use std::collections::BTreeSet;

use runtime::files::ModelFiles;
use runtime::text::{ChatTemplate, Tokenizer};

use crate::prompt::render;
use crate::{Error, Result, turn_end};
use data::Message;

/// Texts on which tokenizers differ when they differ at all: scripts, digits, white space, code, control characters.
const PROBES: [&str; 12] = [
    "The quick brown fox jumps over the lazy dog.",
    " leading and trailing spaces  ",
    "1234567890 3.14159 1,000,000 2026-11-23",
    "fn main() {\n\tlet x = vec![1, 2, 3];\n}\n\n\n",
    "Grüße, naïve café; Ελληνικά; Русский; العربية; हिन्दी; 日本語; 한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u{301} \u{200b}",
    "don't can't I'll we've IT'S",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><s></s><|eot_id|>",
    "https://example.org/a?b=c&d=%20 user@example.org",
    "\u{0}\u{1}\u{7f} \r\n \u{a0}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "",
];

/// Refuses a teacher that reads texts differently from the student, or ends them differently unless the ends were `chosen`.
/// Returns the ids that both have: what heads have beyond is padding, or a token that only one of them has.
///
/// # Errors
/// [`Error::TokenizersDiffer`] with the probe and both answers, [`Error::EndTokensDiffer`].
pub fn compare(student: &ModelFiles, teacher: &ModelFiles, chosen: bool) -> Result<usize> {
    let (ours, theirs) = (student.tokenizer()?, teacher.tokenizer()?);
    let sizes = [own_ids(student)?, own_ids(teacher)?];
    let ids = sizes[0].min(sizes[1]);
    if ours.fingerprint() != theirs.fingerprint() {
        compare_tokenizers(ours, theirs, ids)?;
    }
    if !chosen {
        compare_ends(student, &teacher.config.eos_token_ids)?;
    }
    compare_templates(student.chat_template.as_ref(), teacher.chat_template.as_ref())?;
    Ok(ids)
}

/// Ids of tokens that a model has a row for.
///
/// # Errors
/// A model without a tokenizer.
pub(crate) fn own_ids(files: &ModelFiles) -> Result<usize> {
    Ok(files.tokenizer()?.vocab_size().min(files.config.vocab_size))
}

/// A server's description of its model.
pub(crate) struct TokenizerInfo<'a> {
    /// Sum over its tokenizer.
    pub(crate) fingerprint: &'a str,
    /// Ids of the tokenizer.
    pub(crate) vocab_size: usize,
    /// Rows of the output head.
    pub(crate) model_vocab_size: usize,
    /// Tokens that end a text.
    pub(crate) eos_token_ids: &'a [u32],
    /// The chat template itself.
    pub(crate) chat_template: Option<&'a str>,
}

/// [`compare`] with a remote teacher; `tokenize` requests its tokens of a text.
///
/// # Errors
/// As [`compare`]; what `tokenize` returns.
pub(crate) fn compare_tokenizer_info(
    student: &ModelFiles,
    teacher: &TokenizerInfo<'_>,
    chosen: bool,
    tokenize: &dyn Fn(&str, bool) -> Result<Vec<u32>>,
) -> Result<usize> {
    let ours = student.tokenizer()?;
    if ours.fingerprint() != teacher.fingerprint {
        compare_probes(ours, tokenize)?;
    } else if ours.vocab_size() != teacher.vocab_size {
        return Err(differ("sizes of the vocabulary", ours.vocab_size(), teacher.vocab_size));
    }
    if !chosen {
        compare_ends(student, teacher.eos_token_ids)?;
    }
    let template = teacher.chat_template.map(|source| ChatTemplate::new(source, Some(ours))).transpose()?;
    compare_templates(student.chat_template.as_ref(), template.as_ref())?;
    Ok(own_ids(student)?.min(teacher.vocab_size).min(teacher.model_vocab_size))
}

fn compare_ends(student: &ModelFiles, theirs: &[u32]) -> Result<()> {
    let [ours, theirs] =
        [&student.config.eos_token_ids[..], theirs].map(|ids| ids.iter().copied().collect::<BTreeSet<u32>>());
    if ours == theirs {
        return Ok(());
    }
    let show = |ids: &BTreeSet<u32>| -> String {
        let spell = |id: &u32| student.tokenizer.as_ref().and_then(|t| t.token(*id)).unwrap_or_else(|| id.to_string());
        ids.iter().map(spell).collect::<Vec<_>>().join(", ")
    };
    let suggestion = turn_end::missing_eos(student).or_else(|| student.tokenizer.as_ref()?.token(*theirs.first()?));
    let suggestion = suggestion.unwrap_or_default();
    Err(Error::EndTokensDiffer { student: show(&ours), teacher: show(&theirs), suggestion })
}

/// Refuses a teacher that has other ids for a probe.
fn compare_probes(ours: &Tokenizer, theirs: &dyn Fn(&str, bool) -> Result<Vec<u32>>) -> Result<()> {
    for probe in PROBES {
        for special in [false, true] {
            let (a, b) = (ours.encode(probe, special)?, theirs(probe, special)?);
            if a != b {
                return Err(differ(&format!("token ids of {probe:?}"), format!("{a:?}"), format!("{b:?}")));
            }
        }
    }
    Ok(())
}

/// Both have the first `ids` tokens; beyond them one may have tokens that were added to its vocabulary.
fn compare_tokenizers(ours: &Tokenizer, theirs: &Tokenizer, ids: usize) -> Result<()> {
    compare_probes(ours, &|probe, special| Ok(theirs.encode(probe, special)?))?;
    let more = |tokenizer: &Tokenizer| {
        let beyond = (ids as u32)..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        beyond.into_iter().all(|id| tokenizer.token(id).is_none() || tokenizer.is_added(id))
    };
    if !(more(ours) && more(theirs)) {
        return Err(differ("sizes of the vocabulary", ours.vocab_size(), theirs.vocab_size()));
    }
    match (0..ids as u32).find(|&id| ours.token(id) != theirs.token(id)) {
        None => Ok(()),
        Some(id) => Err(differ(
            &format!("spellings of token {id}"),
            format!("{:?}", ours.token(id)),
            format!("{:?}", theirs.token(id)),
        )),
    }
}

fn compare_templates(ours: Option<&ChatTemplate>, theirs: Option<&ChatTemplate>) -> Result<()> {
    let (ours, theirs) = match (ours, theirs) {
        (None, None) => return Ok(()),
        (Some(ours), Some(theirs)) => (ours, theirs),
        (ours, theirs) => {
            let there = |present: bool| if present { "there is one" } else { "there is none" };
            return Err(differ("chat templates", there(ours.is_some()), there(theirs.is_some())));
        }
    };
    if ours.source() == theirs.source() {
        return Ok(());
    }
    let turns = [Message::new("user", "Hi"), Message::new("assistant", "Hello."), Message::new("user", "Why?")];
    let with_system = [&[Message::new("system", "Be brief.")], turns.as_slice()].concat();
    for messages in [turns.as_slice(), with_system.as_slice()] {
        for answer_follows in [false, true] {
            // A template may refuse a conversation (no system role, say); then both have to.
            let show = |text: Result<String>| text.map_or_else(|e| format!("refused: {e}"), |text| format!("{text:?}"));
            let (a, b) = (render(ours, messages, answer_follows), render(theirs, messages, answer_follows));
            if a.as_ref().ok() != b.as_ref().ok() {
                return Err(differ("chat templates", show(a), show(b)));
            }
        }
    }
    Ok(())
}

fn differ(what: &str, ours: impl ToString, theirs: impl ToString) -> Error {
    Error::TokenizersDiffer { what: what.to_owned(), student: ours.to_string(), teacher: theirs.to_string() }
}
