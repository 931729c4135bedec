//! Tokens that may come next, by a grammar for example.

/// A set of token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSet(Vec<u32>);

impl TokenSet {
    /// From bits, 32 ids a word, the lowest id in the lowest bit; ids beyond the words are not in the set.
    #[must_use]
    pub fn from_words(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// Whether it has this id.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.0.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }
}

/// Restricts the tokens of one generation. It is asked before every draw and told every token but the one that ends the text.
pub trait Constraint: Send {
    /// Tokens that may come next. An end-of-sequence id among them lets the generation end.
    ///
    /// # Errors
    /// Why nothing can follow; the generation fails with it.
    fn allowed(&mut self) -> Result<TokenSet, String>;

    /// This token came.
    ///
    /// # Errors
    /// Why it could not; the generation fails with it.
    fn accept(&mut self, token: u32) -> Result<(), String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_ids_of_its_bits() {
        let set = TokenSet::from_words(vec![0b101, 1 << 31]);
        let ids: Vec<u32> = (0..100).filter(|&id| set.contains(id)).collect();
        assert_eq!(ids, [0, 2, 63]);
    }
}
