//! The known functions of complex numbers.

use super::super::Function;
use super::Complex;

fn one() -> Complex {
    Complex::real(1.0)
}

/// The value of `function`. Not a number where it has none.
pub(super) fn call(function: Function, arguments: &[Complex]) -> Complex {
    let z = arguments[0];
    match function {
        Function::Abs => Complex::real(z.abs()),
        Function::Floor => Complex { re: z.re.floor(), im: z.im.floor() },
        Function::Ceil => Complex { re: z.re.ceil(), im: z.im.ceil() },
        Function::Factorial => Complex::real(factorial(z)),
        Function::Binomial => {
            Complex::real(factorial(z) / (factorial(arguments[1]) * factorial(z.minus(arguments[1]))))
        }
        Function::Conjugate => Complex { re: z.re, im: -z.im },
        Function::Exp => z.exp(),
        Function::Log => z.ln().over(arguments[1].ln()),
        Function::Sin => z.sin(),
        Function::Cos => z.cos(),
        Function::Tan => z.sin().over(z.cos()),
        Function::Csc => one().over(z.sin()),
        Function::Sec => one().over(z.cos()),
        Function::Cot => z.cos().over(z.sin()),
        Function::Arcsin => arcsin(z),
        Function::Arccos => arccos(z),
        Function::Arctan => arctan(z),
        Function::Arccsc => arcsin(one().over(z)),
        Function::Arcsec => arccos(one().over(z)),
        Function::Arccot => arctan(one().over(z)),
        Function::Sinh => minus_turned(z.turned().sin()),
        Function::Cosh => z.turned().cos(),
        Function::Tanh => minus_turned(z.turned().sin().over(z.turned().cos())),
        Function::Arsinh => z.plus(z.times(z).plus(one()).sqrt()).ln(),
        Function::Arcosh => z.plus(z.plus(one()).sqrt().times(z.minus(one()).sqrt())).ln(),
        Function::Artanh => one().plus(z).ln().minus(one().minus(z).ln()).times(Complex::real(0.5)),
    }
}

/// Times minus the imaginary unit.
fn minus_turned(z: Complex) -> Complex {
    Complex { re: z.im, im: -z.re }
}

fn arcsin(z: Complex) -> Complex {
    minus_turned(z.turned().plus(one().minus(z.times(z)).sqrt()).ln())
}

fn arccos(z: Complex) -> Complex {
    Complex::real(std::f64::consts::FRAC_PI_2).minus(arcsin(z))
}

fn arctan(z: Complex) -> Complex {
    let (below, above) = (one().minus(z.turned()).ln(), one().plus(z.turned()).ln());
    below.minus(above).turned().times(Complex::real(0.5))
}

/// Of a whole number that a float can hold the factorial of.
fn factorial(n: Complex) -> f64 {
    if n.im != 0.0 || n.re.fract() != 0.0 || !(0.0..=170.0).contains(&n.re) {
        return f64::NAN;
    }
    (1..=n.re as u32).map(f64::from).product()
}
