//! Evaluation in complex floating point at random points, for what a field does not know.

use super::{Dialect, Expr, unit};

mod complex;
mod function;

pub(super) use complex::Complex;

/// How many points are tried where there are symbols. Odd points are real, even ones complex; both signs occur.
const POINTS: u64 = 6;
/// Relative difference that rounding may leave, of the values and of the largest value on the way to them.
const OF_VALUE: f64 = 1e-12;
const OF_SCALE: f64 = 1e-14;

/// Whether both have the same value at every point where they are defined, and there is such a point.
pub(super) fn equal(a: &Expr, b: &Expr, dialect: Dialect) -> bool {
    let points = if a.has_symbol() || b.has_symbol() { POINTS } else { 1 };
    (0..points).all(|point| {
        let mut at = ExprEvaluator { point, dialect, scale: 0.0 };
        let (a, b) = (at.value(a), at.value(b));
        let near = OF_VALUE * (a.abs() + b.abs()) + OF_SCALE * at.scale;
        // False for a value that is not a number, and for infinities.
        a.minus(b).abs() <= near && near.is_finite()
    })
}

/// The value of an answer, where it is one real number.
pub(super) fn real_value(expr: &Expr) -> Option<f64> {
    let value = ExprEvaluator { point: 0, dialect: Dialect::Answer, scale: 0.0 }.value(expr);
    let real = value.re.is_finite() && value.im.abs() <= OF_VALUE * value.re.abs().max(1.0);
    (real && only_constants(expr)).then_some(value.re)
}

fn only_constants(expr: &Expr) -> bool {
    match expr {
        Expr::Symbol(name) => ["pi", "e", "i"].contains(&name.as_str()),
        Expr::Applied(..) => false,
        Expr::Number { .. } | Expr::Infinity | Expr::Relation => true,
        Expr::Sum(all) | Expr::Product(all) | Expr::Call(_, all) => all.iter().all(only_constants),
        Expr::Negative(one) => only_constants(one),
        Expr::Quotient(a, b) | Expr::Power(a, b) | Expr::Root(a, b) => only_constants(a) && only_constants(b),
    }
}

struct ExprEvaluator {
    point: u64,
    dialect: Dialect,
    /// The largest magnitude met: sums that cancel leave a rounding error of its size.
    scale: f64,
}

impl ExprEvaluator {
    fn value(&mut self, expr: &Expr) -> Complex {
        let value = self.plain(expr);
        if value.abs() > self.scale {
            self.scale = value.abs();
        }
        value
    }

    fn plain(&mut self, expr: &Expr) -> Complex {
        match expr {
            Expr::Number { digits, decimals } => {
                let value: f64 = format!("{digits}e-{decimals}").parse().unwrap_or(f64::NAN);
                Complex::real(value)
            }
            Expr::Symbol(name) => self.symbol(name),
            Expr::Infinity | Expr::Relation => Complex::real(f64::NAN),
            Expr::Sum(terms) => terms.iter().fold(Complex::real(0.0), |sum, term| sum.plus(self.value(term))),
            Expr::Product(factors) => {
                factors.iter().fold(Complex::real(1.0), |product, f| product.times(self.value(f)))
            }
            Expr::Negative(inner) => Complex::real(0.0).minus(self.value(inner)),
            Expr::Quotient(top, bottom) => self.value(top).over(self.value(bottom)),
            Expr::Power(base, exponent) => {
                let base = self.value(base);
                match exponent.integer() {
                    Some(whole) => base.whole_power(whole),
                    None => base.power(self.value(exponent)),
                }
            }
            Expr::Root(radicand, index) => self.root(radicand, index),
            Expr::Call(function, arguments) => {
                let arguments: Vec<Complex> = arguments.iter().map(|argument| self.value(argument)).collect();
                function::call(*function, &arguments)
            }
            Expr::Applied(name, arguments) => self.applied(name, arguments),
        }
    }

    fn symbol(&self, name: &str) -> Complex {
        if self.dialect == Dialect::Answer {
            match name {
                "pi" => return Complex::real(std::f64::consts::PI),
                "e" => return Complex::real(std::f64::consts::E),
                "i" => return Complex { re: 0.0, im: 1.0 },
                _ => {}
            }
        }
        let part = |which: u64| 4.0 * unit(name, self.point * 2 + which) - 2.0;
        Complex { re: part(0), im: if self.point % 2 == 1 { 0.0 } else { part(1) } }
    }

    fn root(&mut self, radicand: &Expr, index: &Expr) -> Complex {
        let (value, n) = (self.value(radicand), index.integer());
        if n == Some(2) {
            return value.sqrt();
        }
        // An odd root of a negative number is real to a person; sympy takes the principal one.
        let odd = n.is_some_and(|n| n % 2 != 0);
        if self.dialect == Dialect::Answer && odd && value.im == 0.0 && value.re < 0.0 {
            return Complex::real(-(-value.re).powf(1.0 / n.unwrap_or(1) as f64));
        }
        let index = self.value(index);
        value.power(Complex::real(1.0).over(index))
    }

    /// A smooth function of its own for each name, so that equal calls have equal values and unequal ones do not.
    fn applied(&mut self, name: &str, arguments: &[Expr]) -> Complex {
        let start = Complex::real(unit(name, 100));
        arguments.iter().enumerate().fold(start, |sum, (at, argument)| {
            let slope = Complex::real(0.5 + unit(name, 101 + at as u64));
            sum.plus(self.value(argument).times(slope).plus(start).sin())
        })
    }
}
