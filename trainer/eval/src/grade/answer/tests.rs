use super::math_equal;

fn check(pairs: &[(&str, &str)], equal: bool) {
    for (a, b) in pairs {
        assert_eq!(math_equal(a, b), equal, "{a} and {b}");
        assert_eq!(math_equal(b, a), equal, "{b} and {a}");
    }
}

#[test]
fn the_same_value_in_other_words() {
    check(
        &[
            (r"\frac{14}{3}", "14/3"),
            (r"1\frac{4}{5}", "1.8"),
            (r"137 \frac{1}{2}", r"\frac{275}{2}"),
            (r"-1\frac{4}{5}", "-1.8"),
            (r"\$32,\!348", "32348"),
            (r"10,\!080", "10080"),
            (r"11,\! 111,\! 111,\! 100", "11111111100"),
            (r"\$18.90", "18.9 dollars"),
            (r"5.4 \text{ cents}", "5.4"),
            (r"15\mbox{ cm}^2", r"15 \text{ cm}^{2}"),
            (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}^\circ"),
            (r"50\%", "0.5"),
            (r"50\%", "50"),
            (".0000672", r"6.72 \times 10^{-5}"),
            (r"70 \sqrt{2}", r"\sqrt{9800}"),
            (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
            (r"\frac 59", r"\dfrac{5}{9}"),
            (r"\frac9{19}", "9/19"),
            (r"e^{i\pi}", "-1"),
            (r"\sqrt[3]{-8}", "-2"),
            (r"\cos 60^\circ", r"\cos(60)"),
            ("x^5 - x^4 + x^3", "x^3(x^2-x+1)"),
            ("(a+5)(b+2)", "ab+2a+5b+10"),
            ("2^{200}+1", "1606938044258990275541962092341162602522202993782792835301377"),
            ("-2 + 7i", "7i - 2"),
            (r"\$\frac{1}{2}\$", "0.5"),
            ("10!", "3628800"),
            (r"\binom{10}{3}", "120"),
            ("5.", "5"),
            (r"\frac{1}{3}", "0.3333333333333333"),
            (r"-\sqrt{2}", "-1.414214"),
            ("137 1/2", r"137 \frac{1}{2}"),
            (r"\text{\frac{7}{2}}", "3.5"),
            (r"(4210_{5})", "4210_5"),
        ],
        true,
    );
}

#[test]
fn another_value() {
    check(
        &[
            (r"\frac{1}{3}", "0.33"),
            (r"\frac{1}{3}", "0.333334"),
            (r"\frac{1}{3}", "0.33333"),
            ("0.333333", "0.3333333"),
            ("5", "-5"),
            ("5", "50"),
            (r"50\%", "0.05"),
            (r"50\%", "5"),
            (r"\pi", "3.14"),
            ("1,234", "1.234"),
            ("x^2", "x^3"),
            ("x", "X"),
            ("2^{200}+1", "2^{200}"),
            (r"1\frac{4}{5}", r"\frac{4}{5}"),
            (r"\sqrt{2}", "1.4142"),
            ("", "5"),
            ("", ""),
            ("12", "1,2"),
            ("i", "1"),
            ("ab", "a+b"),
            ("1/0", "2/0"),
        ],
        false,
    );
}

#[test]
fn several_values() {
    check(
        &[
            ("1,-2", "-2, 1"),
            ("3, 5, 7", r"3, 5, \text{ and } 7"),
            (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
            (r"\{1\pm\sqrt{5},-2\}", r"-2, 1-\sqrt{5}, 1+\sqrt{5}"),
            (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
            (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"),
            (r"x \in [-2,7]", r"-2 \le x \le 7"),
            (r"(2,\infty)", "x > 2"),
            (r"(-\infty, 0]", r"x \leq 0"),
            (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix}-\frac13\\ \frac{2}{3}\end{bmatrix}"),
            (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"\begin{pmatrix}-1&0\\0&-1\\\end{pmatrix}"),
            (r"x=5", "5"),
            ("y = 2x + 3", "2x+3"),
            ("5x - 7y + 11z + 4 = 0", "10x-14y+22z=-8"),
            ("y = -2x", "2x + y = 0"),
            ("52_8", "52_{8}"),
            ("52_8", "52"),
            (r"\text{(C)}", "C"),
            (r"\text{Evelyn}", "evelyn"),
            (r"\text{even}", "even"),
            ("f(x) = x^2", "x^2"),
        ],
        true,
    );
    check(
        &[
            ("1,-2", "1,2"),
            ("1,-2", "1"),
            ("1,1,2", "1,2,2"),
            ("(1,2)", "(2,1)"),
            ("(3,4]", "[3,4)"),
            ("(3,4]", "(3,4)"),
            ("x > 2", r"x \ge 2"),
            ("x > 2", "x < 2"),
            (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
            (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
            ("52_8", "52_9"),
            ("52_8", "53"),
            ("x=5", "6"),
            ("y = -2x", "y=2x"),
            ("5x - 7y = 0", "5x + 7y = 0"),
            (r"\text{(C)}", "D"),
            (r"\text{even}", "odd"),
            (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"),
            (r"\{1,2\}", "(1,2)"),
        ],
        false,
    );
}

/// A generator of its own: the same texts every time.
struct Pieces(u64);

impl Pieces {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn text(&mut self) -> String {
        const PIECES: [&str; 60] = [
            "1",
            "2",
            "0",
            "37",
            "x",
            "y",
            "d",
            "i",
            "e",
            "+",
            "-",
            "*",
            "/",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "^",
            "_",
            "|",
            ",",
            ".",
            "=",
            "<",
            ">",
            "!",
            " ",
            "\\",
            "\\\\",
            "&",
            "$",
            "%",
            "\\frac",
            "\\sqrt",
            "\\pi",
            "\\text{",
            "\\infty",
            "\\pm",
            "\\cup",
            "\\le",
            "\\left",
            "\\right",
            "\\sin",
            "\\log",
            "\\{",
            "\\}",
            "\\begin{pmatrix}",
            "\\end{pmatrix}",
            "\\boxed",
            "\\boxed{",
            "\\overline{",
            "^\\circ",
            "é",
            "−",
            "\\cdot",
            "\\lfloor",
            "\\rfloor",
            "'",
        ];
        let length = self.next() % 14;
        (0..length).map(|_| PIECES[self.next() as usize % PIECES.len()]).collect()
    }
}

#[test]
fn any_text_is_graded_alike_from_both_sides() {
    let mut pieces = Pieces(1);
    for _ in 0..3_000 {
        let (a, b) = (pieces.text(), pieces.text());
        assert_eq!(math_equal(&a, &b), math_equal(&b, &a), "{a:?} and {b:?}");
        let empty = super::clean::clean(&a).text.is_empty();
        assert_eq!(math_equal(&a, &a), !empty, "{a:?}");
        let minerva = super::super::minerva::normalize(&a);
        assert!(minerva.is_empty() || super::super::minerva::is_equiv(&minerva, &minerva), "{a:?}");
        let other = super::super::minerva::normalize(&b);
        let is_equiv = super::super::minerva::is_equiv;
        assert_eq!(is_equiv(&minerva, &other), is_equiv(&other, &minerva), "{a:?} and {b:?}");
        assert!(super::super::hendrycks::is_equiv(&a, &a), "{a:?}");
        // These only must not panic.
        let _ = (super::super::letter::letter(&a, 4, false), super::super::boxed::final_answer(&a));
    }
}

#[test]
fn deep_and_long_texts_are_refused_not_followed() {
    for piece in [
        "(",
        "\\frac{1}{",
        "-",
        "|",
        "^{",
        "\\sqrt{",
        "!",
        "x^",
        "1+",
        "\\{",
        "[1,",
        "\\text{",
        "{",
        "1|",
        "\\pm",
        "1/",
    ] {
        for times in [40, 400, 40_000] {
            let text = piece.repeat(times);
            assert!(!math_equal(&text, "7"), "{piece} {times} times");
            assert!(!math_equal(&format!("1{text}"), &format!("1{text}7")), "{piece} {times} times");
            assert!(
                !super::super::minerva::is_equiv(&super::super::minerva::normalize(&text), "7"),
                "{piece} {times} times"
            );
        }
    }
}
