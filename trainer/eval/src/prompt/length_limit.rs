//! Prompts that the model cannot see at once.

use crate::{Error, Result};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LongPrompt {
    /// Its tokens.
    pub(crate) prompt: usize,
    /// Tokens to generate after them.
    pub(crate) new: usize,
    /// The limit on their sum.
    pub(crate) limit: usize,
}

/// All of them that were found.
#[derive(Debug, Default)]
pub(crate) struct LengthOverflow {
    /// Documents looked at.
    documents: usize,
    /// Documents with such prompts.
    too_long: usize,
    /// The first, by its place, with its first prompt.
    first: Option<(usize, LongPrompt)>,
    longest: usize,
    counted: bool,
}

impl LengthOverflow {
    /// What comes belongs to one more document.
    pub(crate) fn next_document(&mut self) -> &mut Self {
        self.documents += 1;
        self.counted = false;
        self
    }

    pub(crate) fn found(&mut self, prompt: LongPrompt) {
        self.first.get_or_insert((self.documents - 1, prompt));
        self.longest = self.longest.max(prompt.prompt + prompt.new);
        self.too_long += usize::from(!self.counted);
        self.counted = true;
    }

    /// Adds what was found in the documents after these.
    pub(crate) fn add(&mut self, later: Self) {
        let first = later.first.map(|(doc, prompt)| (doc + self.documents, prompt));
        self.first = self.first.or(first);
        self.documents += later.documents;
        self.too_long += later.too_long;
        self.longest = self.longest.max(later.longest);
    }

    /// # Errors
    /// When there is one.
    pub(crate) fn refuse(&self) -> Result<()> {
        let Some((doc, LongPrompt { prompt, new, limit })) = self.first else { return Ok(()) };
        let (too_long, documents, longest) = (self.too_long, self.documents, self.longest);
        Err(Error::DoNotFit { too_long, documents, doc, prompt, new, limit, longest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_counted_once_and_named_by_their_place() {
        let mut all = LengthOverflow::default();
        all.next_document();
        assert!(all.refuse().is_ok());
        let mut later = LengthOverflow::default();
        later.next_document();
        for prompt in [9, 30] {
            later.next_document().found(LongPrompt { prompt, new: 2, limit: 10 });
        }
        later.found(LongPrompt { prompt: 20, new: 2, limit: 10 });
        all.add(later);
        let refusal = all.refuse().expect_err("too long").to_string();
        for word in ["2 of 4 documents", "document 2", "9 tokens and 2 new", "is 10", "needs 32", "--left-truncate"] {
            assert!(refusal.contains(word), "{word}: {refusal}");
        }
    }
}
