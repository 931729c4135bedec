use super::{Dialect, equal, parse};

fn same(a: &str, b: &str, dialect: Dialect) -> Option<bool> {
    Some(equal(&parse(a, dialect)?, &parse(b, dialect)?, dialect))
}

#[test]
fn sympy_leaves_the_rest_unread() {
    for (text, read) in [
        ("11_6", "11"),
        ("1,2", "1"),
        ("2-", "2"),
        ("1{,}000", "1"),
        ("5|6", "5"),
        ("2^-1", "2"),
        ("1)", "1"),
        ("4.5.", "4.5"),
    ] {
        assert_eq!(same(text, read, Dialect::Sympy), Some(true), "{text}");
    }
    for text in [
        "(1,2)",
        r"50\%",
        r"\sqrt3",
        "",
        ".5",
        "5.",
        "5;6",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        "é",
        r"5\",
        "1+5.",
        "2,1\\%",
    ] {
        assert_eq!(parse(text, Dialect::Sympy), None, "{text}");
    }
}

#[test]
fn sympy_takes_letters_for_symbols() {
    for (a, b) in
        [("AB", "BA"), (r"3\pi", r"\pi3"), ("2x3", "6"), ("f(x)", "f(x+0)"), (r"\sin^2x+\cos^2x", "1"), ("3:4", "3/4")]
    {
        assert_eq!(same(a, b, Dialect::Sympy), Some(true), "{a} {b}");
    }
    for (a, b) in [
        (r"\pi", "3.14159265358979"),
        ("i^2", "-1"),
        (r"\sqrt{x^2}", "x"),
        ("f(x)", "f(y)"),
        ("x(2)", "2x"),
        ("dx", "xd"),
    ] {
        assert_eq!(same(a, b, Dialect::Sympy), Some(false), "{a} {b}");
    }
}

#[test]
fn values_are_exact() {
    let big = "1".repeat(300);
    assert_eq!(same(&format!("{big}1"), &format!("{big}2"), Dialect::Sympy), Some(false));
    assert_eq!(same(&format!("{big}1"), &format!("{big}0+1"), Dialect::Sympy), Some(true));
    assert_eq!(same("10^{400}", "10^{400}+1", Dialect::Sympy), Some(false));
    assert_eq!(same("0.1+0.2", "0.3", Dialect::Answer), Some(true));
    assert_eq!(same("0.30000000000000001", "0.3", Dialect::Answer), Some(false));
    assert_eq!(same(r"\frac{x^2-1}{x-1}", "x+1", Dialect::Answer), Some(true));
    assert_eq!(same(r"\frac{1}{0}", r"\frac{1}{0}", Dialect::Answer), Some(false));
}

#[test]
fn functions_have_their_values() {
    let cases = [
        (r"\log_2 8", "3"),
        (r"\ln e^2", "2"),
        (r"\lg 1000", "3"),
        (r"\sin\frac{\pi}{6}", "0.5"),
        (r"\arctan 1", r"\frac{\pi}{4}"),
        (r"\tan^{-1} 1", r"\frac{\pi}{4}"),
        (r"\arcsin 1", r"\pi/2"),
        (r"\arccos 0", r"\pi/2"),
        (r"\cosh 0", "1"),
        (r"\sinh 1", r"\frac{e-e^{-1}}{2}"),
        (r"\tanh(\artanh(0.3))", "0.3"),
        (r"\arsinh(\sinh 2)", "2"),
        (r"\arcosh(\cosh 2)", "2"),
        (r"\sec 0 + \csc\frac{\pi}{2} + \cot\frac{\pi}{4}", "3"),
        (r"\lfloor 2.5\rfloor + \lceil 2.5 \rceil", "5"),
        (r"|-3|", "3"),
        (r"|3+4i|", "5"),
        (r"\exp(0)", "1"),
        (r"i^2", "-1"),
        (r"\sqrt{-4}", "2i"),
        (r"(1+i)^2", "2i"),
        (r"\overline{3+4i}", "3-4i"),
        (r"8^{1/3}", "2"),
        (r"\arccsc 1 + \arcsec 1 + \arccot 1", r"\frac{3\pi}{4}"),
    ];
    for (text, value) in cases {
        assert_eq!(same(text, value, Dialect::Answer), Some(true), "{text} = {value}");
        assert_eq!(same(text, &format!("{value}+0.001"), Dialect::Answer), Some(false), "{text} = {value}");
    }
}
