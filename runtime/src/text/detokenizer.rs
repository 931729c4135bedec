//! Text of a growing token sequence, a piece at a time.

use std::sync::Arc;

use super::tokenizer::{Tokenizer, piece_bytes};
use crate::{Error, Result};

/// Tokens of the text before that a piece's text may depend on.
const CONTEXT: usize = 4;

/// Emits text as tokens arrive. A character is never split, and all pieces together (with [`Self::flush`])
/// equal the decoding of all tokens at once, less that of the tokens before them. The cost of a token does not depend on how
/// many came before.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
}

enum State {
    /// Byte-level vocabularies: each token is bytes; what waits is an unfinished character.
    Bytes {
        pending: Vec<u8>,
        /// Whether all that waits is of the text before.
        untouched: bool,
    },
    /// Other vocabularies, where a piece's text can depend on the piece before it: `window` begins with the
    /// tokens of the last emitted piece, which decode to `context`, and goes on with those that wait.
    Window { window: Vec<u32>, emitted: usize, context: String },
}

impl Detokenizer {
    /// Starts an empty text; `skip_special` as in [`Tokenizer::decode`].
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let state = if tokenizer.is_byte_level() {
            State::Bytes { pending: Vec::new(), untouched: true }
        } else {
            State::Window { window: Vec::new(), emitted: 0, context: String::new() }
        };
        Self { tokenizer, skip_special, state }
    }

    /// Goes on after the text of `before`, none of which is emitted again. A character whose first bytes are there already
    /// is emitted whole.
    ///
    /// # Errors
    /// What cannot be decoded.
    pub fn after(tokenizer: Arc<Tokenizer>, skip_special: bool, before: &[u32]) -> Result<Self> {
        let mut text = Self::new(tokenizer, skip_special);
        let shown = |&&id: &&u32| text.tokenizer.token(id).is_some() && !text.skips(id);
        // A piece depends on the one before it, and bytes on all bytes beside them.
        let pieces = before.iter().rev().filter(shown).copied();
        let (mut tail, mut whole) = (Vec::new(), 0);
        for id in pieces {
            whole += usize::from(!text.tokenizer.is_byte_piece(id));
            tail.push(id);
            if whole == CONTEXT {
                break;
            }
        }
        tail.reverse();
        match &mut text.state {
            State::Bytes { pending, .. } => {
                let bytes = tail.iter().filter_map(|&id| text.tokenizer.token(id));
                pending.extend(bytes.flat_map(|piece| piece_bytes(&piece)));
                take_certain(pending);
            }
            State::Window { window, emitted, context } => {
                *context = text.tokenizer.decode(&tail, skip_special)?;
                // The bytes of an unfinished character are emitted with its last one.
                let bytes = tail.iter().rev().take_while(|&&id| text.tokenizer.is_byte_piece(id)).count();
                let unfinished = if context.ends_with(char::REPLACEMENT_CHARACTER) { bytes } else { 0 };
                *emitted = tail.len() - unfinished;
                if unfinished > 0 {
                    *context = text.tokenizer.decode(&tail[..*emitted], skip_special)?;
                }
                *window = tail;
            }
        }
        Ok(text)
    }

    fn skips(&self, id: u32) -> bool {
        self.skip_special && self.tokenizer.is_special(id)
    }

    /// Takes a token; returns the text that is now certain, if there is any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        // What has no text ends no run of byte pieces either.
        let Some(piece) = self.tokenizer.token(id) else { return Ok(None) };
        if self.skips(id) {
            return Ok(None);
        }
        match &mut self.state {
            State::Bytes { pending, untouched } => {
                *untouched = false;
                pending.extend(piece_bytes(&piece));
                let text = take_certain(pending);
                Ok((!text.is_empty()).then_some(text))
            }
            State::Window { window, .. } => {
                window.push(id);
                // The end of a run of byte pieces decides whether the run is text at all.
                if self.tokenizer.is_byte_piece(id) { Ok(None) } else { self.emit_window() }
            }
        }
    }

    /// Ends the text; returns what still waited.
    pub fn flush(&mut self) -> Result<Option<String>> {
        match &mut self.state {
            State::Bytes { untouched: true, .. } => Ok(None),
            State::Bytes { pending, .. } => {
                let text = String::from_utf8_lossy(&std::mem::take(pending)).into_owned();
                Ok((!text.is_empty()).then_some(text))
            }
            State::Window { .. } => self.emit_window(),
        }
    }

    fn emit_window(&mut self) -> Result<Option<String>> {
        let State::Window { window, emitted, context } = &mut self.state else { return Ok(None) };
        let text = self.tokenizer.decode(window, self.skip_special)?;
        let Some(new) = text.strip_prefix(context.as_str()) else {
            return Err(Error::Tokenizer(format!(
                "its decoder turns {context:?} into {text:?} when tokens follow, so text cannot be streamed"
            )));
        };
        if new.is_empty() {
            return Ok(None);
        }
        let new = new.to_owned();
        window.drain(..*emitted);
        *emitted = window.len();
        *context = self.tokenizer.decode(window, self.skip_special)?;
        Ok(Some(new))
    }
}

/// Moves out all text whose decoding later bytes cannot change, with U+FFFD for what is not UTF-8; an
/// unfinished character of at most 3 bytes stays.
fn take_certain(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut kept = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        let at_end = invalid.as_ptr_range().end == pending.as_ptr_range().end;
        if at_end && is_unfinished(invalid) {
            kept = invalid.len();
        } else if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    pending.drain(..pending.len() - kept);
    text
}

/// Whether bytes could go on to be one character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::take_certain;

    proptest! {
        #[test]
        fn pieces_equal_the_whole_for_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 1usize..5) {
            let (mut pending, mut text) = (Vec::new(), String::new());
            for piece in bytes.chunks(cut) {
                pending.extend_from_slice(piece);
                text.push_str(&take_certain(&mut pending));
                prop_assert!(pending.len() < 4);
            }
            text.push_str(&String::from_utf8_lossy(&pending));
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
