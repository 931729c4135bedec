//! What holds a generation to what its request asks for: a grammar, and a budget of tokens for reasoning.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use runtime::request::TokenMask;
use runtime::text::{Detokenizer, Tokenizer};

use crate::output::{Markers, Parser};
use crate::structured::grammar::Grammar;

/// For any number of generations.
pub(crate) struct Constraint {
    grammar: Option<Grammar>,
    budget: Option<Budget>,
}

/// How long reasoning may be.
#[derive(Clone)]
pub(crate) struct Budget {
    /// Tokens between the markers.
    pub(crate) tokens: usize,
    /// The marker that ends it.
    pub(crate) closing: Arc<[u32]>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// The prompt has begun it.
    pub(crate) begun: bool,
}

impl Constraint {
    /// `None` where there is nothing to hold to.
    pub(crate) fn new(grammar: Option<Grammar>, budget: Option<Budget>) -> Option<Self> {
        (grammar.is_some() || budget.is_some()).then_some(Self { grammar, budget })
    }

    /// About what one generation takes for it.
    pub(crate) fn bytes(&self) -> u64 {
        self.grammar.as_ref().map_or(0, Grammar::bytes)
    }

    /// For one generation.
    pub(crate) fn follow(&self) -> Box<dyn TokenMask> {
        Box::new(ConstraintMask {
            matcher: self.grammar.as_ref().map(|grammar| Mutex::new(grammar.matcher())),
            budget: self.budget.clone().map(ThinkingBudget::new),
            span: tracing::Span::current(),
        })
    }
}

/// One generation. The lock is never waited for: it makes the matcher shareable.
struct ConstraintMask {
    matcher: Option<Mutex<Matcher>>,
    budget: Option<ThinkingBudget>,
    /// The request's: the device thread, which asks for masks, is in none.
    span: tracing::Span,
}

impl TokenMask for ConstraintMask {
    /// A grammar that failed allows nothing, and the request fails for want of a token.
    fn allowed(&mut self, bits: &mut [u32]) {
        match &mut self.matcher {
            None => bits.fill(u32::MAX),
            Some(matcher) => match unlocked(matcher).compute_mask_or_eos() {
                Ok(mask) => bits.iter_mut().zip(mask.as_slice()).for_each(|(word, &allowed)| *word = allowed),
                Err(error) => self.span.in_scope(|| tracing::warn!("no token is allowed: {error}")),
            },
        }
        let Some(token) = self.budget.as_ref().and_then(ThinkingBudget::demands) else { return };
        let (word, bit) = (token as usize / 32, 1 << (token % 32));
        // A grammar wants the character that has begun to be complete first.
        if bits[word] & bit != 0 {
            bits.fill(0);
            bits[word] = bit;
        }
    }

    fn accept(&mut self, token: u32) {
        if let Some(budget) = &mut self.budget {
            budget.accept(token);
        }
        let Some(matcher) = &mut self.matcher else { return };
        let matcher = unlocked(matcher);
        // The token that ends a complete form is no part of it.
        if matcher.is_stopped() {
            return;
        }
        if let Err(error) = matcher.consume_token(token) {
            self.span.in_scope(|| tracing::warn!("token {token} was drawn against the form: {error}"));
        }
    }
}

fn unlocked(matcher: &mut Mutex<Matcher>) -> &mut Matcher {
    matcher.get_mut().unwrap_or_else(PoisonError::into_inner)
}

/// What is left of a budget.
struct ThinkingBudget {
    left: usize,
    closing: Arc<[u32]>,
    /// Tokens of `closing` that were written because the budget was spent.
    written: usize,
    text: Detokenizer,
    parser: Parser,
}

impl ThinkingBudget {
    fn new(budget: Budget) -> Self {
        let markers = Markers { reasoning: true, calls: false };
        Self {
            left: budget.tokens,
            closing: budget.closing,
            written: 0,
            text: Detokenizer::new(budget.tokenizer, true),
            parser: Parser::new(markers, budget.begun),
        }
    }

    /// The only token that may come next, when reasoning has to end.
    fn demands(&self) -> Option<u32> {
        let begins = self.left == 0 && self.parser.is_reasoning();
        self.closing.get(self.written).copied().filter(|_| begins || self.written > 0)
    }

    fn accept(&mut self, token: u32) {
        if self.demands() == Some(token) {
            self.written += 1;
            return;
        }
        self.left = self.left.saturating_sub(usize::from(self.parser.is_reasoning()));
        // Text that cannot be decoded fails the generation where it is made.
        if let Ok(Some(text)) = self.text.push(token) {
            self.parser.push(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-chat");
        Arc::new(Tokenizer::from_dir(&dir).expect("a tokenizer"))
    });

    /// Continues a text by what is demanded, or else by the next of `wanted`; returns it.
    fn run(tokens: usize, begun: bool, wanted: &str) -> String {
        let tokenizer = Arc::clone(&TOKENIZER);
        let closing = tokenizer.encode("</think>", false).expect("ids").into();
        let mut budget = ThinkingBudget::new(Budget { tokens, closing, tokenizer: Arc::clone(&tokenizer), begun });
        let mut ids = Vec::new();
        let mut wanted = tokenizer.encode(wanted, false).expect("ids").into_iter();
        while let Some(id) = budget.demands().or_else(|| wanted.next()) {
            budget.accept(id);
            ids.push(id);
        }
        tokenizer.decode(&ids, true).expect("text")
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the model wants, behind `tokens` of reasoning comes the marker, once; where there is none, or it ends
        /// in time, nothing is changed.
        #[test]
        fn reasoning_ends_when_its_budget_is_spent(tokens in 0..12_usize, thought in "[a-c<é]{0,16}", begun: bool) {
            let before = if begun { "" } else { "<think>" };
            let length = TOKENIZER.encode(&thought, false).expect("ids").len();
            let got = run(tokens, begun, &format!("{before}{thought}"));
            if length < tokens {
                prop_assert_eq!(got, format!("{before}{thought}"));
            } else {
                let kept = TOKENIZER.encode(&thought, false).expect("ids")[..tokens].to_vec();
                let kept = TOKENIZER.decode(&kept, true).expect("text");
                prop_assert!(got.starts_with(&format!("{before}{kept}</think>")), "{}", got);
                prop_assert_eq!(got.matches("</think>").count(), 1);
            }
            let plain = format!("{thought}!{thought}");
            if !begun {
                prop_assert_eq!(&run(tokens, false, &plain), &plain);
            }
            let ended = format!("{before}ab</think>{plain}");
            let spent = TOKENIZER.encode("ab</think>", false).expect("ids").len();
            if tokens >= spent {
                prop_assert_eq!(run(tokens, begun, &ended), ended);
            }
        }
    }
}
