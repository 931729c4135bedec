//! Token ids of contexts and continuations, and the windows of long texts, by lm-evaluation-harness' rules.

/// A sequence whose tokens from `from` on are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScoredTail {
    pub(crate) tokens: Vec<u32>,
    pub(crate) from: usize,
    /// Tokens at the beginning that were left out to fit.
    pub(crate) cut: usize,
}

/// The parts of a text pair as they are encoded: white space between belongs to the continuation.
pub(crate) fn move_spaces<'a>(context: &'a str, continuation: &str) -> (&'a str, String) {
    // Python's white space has these four separators besides Unicode's.
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let kept = context.trim_end_matches(space);
    (kept, format!("{}{continuation}", &context[kept.len()..]))
}

/// A continuation after its context: the whole is encoded once, and what the context alone does not cover is the
/// continuation. `encode` adds the tokens that the tokenizer puts before every text when its second argument is true.
///
/// # Errors
/// What `encode` refuses.
pub(crate) fn pair<E>(
    context: &str,
    continuation: &str,
    prefix: u32,
    mut encode: impl FnMut(&str, bool) -> Result<Vec<u32>, E>,
) -> Result<ScoredTail, E> {
    let (context, continuation) = move_spaces(context, continuation);
    if context.is_empty() {
        let ids = encode(&continuation, false)?;
        // Something has to come first.
        let tokens = if ids.first() == Some(&prefix) { ids } else { [vec![prefix], ids].concat() };
        return Ok(ScoredTail { tokens, from: 1, cut: 0 });
    }
    let tokens = encode(&format!("{context}{continuation}"), true)?;
    let from = encode(context, true)?.len().min(tokens.len());
    Ok(ScoredTail { tokens, from, cut: 0 })
}

impl ScoredTail {
    /// Whether a model that sees `limit` tokens at once can score it: nothing is predicted from the last token.
    pub(crate) fn fits(&self, limit: usize) -> bool {
        self.tokens.len() <= limit + 1
    }

    /// Its end that fits; `None` when that would cut into what is scored.
    pub(crate) fn cut_to(mut self, limit: usize) -> Option<Self> {
        let cut = self.tokens.len().saturating_sub(limit + 1);
        if cut >= self.from {
            return None;
        }
        self.tokens.drain(..cut);
        (self.from, self.cut) = (self.from - cut, cut);
        Some(self)
    }
}

/// Windows of at most `limit` tokens to predict that cover a text; each begins with the token before it, the first with
/// `prefix`. The last one is filled up with context on the left.
pub(crate) fn windows(tokens: &[u32], prefix: u32, limit: usize) -> Vec<ScoredTail> {
    let mut windows = Vec::new();
    let mut done = 0;
    while done < tokens.len() {
        let predicted = limit.min(tokens.len() - done);
        let end = done + predicted;
        let tail = if done == 0 {
            ScoredTail { tokens: [&[prefix], &tokens[..end]].concat(), from: 1, cut: 0 }
        } else {
            let first = end - limit - 1;
            ScoredTail { tokens: tokens[first..end].to_vec(), from: limit + 1 - predicted, cut: 0 }
        };
        windows.push(tail);
        done = end;
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a character, and `ab` is one.
    fn encode(text: &str, special: bool) -> Result<Vec<u32>, std::convert::Infallible> {
        let start = if special { vec![1] } else { vec![] };
        let ids = text.replace("ab", "\u{3b1}");
        Ok(start.into_iter().chain(ids.chars().map(u32::from)).collect())
    }

    fn spelled(tail: &ScoredTail) -> (usize, String) {
        (tail.from, tail.tokens.iter().map(|&id| char::from_u32(id).expect("a character")).collect())
    }

    #[test]
    fn spaces_before_a_continuation_belong_to_it() {
        let tail = pair("x \n", "y", 0, encode).expect("encoded");
        assert_eq!(spelled(&tail), (2, "\u{1}x \ny".to_owned()));
        assert_eq!(move_spaces("x\u{1f}\u{a0}", "y"), ("x", "\u{1f}\u{a0}y".to_owned()));
    }

    #[test]
    fn the_whole_is_encoded_once() {
        let tail = pair("xa", "bc", 0, encode).expect("encoded");
        assert_eq!(spelled(&tail), (3, "\u{1}x\u{3b1}c".to_owned()), "the merged token counts as context");
    }

    #[test]
    fn without_a_context_the_prefix_comes_first_and_once() {
        assert_eq!(spelled(&pair("", "xy", 2, encode).expect("encoded")), (1, "\u{2}xy".to_owned()));
        assert_eq!(spelled(&pair("", "xy", u32::from('x'), encode).expect("encoded")), (1, "xy".to_owned()));
    }

    #[test]
    fn a_tail_is_cut_from_the_left_and_never_into_what_is_scored() {
        let tail = ScoredTail { tokens: vec![1, 2, 3, 4, 5], from: 3, cut: 0 };
        assert!(tail.fits(4) && !tail.fits(3));
        let cut = tail.clone().cut_to(2).expect("fits");
        assert_eq!(cut, ScoredTail { tokens: vec![3, 4, 5], from: 1, cut: 2 });
        assert_eq!(tail.cut_to(1), None);
    }

    /// Golden values from lm-evaluation-harness' rolling windows: context and predicted tokens.
    #[test]
    fn windows_cover_a_text_once() {
        let parts = |length: u32, limit: usize| -> Vec<(Vec<u32>, Vec<u32>)> {
            let tokens: Vec<u32> = (1..=length).collect();
            windows(&tokens, 0, limit)
                .into_iter()
                .map(|tail| (tail.tokens[..tail.from].to_vec(), tail.tokens[tail.from..].to_vec()))
                .collect()
        };
        assert_eq!(parts(3, 4), [(vec![0], vec![1, 2, 3])]);
        assert_eq!(
            parts(9, 4),
            [(vec![0], vec![1, 2, 3, 4]), (vec![4], vec![5, 6, 7, 8]), (vec![5, 6, 7, 8], vec![9]),]
        );
        assert_eq!(parts(0, 4), []);
    }
}
