//! Mathematics in LaTeX: parsed, and compared exactly where that is possible.
//!
//! Two [`Dialect`]s share the tokens, the tree and the evaluator:
//!
//! - [`Dialect::Sympy`] reads what `sympy.parsing.latex.parse_latex` (1.14, the ANTLR grammar) reads, with its habits: the
//!   text after a complete expression is left unread (`11_6` is 11 and `1,2` is 1), `\pi`, `e` and `i` are free symbols,
//!   `x(2)` is a function call, `\sqrt3` and `.5` are errors. lm-evaluation-harness's `minerva_math` compares with it, and
//!   equal scores need equal habits.
//! - [`Dialect::Answer`] reads a final answer: all of the text or nothing, `\pi`, `e` and `i` are the constants, `1\frac12`
//!   is a mixed number, `.5`, `\sqrt3` and `\frac12` are read as TeX does, `a(b+1)` is a product.
//!
//! Two expressions are equal when they have the same value. Where only numbers, symbols, `+ - * /` and whole powers occur,
//! both are evaluated in two prime fields with the symbols at random places: numbers of any length compare exactly, and
//! polynomials and quotients of polynomials by canonical value (a false "equal" has a chance below 2^-100). With roots,
//! logarithms or angles they are evaluated in complex floating point at several random points, to about 12 digits.

mod field;
mod lexer;
mod number;
mod parser;

pub use parser::parse;

/// Which reader's rules hold. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// As `sympy.parsing.latex` reads.
    Sympy,
    /// As a person reads a final answer.
    Answer,
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// Digits without sign; the last `decimals` of them stand behind the point.
    Number {
        /// Decimal digits, at least one.
        digits: String,
        /// How many of them are decimals.
        decimals: usize,
    },
    /// A letter, or a command without its backslash, with its index and primes.
    Symbol(String),
    /// `\infty`.
    Infinity,
    /// Terms.
    Sum(Vec<Expr>),
    /// Factors.
    Product(Vec<Expr>),
    /// Minus.
    Negative(Box<Expr>),
    /// Numerator, denominator.
    Quotient(Box<Expr>, Box<Expr>),
    /// Base, exponent.
    Power(Box<Expr>, Box<Expr>),
    /// Radicand, index.
    Root(Box<Expr>, Box<Expr>),
    /// A known function.
    Call(Function, Vec<Expr>),
    /// An unknown function, by name.
    Applied(String, Vec<Expr>),
    /// A comparison: never equal to a value.
    Relation,
}

/// The functions that can be evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the function of that name")]
pub enum Function {
    Abs,
    Floor,
    Ceil,
    Factorial,
    Binomial,
    Conjugate,
    Exp,
    /// Argument, base.
    Log,
    Sin,
    Cos,
    Tan,
    Csc,
    Sec,
    Cot,
    Arcsin,
    Arccos,
    Arctan,
    Arccsc,
    Arcsec,
    Arccot,
    Sinh,
    Cosh,
    Tanh,
    Arsinh,
    Arcosh,
    Artanh,
}

impl Expr {
    /// A whole number.
    pub(crate) fn whole(value: u64) -> Self {
        Self::Number { digits: value.to_string(), decimals: 0 }
    }

    /// The value, where it is a whole number that fits.
    pub(crate) fn integer(&self) -> Option<i64> {
        match self {
            Self::Number { digits, decimals: 0 } => digits.parse().ok(),
            Self::Negative(inner) => inner.integer()?.checked_neg(),
            Self::Sum(terms) => terms.iter().try_fold(0i64, |sum, term| sum.checked_add(term.integer()?)),
            Self::Product(factors) => factors.iter().try_fold(1i64, |product, f| product.checked_mul(f.integer()?)),
            Self::Quotient(top, bottom) => {
                let (top, bottom) = (top.integer()?, bottom.integer()?);
                (top.checked_rem(bottom)? == 0).then(|| top / bottom)
            }
            _ => None,
        }
    }

    /// A number as it is written, perhaps with a minus, and how many decimals it has.
    fn decimal(&self) -> Option<(f64, usize)> {
        match self {
            Self::Number { digits, decimals } => Some((format!("{digits}e-{decimals}").parse().ok()?, *decimals)),
            Self::Negative(inner) => inner.decimal().map(|(value, decimals)| (-value, decimals)),
            _ => None,
        }
    }

    fn has_symbol(&self) -> bool {
        match self {
            Self::Symbol(_) | Self::Applied(..) => true,
            Self::Number { .. } | Self::Infinity | Self::Relation => false,
            Self::Sum(all) | Self::Product(all) | Self::Call(_, all) => all.iter().any(Self::has_symbol),
            Self::Negative(one) => one.has_symbol(),
            Self::Quotient(a, b) | Self::Power(a, b) | Self::Root(a, b) => a.has_symbol() || b.has_symbol(),
        }
    }
}

/// Whether two expressions have the same value. Infinite and undefined values equal nothing, as in sympy.
pub fn equal(a: &Expr, b: &Expr, dialect: Dialect) -> bool {
    match (field::evaluate(a, dialect), field::evaluate(b, dialect)) {
        (field::FieldOutcome::Value(a), field::FieldOutcome::Value(b)) => a == b,
        (field::FieldOutcome::Undefined, _) | (_, field::FieldOutcome::Undefined) => false,
        _ => number::equal(a, b, dialect),
    }
}

/// Whether `decimal` is a number written with six decimals or more, and `value`, which is not, rounds to it.
pub fn rounds_to(value: &Expr, decimal: &Expr) -> bool {
    let Some((written, decimals)) = decimal.decimal().filter(|(_, decimals)| *decimals >= 6) else { return false };
    let Some(value) = Some(value).filter(|value| value.decimal().is_none()).and_then(number::real_value) else {
        return false;
    };
    // Half a unit of the last place, and what a float leaves.
    (value - written).abs() <= 0.500_001 * 10f64.powi(-(decimals as i32)) + f64::EPSILON * value.abs() * 4.0
}

/// A number in 0..1 that depends on `name` and `point` only.
fn unit(name: &str, point: u64) -> f64 {
    (hash(name, point) >> 11) as f64 / (1u64 << 53) as f64
}

/// FNV-1a over the name and the point, then the finaliser of splitmix64.
fn hash(name: &str, point: u64) -> u64 {
    let seeded = name.bytes().chain(point.to_le_bytes());
    let mut h = seeded.fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

#[cfg(test)]
mod tests;
