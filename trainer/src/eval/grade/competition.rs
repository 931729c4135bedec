//! aime24 and amc23: answers that are numbers.

use super::answer::math_equal;
use super::hendrycks;

/// Whether an extracted answer is AIME's: equal as lm-evaluation-harness compares, or the same whole number; its answers are
/// 000 to 999 and may be written with leading zeros.
#[must_use]
pub fn aime(extracted: &str, gold: &str) -> bool {
    let whole = |text: &str| {
        let normal = hendrycks::normalize(text)?;
        let digits = normal.trim_end_matches('.');
        let plain = !digits.is_empty() && digits.len() <= 18 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok()).flatten()
    };
    hendrycks::is_equiv(extracted, gold) || whole(extracted).is_some_and(|value| whole(gold) == Some(value))
}

/// Whether an extracted answer has AMC's value; the gold answer is a decimal such as `27.0`.
#[must_use]
pub fn amc(extracted: &str, gold: &str) -> bool {
    math_equal(gold, extracted)
}

#[cfg(test)]
mod tests {
    use super::super::hendrycks::boxed_or_dollars;
    use super::*;

    #[test]
    fn leading_zeros_do_not_matter() {
        for right in
            ["25", "025", "0025", "25.", r"\boxed{025}", r"so $\boxed{25}$ it is", "$25$", r"\boxed{1} no: \boxed{25}"]
        {
            assert!(aime(boxed_or_dollars(right), "025"), "{right}");
        }
        for wrong in ["250", "2", "-25", "25.5", "", r"\boxed{25} no: \boxed{26}", "the answer is 25", "2 5 7"] {
            assert!(!aime(boxed_or_dollars(wrong), "025"), "{wrong}");
        }
        assert!(aime("000", "0") && !aime("", "0") && !aime("", "000"));
    }

    #[test]
    fn decimals_are_values() {
        for right in ["27", "27.0", "27.00", r"\frac{54}{2}", "$27$", r"27\text{ units}", "27."] {
            assert!(amc(right, "27.0"), "{right}");
        }
        for wrong in ["27.1", "-27", "270", "2.7", "", "x", "27, 28", "(27,27)"] {
            assert!(!amc(wrong, "27.0"), "{wrong}");
        }
        assert!(amc("1,600", "1600.0"));
    }
}
