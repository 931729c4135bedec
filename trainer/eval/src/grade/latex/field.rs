//! Exact evaluation in two prime fields: equal values there mean equal rational functions, but for a chance below 2^-100.

use super::{Dialect, Expr, Function, hash};

/// 2^61 - 1 and 2^62 - 57.
const PRIMES: [u64; 2] = [(1 << 61) - 1, (1 << 62) - 57];
/// Largest factorial that is multiplied out.
const MAX_FACTORIAL: i64 = 10_000;

/// What an expression is, in these fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldOutcome {
    /// Its residues.
    Value([u64; 2]),
    /// A division by nought, or an infinity.
    Undefined,
    /// It has parts that a field does not know: roots, functions, the imaginary unit.
    Unknown,
}

/// Evaluates with every symbol at a random place of its own.
pub(super) fn evaluate(expr: &Expr, dialect: Dialect) -> FieldOutcome {
    let mut values = [0; 2];
    for (value, prime) in values.iter_mut().zip(PRIMES) {
        match (Field { prime, dialect }).value(expr) {
            Ok(residue) => *value = residue,
            Err(outcome) => return outcome,
        }
    }
    FieldOutcome::Value(values)
}

struct Field {
    prime: u64,
    dialect: Dialect,
}

impl Field {
    fn times(&self, a: u64, b: u64) -> u64 {
        (u128::from(a) * u128::from(b) % u128::from(self.prime)) as u64
    }

    fn plus(&self, a: u64, b: u64) -> u64 {
        ((u128::from(a) + u128::from(b)) % u128::from(self.prime)) as u64
    }

    fn power(&self, mut base: u64, mut exponent: u64) -> u64 {
        let mut result = 1;
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = self.times(result, base);
            }
            base = self.times(base, base);
            exponent >>= 1;
        }
        result
    }

    /// By Fermat's little theorem.
    fn inverse(&self, value: u64) -> Result<u64, FieldOutcome> {
        if value == 0 { Err(FieldOutcome::Undefined) } else { Ok(self.power(value, self.prime - 2)) }
    }

    fn number(&self, digits: &str, decimals: usize) -> Result<u64, FieldOutcome> {
        let whole = digits.bytes().fold(0, |value, digit| self.plus(self.times(value, 10), u64::from(digit - b'0')));
        Ok(self.times(whole, self.inverse(self.power(10, decimals as u64))?))
    }

    fn value(&self, expr: &Expr) -> Result<u64, FieldOutcome> {
        match expr {
            Expr::Number { digits, decimals } => self.number(digits, *decimals),
            Expr::Symbol(name) if name == "i" && self.dialect == Dialect::Answer => Err(FieldOutcome::Unknown),
            // pi and e satisfy no polynomial with whole coefficients, so they are as free here as a letter.
            Expr::Symbol(name) => Ok(hash(name, self.prime) % self.prime),
            Expr::Infinity | Expr::Relation => Err(FieldOutcome::Undefined),
            Expr::Sum(terms) => terms.iter().try_fold(0, |sum, term| Ok(self.plus(sum, self.value(term)?))),
            Expr::Product(factors) => factors.iter().try_fold(1, |product, f| Ok(self.times(product, self.value(f)?))),
            Expr::Negative(inner) => Ok((self.prime - self.value(inner)?) % self.prime),
            Expr::Quotient(top, bottom) => {
                let (top, bottom) = (self.value(top)?, self.value(bottom)?);
                Ok(self.times(top, self.inverse(bottom)?))
            }
            Expr::Power(base, exponent) => {
                let exponent = exponent.integer().ok_or(FieldOutcome::Unknown)?;
                let power = self.power(self.value(base)?, exponent.unsigned_abs());
                if exponent < 0 { self.inverse(power) } else { Ok(power) }
            }
            Expr::Call(Function::Factorial, arguments) => self.factorial(arguments[0].integer()),
            Expr::Call(Function::Binomial, arguments) => self.binomial(arguments[0].integer(), arguments[1].integer()),
            Expr::Root(..) | Expr::Call(..) | Expr::Applied(..) => Err(FieldOutcome::Unknown),
        }
    }

    fn factorial(&self, n: Option<i64>) -> Result<u64, FieldOutcome> {
        let n = n.filter(|n| (0..=MAX_FACTORIAL).contains(n)).ok_or(FieldOutcome::Unknown)?;
        Ok((1..=n).fold(1, |product, factor| self.times(product, factor as u64)))
    }

    fn binomial(&self, n: Option<i64>, k: Option<i64>) -> Result<u64, FieldOutcome> {
        let (Some(n), Some(k)) = (n, k) else { return Err(FieldOutcome::Unknown) };
        if !(0..=n).contains(&k) {
            return Err(FieldOutcome::Unknown);
        }
        let bottom = self.times(self.factorial(Some(k))?, self.factorial(Some(n - k))?);
        Ok(self.times(self.factorial(Some(n))?, self.inverse(bottom)?))
    }
}
