//! Equality of final answers as mathematics.
//!
//! [`math_equal`] is symmetric and, for text that is not empty, reflexive. It sees:
//!
//! - values, exactly where [`super::latex`] can: fractions, decimals, mixed numbers, roots, `\pi`, polynomials;
//! - an answer with or without its name (`x=5` and `5`, `x \in [2,5]` and `[2,5]`, `y=2x+3` and `2x+3`);
//! - equations up to a constant factor, inequalities in one name as intervals;
//! - tuples and intervals (in order, with their brackets), sets and lists (in any order), unions, matrices, `a \pm b` as the
//!   list of both;
//! - numbers in another base with their index, or without it on one side;
//! - units, degrees, currency and words around a value, removed; per cent as the number or its hundredth;
//! - words, without regard to case.
//!
//! A decimal with at least six decimals stands for every value that rounds to it, as in math_verify; a shorter one does not:
//! `0.33` is not a third.

mod clean;
mod shape;

use super::latex::{self, Dialect, Expr};
use clean::{Cleaned, clean};
use shape::AnswerShape;

/// Longest text that is read, in bytes; longer ones are equal only where they are the same.
const MAX_LEN: usize = 4096;

/// Whether two final answers, in LaTeX or plain, say the same. An empty answer equals nothing.
#[must_use]
pub fn math_equal(a: &str, b: &str) -> bool {
    if a.len().max(b.len()) > MAX_LEN {
        return a == b;
    }
    let (a, b) = (clean(a), clean(b));
    if a.text.is_empty() || b.text.is_empty() {
        return false;
    }
    // Case matters to a name of a value, not to words.
    let words = a.words || b.words;
    if letters(&a.text) == letters(&b.text) || (words && letters(&a.text).eq_ignore_ascii_case(&letters(&b.text))) {
        return true;
    }
    let (left, right) = (shape::read(&a.text), shape::read(&b.text));
    same(&left, &right) || (a.percent != b.percent && same(&per_cent(left, &a), &per_cent(right, &b)))
}

/// Without white space and the marks that words may come in.
fn letters(text: &str) -> String {
    let bare = text.split_whitespace().collect::<String>();
    let inner = bare.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    inner.filter(|inner| inner.len() == 1).map_or(bare.clone(), str::to_owned)
}

fn per_cent(shape: AnswerShape, of: &Cleaned) -> AnswerShape {
    match shape {
        AnswerShape::Value(value) if of.percent => {
            AnswerShape::Value(Expr::Quotient(Box::new(value), Box::new(Expr::whole(100))))
        }
        other => other,
    }
}

fn same(a: &AnswerShape, b: &AnswerShape) -> bool {
    match (a, b) {
        (AnswerShape::Value(a), AnswerShape::Value(b)) => {
            latex::equal(a, b, Dialect::Answer) || latex::rounds_to(a, b) || latex::rounds_to(b, a)
        }
        (AnswerShape::Infinite(a), AnswerShape::Infinite(b)) => a == b,
        (AnswerShape::Unread(a), AnswerShape::Unread(b)) => a == b,
        (AnswerShape::Named(name, value), AnswerShape::Named(other, right)) => {
            (name == other && same(value, right)) || same_equation(a, b)
        }
        (AnswerShape::Named(_, value), other) | (other, AnswerShape::Named(_, value))
            if !matches!(other, AnswerShape::Equation(..)) =>
        {
            same(value, other)
        }
        (AnswerShape::Named(..) | AnswerShape::Equation(..), AnswerShape::Named(..) | AnswerShape::Equation(..)) => {
            same_equation(a, b)
        }
        (AnswerShape::Ordered(open, close, left), AnswerShape::Ordered(other_open, other_close, right)) => {
            open == other_open && close == other_close && in_order(left, right)
        }
        (AnswerShape::Set(left), AnswerShape::Set(right))
        | (AnswerShape::List(left), AnswerShape::List(right))
        | (AnswerShape::Set(left), AnswerShape::List(right))
        | (AnswerShape::List(left), AnswerShape::Set(right))
        | (AnswerShape::Union(left), AnswerShape::Union(right)) => in_any_order(left, right),
        (AnswerShape::Matrix(left), AnswerShape::Matrix(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| in_order(left, right))
        }
        (AnswerShape::InBase(digits, base), AnswerShape::InBase(other, other_base)) => {
            digits == other && base == other_base
        }
        (AnswerShape::InBase(digits, _), AnswerShape::Value(value))
        | (AnswerShape::Value(value), AnswerShape::InBase(digits, _)) => {
            matches!(value, Expr::Number { digits: written, decimals: 0 } if written == digits)
        }
        // `x > 2` is the interval from 2, so it equals that interval and any way to write it.
        (AnswerShape::Compared(left), AnswerShape::Compared(right)) => {
            left.name == right.name && same(&left.interval, &right.interval)
        }
        (AnswerShape::Compared(one), other) | (other, AnswerShape::Compared(one)) => same(&one.interval, other),
        _ => false,
    }
}

fn in_order(left: &[AnswerShape], right: &[AnswerShape]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
}

/// Each on the left has a partner of its own on the right.
fn in_any_order(left: &[AnswerShape], right: &[AnswerShape]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut free: Vec<&AnswerShape> = right.iter().collect();
    left.iter().all(|one| {
        let found = free.iter().position(|other| same(one, other));
        found.map(|at| free.swap_remove(at)).is_some()
    })
}

/// `2x = 4y` and `x - 2y = 0`: the differences of the sides have a constant quotient.
fn same_equation(a: &AnswerShape, b: &AnswerShape) -> bool {
    let (Some(a), Some(b)) = (a.difference(), b.difference()) else { return false };
    let quotient = |a: Expr, b: Expr| Expr::Quotient(Box::new(a), Box::new(b));
    let elsewhere = quotient(moved(&a), moved(&b));
    latex::equal(&quotient(a, b), &elsewhere, Dialect::Answer)
}

/// The same expression in other symbols, so that it is evaluated at another place.
fn moved(expr: &Expr) -> Expr {
    let all = |many: &[Expr]| many.iter().map(moved).collect();
    let one = |inner: &Expr| Box::new(moved(inner));
    match expr {
        Expr::Symbol(name) if ["pi", "e", "i"].contains(&name.as_str()) => expr.clone(),
        Expr::Symbol(name) => Expr::Symbol(format!("{name} elsewhere")),
        Expr::Number { .. } | Expr::Infinity | Expr::Relation => expr.clone(),
        Expr::Sum(terms) => Expr::Sum(all(terms)),
        Expr::Product(factors) => Expr::Product(all(factors)),
        Expr::Negative(inner) => Expr::Negative(one(inner)),
        Expr::Quotient(a, b) => Expr::Quotient(one(a), one(b)),
        Expr::Power(a, b) => Expr::Power(one(a), one(b)),
        Expr::Root(a, b) => Expr::Root(one(a), one(b)),
        Expr::Call(function, arguments) => Expr::Call(*function, all(arguments)),
        Expr::Applied(name, arguments) => Expr::Applied(name.clone(), all(arguments)),
    }
}

#[cfg(test)]
mod tests;
