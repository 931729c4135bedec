//! Recursive descent over the tokens. One function a rule; the rules are those of sympy's grammar.

use std::cell::Cell;

use super::lexer::{LatexToken, tokens};
use super::{Dialect, Expr, Function};

/// Deepest nesting that is read: the stack is finite, and no answer nests so.
const MAX_DEPTH: usize = 64;
/// Longest text that is read, in bytes.
const MAX_LEN: usize = 4096;

/// The expression in `text`, or nothing where the dialect cannot read it.
pub fn parse(text: &str, dialect: Dialect) -> Option<Expr> {
    if text.len() > MAX_LEN {
        return None;
    }
    let tokens = tokens(text, dialect == Dialect::Sympy);
    let unknown = Cell::new(false);
    let mut parser = LatexParser { tokens: &tokens, at: 0, depth: 0, bars: 0, stuck: Vec::new(), unknown, dialect };
    let expr = parser.relation()?;
    let rest = parser.peek();
    match dialect {
        Dialect::Answer => rest.is_none().then_some(expr),
        // The grammar does not ask for the end, but every token that was looked at must be one.
        Dialect::Sympy => (!parser.unknown.get()).then_some(expr),
    }
}

struct LatexParser<'a> {
    tokens: &'a [LatexToken],
    at: usize,
    depth: usize,
    /// Absolute values that are open: a bar after a factor closes one before it opens another.
    bars: usize,
    /// Brackets that were tried and cannot be read: not tried again.
    stuck: Vec<usize>,
    /// Whether a sign that is no token was looked at.
    unknown: Cell<bool>,
    dialect: Dialect,
}

const RELATIONS: [&str; 8] = ["neq", "leq", "le", "leqq", "leqslant", "geq", "ge", "geqq"];

impl<'a> LatexParser<'a> {
    fn peek(&self) -> Option<&'a LatexToken> {
        self.ahead(0)
    }

    fn ahead(&self, by: usize) -> Option<&'a LatexToken> {
        let token = self.tokens.get(self.at + by);
        self.unknown.set(self.unknown.get() || token == Some(&LatexToken::Unknown));
        token
    }

    /// What `rule` reads; where it cannot, nothing is read. Sympy's reader leaves an operator unread whose operand it
    /// cannot read; in an answer nothing may be left, so there it ends the same.
    fn attempt<T>(&mut self, rule: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let (at, depth) = (self.at, self.depth);
        let result = rule(self);
        if result.is_none() {
            (self.at, self.depth) = (at, depth);
        }
        result
    }

    fn sign(&self, sign: char) -> bool {
        self.peek() == Some(&LatexToken::Sign(sign))
    }

    fn command(&self, names: &[&str]) -> bool {
        matches!(self.peek(), Some(LatexToken::Command(name)) if names.contains(&name.as_str()))
    }

    fn take(&mut self, token: &LatexToken) -> Option<()> {
        (self.peek() == Some(token)).then(|| self.at += 1)
    }

    fn take_sign(&mut self, sign: char) -> Option<()> {
        self.take(&LatexToken::Sign(sign))
    }

    /// A rule one level deeper.
    fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        let result = (self.depth < MAX_DEPTH).then(|| rule(self)).flatten();
        self.depth -= 1;
        result
    }

    fn relation(&mut self) -> Option<Expr> {
        let first = self.sum()?;
        let compares = ['=', '<', '>'].iter().any(|sign| self.sign(*sign)) || self.command(&RELATIONS);
        if !compares || self.dialect == Dialect::Answer {
            return Some(first);
        }
        let second = self.attempt(|parser| {
            parser.at += 1;
            parser.sum()
        });
        Some(if second.is_some() { Expr::Relation } else { first })
    }

    pub(super) fn sum(&mut self) -> Option<Expr> {
        let mut terms = vec![self.product(Self::unary)?];
        while self.sign('+') || self.sign('-') {
            let minus = self.sign('-');
            let term = self.attempt(|parser| {
                parser.at += 1;
                parser.product(Self::unary)
            });
            let Some(term) = term else { break };
            terms.push(if minus { Expr::Negative(Box::new(term)) } else { term });
        }
        Some(if terms.len() == 1 { terms.remove(0) } else { Expr::Sum(terms) })
    }

    /// Operands joined by signs of multiplication and division, from the left.
    fn product(&mut self, operand: fn(&mut Self) -> Option<Expr>) -> Option<Expr> {
        let mut left = operand(self)?;
        let mut joined = 0;
        loop {
            let times = self.sign('*') || self.command(&["times", "cdot"]);
            let divided = self.sign('/') || self.sign(':') || self.command(&["div"]);
            if !(times || divided) {
                return Some(left);
            }
            joined += 1;
            let right = self.attempt(|parser| {
                parser.at += 1;
                (joined <= MAX_DEPTH).then(|| operand(parser)).flatten()
            });
            let Some(right) = right else { return Some(left) };
            left = match (left, divided) {
                (left, true) => Expr::Quotient(Box::new(left), Box::new(right)),
                (Expr::Product(mut factors), false) => {
                    factors.push(right);
                    Expr::Product(factors)
                }
                (left, false) => Expr::Product(vec![left, right]),
            };
        }
    }

    fn unary(&mut self) -> Option<Expr> {
        self.signed(Self::unary, |parser| parser.factors(false))
    }

    /// The argument of a function without brackets: no further function joins it.
    fn unary_of_function(&mut self) -> Option<Expr> {
        self.signed(Self::unary_of_function, |parser| parser.factors(true))
    }

    fn signed(
        &mut self,
        again: fn(&mut Self) -> Option<Expr>,
        plain: impl FnOnce(&mut Self) -> Option<Expr>,
    ) -> Option<Expr> {
        if self.take_sign('+').is_some() {
            return self.nested(again);
        }
        if self.take_sign('-').is_some() {
            return Some(Expr::Negative(Box::new(self.nested(again)?)));
        }
        plain(self)
    }

    /// Factors side by side.
    fn factors(&mut self, of_function: bool) -> Option<Expr> {
        let mut factors = vec![self.postfix()?];
        while let Some(token) = self.peek() {
            let opens = matches!(token, LatexToken::Sign('(' | '[' | '{'));
            let bar = *token == LatexToken::Sign('|') && self.bar_opens();
            let call = matches!(token, LatexToken::Command(name) if function(name).is_some() || name == "sqrt" || name == "overline");
            if !(opens || bar || starts_factor(token, self.dialect)) || (of_function && call) {
                break;
            }
            let Some(factor) = self.attempt(Self::postfix) else { break };
            factors.push(factor);
        }
        if self.dialect == Dialect::Answer {
            mixed_number(&mut factors);
        }
        times_written_as_x(&mut factors);
        Some(if factors.len() == 1 { factors.remove(0) } else { Expr::Product(factors) })
    }

    /// Whether the bar here opens an absolute value: none is open, and another bar follows somewhere.
    fn bar_opens(&self) -> bool {
        self.bars == 0 && self.tokens[self.at + 1..].contains(&LatexToken::Sign('|'))
    }

    fn postfix(&mut self) -> Option<Expr> {
        let mut expr = self.power()?;
        let mut marks = 0;
        while self.take_sign('!').is_some() {
            marks += 1;
            if marks > 4 {
                return None;
            }
            expr = Expr::Call(Function::Factorial, vec![expr]);
        }
        Some(expr)
    }

    fn power(&mut self) -> Option<Expr> {
        let mut base = self.nested(Self::primary)?;
        let mut powers = 0;
        while self.sign('^') && powers < 8 {
            powers += 1;
            let exponent = self.attempt(|parser| {
                parser.at += 1;
                let exponent = parser.script()?;
                if parser.take_sign('_').is_some() {
                    parser.script()?;
                }
                Some(exponent)
            });
            let Some(exponent) = exponent else { break };
            base = Expr::Power(Box::new(base), Box::new(exponent));
        }
        Some(base)
    }

    /// What stands behind `^` or `_`: an atom or a group in braces.
    fn script(&mut self) -> Option<Expr> {
        if self.sign('{') {
            return self.group('{', '}');
        }
        if self.dialect == Dialect::Answer {
            if self.take_sign('-').is_some() {
                return Some(Expr::Negative(Box::new(self.nested(Self::script)?)));
            }
            if self.sign('(') {
                return self.group('(', ')');
            }
        }
        self.nested(Self::atom)
    }

    fn group(&mut self, open: char, close: char) -> Option<Expr> {
        let start = self.at;
        if self.stuck.contains(&start) {
            return None;
        }
        self.take_sign(open)?;
        let inner = self.nested(Self::sum);
        let read = inner.filter(|_| self.take_sign(close).is_some());
        if read.is_none() {
            self.stuck.push(start);
        }
        read
    }

    fn primary(&mut self) -> Option<Expr> {
        match self.peek()? {
            LatexToken::Sign('(') => self.group('(', ')'),
            LatexToken::Sign('[') => self.group('[', ']'),
            LatexToken::Sign('{') => self.group('{', '}'),
            LatexToken::Sign('|') => {
                self.bars += 1;
                let inner = self.group('|', '|');
                self.bars -= 1;
                Some(Expr::Call(Function::Abs, vec![inner?]))
            }
            LatexToken::Escaped('{') => {
                self.at += 1;
                let inner = self.sum()?;
                self.take(&LatexToken::Escaped('}'))?;
                Some(inner)
            }
            LatexToken::Command(name) => self.command_primary(name),
            LatexToken::Letter(_) => self.symbol_or_call(),
            _ => self.atom(),
        }
    }
}

mod atom;

/// `1\frac{1}{2}` is one and a half: a whole number directly before a fraction of whole numbers.
fn mixed_number(factors: &mut Vec<Expr>) {
    let whole = matches!(factors.first(), Some(Expr::Number { decimals: 0, .. }));
    let fraction =
        matches!(factors.get(1), Some(Expr::Quotient(a, b)) if a.integer().is_some() && b.integer().is_some());
    if whole && fraction {
        let sum = Expr::Sum(factors.drain(..2).collect());
        factors.insert(0, sum);
    }
}

/// `2x3` is a product of two numbers: `x` between two factors without symbols is a sign.
fn times_written_as_x(factors: &mut Vec<Expr>) {
    let is_sign = |at: usize| {
        matches!(&factors[at], Expr::Symbol(name) if name == "x")
            && !factors[at - 1].has_symbol()
            && !factors[at + 1].has_symbol()
    };
    let signs: Vec<usize> = (1..factors.len().saturating_sub(1)).filter(|at| is_sign(*at)).collect();
    for at in signs.into_iter().rev() {
        factors.remove(at);
    }
}

/// Whether a factor that is no bracket can begin with `token`.
fn starts_factor(token: &LatexToken, dialect: Dialect) -> bool {
    match token {
        LatexToken::Digit(_) | LatexToken::Letter(_) | LatexToken::Differential(_) | LatexToken::Escaped('{') => true,
        LatexToken::Sign('.') => dialect == Dialect::Answer,
        LatexToken::Command(name) => {
            let joins = ["times", "cdot", "div", "to", "rightarrow", "Rightarrow", "rfloor", "rceil", "rangle"];
            !joins.contains(&name.as_str()) && !RELATIONS.contains(&name.as_str())
        }
        _ => false,
    }
}

/// The function that a command names.
fn function(name: &str) -> Option<Function> {
    Some(match name {
        "exp" => Function::Exp,
        "log" | "lg" | "ln" => Function::Log,
        "sin" => Function::Sin,
        "cos" => Function::Cos,
        "tan" => Function::Tan,
        "csc" => Function::Csc,
        "sec" => Function::Sec,
        "cot" => Function::Cot,
        "arcsin" => Function::Arcsin,
        "arccos" => Function::Arccos,
        "arctan" => Function::Arctan,
        "arccsc" => Function::Arccsc,
        "arcsec" => Function::Arcsec,
        "arccot" => Function::Arccot,
        "sinh" => Function::Sinh,
        "cosh" => Function::Cosh,
        "tanh" => Function::Tanh,
        "arsinh" => Function::Arsinh,
        "arcosh" => Function::Arcosh,
        "artanh" => Function::Artanh,
        _ => return None,
    })
}
