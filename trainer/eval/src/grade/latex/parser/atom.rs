//! Numbers, symbols, fractions, roots and functions.

use super::super::lexer::LatexToken;
use super::super::{Dialect, Expr, Function};
use super::{LatexParser, function};

impl LatexParser<'_> {
    pub(super) fn atom(&mut self) -> Option<Expr> {
        match self.peek()? {
            LatexToken::Digit(_) | LatexToken::Sign('.') => self.number(),
            LatexToken::Letter(letter) => {
                let name = letter.to_string();
                self.at += 1;
                self.indexed(name).map(Expr::Symbol)
            }
            LatexToken::Differential(of) => {
                let name = format!("d{of}");
                self.at += 1;
                Some(Expr::Symbol(name))
            }
            LatexToken::Command(name) => self.command_atom(name),
            _ => None,
        }
    }

    fn digits(&mut self) -> String {
        let mut digits = String::new();
        while let Some(LatexToken::Digit(digit)) = self.peek() {
            digits.push(*digit);
            self.at += 1;
        }
        digits
    }

    /// `1234`, `1,234`, `12.5`; in an answer also `.5`.
    fn number(&mut self) -> Option<Expr> {
        let mut digits = self.digits();
        if digits.is_empty() && self.dialect == Dialect::Sympy {
            return None;
        }
        while self.sign(',') && !digits.is_empty() && self.three_digits_follow() {
            self.at += 1;
            for _ in 0..3 {
                if let Some(LatexToken::Digit(digit)) = self.peek() {
                    digits.push(*digit);
                }
                self.at += 1;
            }
        }
        let mut decimals = 0;
        if self.sign('.') {
            self.at += 1;
            let behind = self.digits();
            if behind.is_empty() && self.dialect == Dialect::Sympy {
                // No reader steps back from a point that no digits follow.
                self.unknown.set(true);
            }
            if behind.is_empty() && digits.is_empty() {
                return None;
            }
            decimals = behind.len();
            digits += &behind;
        }
        Some(Expr::Number { digits, decimals })
    }

    fn three_digits_follow(&self) -> bool {
        let digit = |ahead: usize| matches!(self.ahead(ahead), Some(LatexToken::Digit(_)));
        // Four digits after the comma are no group; sympy's grammar reads three of them.
        (1..=3).all(digit) && !(self.dialect == Dialect::Answer && digit(4))
    }

    /// A name with the index and primes behind it.
    fn indexed(&mut self, mut name: String) -> Option<String> {
        for _ in 0..2 {
            if self.take_sign('_').is_some() {
                name += &format!("_{:?}", self.script()?);
            }
            while self.take_sign('\'').is_some() {
                name.push('\'');
            }
        }
        Some(name)
    }

    /// A letter or an unknown command: a symbol, or a function where brackets follow it.
    pub(super) fn symbol_or_call(&mut self) -> Option<Expr> {
        let symbol = self.atom()?;
        let Expr::Symbol(name) = symbol else { return Some(symbol) };
        let called = self.dialect == Dialect::Sympy || ["f", "g", "h"].contains(&name.as_str());
        if !(called && self.sign('(')) {
            return Some(Expr::Symbol(name));
        }
        let start = self.at;
        let arguments = self.attempt(Self::arguments);
        if arguments.is_none() {
            self.stuck.push(start);
        }
        Some(match arguments {
            Some(arguments) => Expr::Applied(name, arguments),
            None => Expr::Symbol(name),
        })
    }

    fn arguments(&mut self) -> Option<Vec<Expr>> {
        self.take_sign('(')?;
        let mut arguments = vec![self.nested(Self::sum)?];
        while self.take_sign(',').is_some() {
            arguments.push(self.nested(Self::sum)?);
        }
        self.take_sign(')')?;
        Some(arguments)
    }

    pub(super) fn command_primary(&mut self, name: &str) -> Option<Expr> {
        if let Some(function) = function(name) {
            self.at += 1;
            return self.call(function, name);
        }
        match name {
            "sqrt" => self.root(),
            "overline" => {
                self.at += 1;
                Some(Expr::Call(Function::Conjugate, vec![self.group('{', '}')?]))
            }
            "lfloor" | "lceil" => {
                self.at += 1;
                let inner = self.nested(Self::sum)?;
                let floor = name == "lfloor";
                self.take(&LatexToken::Command(if floor { "rfloor" } else { "rceil" }.into()))?;
                Some(Expr::Call(if floor { Function::Floor } else { Function::Ceil }, vec![inner]))
            }
            // Read by sympy as what they are; no answer is a sum, an integral or a limit that was not worked out.
            "sum" | "prod" | "int" | "lim" | "langle" => None,
            "frac" | "dfrac" | "tfrac" | "binom" | "dbinom" | "tbinom" | "mathit" | "infty" => self.atom(),
            _ => self.symbol_or_call(),
        }
    }

    fn command_atom(&mut self, name: &str) -> Option<Expr> {
        match name {
            "frac" | "dfrac" | "tfrac" => {
                self.at += 1;
                let top = self.braced_or_digit()?;
                let bottom = self.braced_or_digit()?;
                Some(Expr::Quotient(Box::new(top), Box::new(bottom)))
            }
            "binom" | "dbinom" | "tbinom" => {
                self.at += 1;
                let n = self.group('{', '}')?;
                let k = self.group('{', '}')?;
                Some(Expr::Call(Function::Binomial, vec![n, k]))
            }
            "mathit" => {
                self.at += 1;
                self.take_sign('{')?;
                let mut name = String::new();
                while let Some(LatexToken::Letter(letter)) = self.peek() {
                    name.push(*letter);
                    self.at += 1;
                }
                self.take_sign('}')?;
                Some(Expr::Symbol(name))
            }
            "infty" => {
                self.at += 1;
                Some(Expr::Infinity)
            }
            "sqrt" if self.dialect == Dialect::Answer => self.root(),
            _ if function(name).is_some() || ["sqrt", "overline", "rfloor", "rceil", "rangle"].contains(&name) => None,
            _ => {
                self.at += 1;
                self.indexed(name.to_owned()).map(Expr::Symbol)
            }
        }
    }

    /// An argument of `\frac` or, in an answer, of `\sqrt`: braces, or one sign as TeX takes it.
    fn braced_or_digit(&mut self) -> Option<Expr> {
        match self.peek()? {
            LatexToken::Sign('{') => self.group('{', '}'),
            LatexToken::Digit(digit) => {
                let digits = digit.to_string();
                self.at += 1;
                Some(Expr::Number { digits, decimals: 0 })
            }
            LatexToken::Letter(letter) if self.dialect == Dialect::Answer => {
                let name = letter.to_string();
                self.at += 1;
                Some(Expr::Symbol(name))
            }
            LatexToken::Command(_) if self.dialect == Dialect::Answer => self.nested(Self::atom),
            _ => None,
        }
    }

    fn root(&mut self) -> Option<Expr> {
        self.at += 1;
        let index = if self.sign('[') { self.group('[', ']')? } else { Expr::whole(2) };
        let radicand = match self.dialect {
            Dialect::Sympy => self.group('{', '}')?,
            Dialect::Answer => self.braced_or_digit()?,
        };
        Some(Expr::Root(Box::new(radicand), Box::new(index)))
    }

    /// Index or exponent of a function: of `\log_28`, one digit.
    fn function_script(&mut self) -> Option<Expr> {
        if let Some(LatexToken::Digit(digit)) = self.peek() {
            self.at += 1;
            return Some(Expr::Number { digits: digit.to_string(), decimals: 0 });
        }
        self.script()
    }

    /// A function after its name: index and exponent in either order, then the argument.
    fn call(&mut self, function: Function, name: &str) -> Option<Expr> {
        let (mut base, mut exponent) = (None, None);
        for _ in 0..2 {
            if self.sign('_') {
                self.at += 1;
                base = Some(self.function_script()?);
            } else if self.sign('^') {
                self.at += 1;
                exponent = Some(self.function_script()?);
            }
        }
        let argument = if self.sign('(') {
            self.group('(', ')')?
        } else {
            self.nested(|parser| parser.product(Self::unary_of_function))?
        };
        let mut arguments = vec![argument];
        if function == Function::Log {
            let default = if name == "lg" { Expr::whole(10) } else { Expr::Call(Function::Exp, vec![Expr::whole(1)]) };
            arguments.push(base.unwrap_or(default));
        }
        let inverse = if exponent.as_ref().and_then(Expr::integer) == Some(-1) { inverse(function) } else { None };
        Some(match (inverse, exponent) {
            (Some(inverse), _) => Expr::Call(inverse, arguments),
            (None, Some(exponent)) => Expr::Power(Box::new(Expr::Call(function, arguments)), Box::new(exponent)),
            (None, None) => Expr::Call(function, arguments),
        })
    }
}

fn inverse(function: Function) -> Option<Function> {
    Some(match function {
        Function::Sin => Function::Arcsin,
        Function::Cos => Function::Arccos,
        Function::Tan => Function::Arctan,
        Function::Csc => Function::Arccsc,
        Function::Sec => Function::Arcsec,
        Function::Cot => Function::Arccot,
        Function::Sinh => Function::Arsinh,
        Function::Cosh => Function::Arcosh,
        Function::Tanh => Function::Artanh,
        _ => return None,
    })
}
