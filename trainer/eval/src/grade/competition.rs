//! aime24 and amc23: answers that are numbers.

use super::answer::math_equal;
use super::hendrycks;

/// The right answer as it is compared: a whole number without leading zeros and decimals (`025`, `27.0`), as the data set that
/// lm-evaluation-harness asks has it; any other as it is.
#[must_use]
pub fn whole(gold: &str) -> String {
    let trimmed = gold.trim();
    let digits = trimmed.strip_suffix(".0").unwrap_or(trimmed);
    digits.parse::<i64>().map_or_else(|_| gold.to_owned(), |number| number.to_string())
}

/// lm-evaluation-harness' verdict: equal after its edits. `025` is not 25 to it.
#[must_use]
pub fn exact(extracted: &str, gold: &str) -> bool {
    hendrycks::is_equiv(extracted, &whole(gold))
}

/// Whether the value is the same.
#[must_use]
pub fn equal(extracted: &str, gold: &str) -> bool {
    math_equal(&whole(gold), extracted)
}

#[cfg(test)]
mod tests {
    use super::super::hendrycks::boxed_or_dollars;
    use super::*;

    #[test]
    fn right_answers_are_whole_numbers() {
        for (gold, number) in
            [("025", "25"), ("27.0", "27"), ("000", "0"), ("120", "120"), ("-1.0", "-1"), ("1.5", "1.5"), ("x", "x")]
        {
            assert_eq!(whole(gold), number);
        }
    }

    #[test]
    fn leading_zeros_are_the_same_value_and_another_text() {
        for right in ["25", r"so $\boxed{25}$ it is", "$25$", r"\boxed{1} no: \boxed{25}"] {
            let extracted = boxed_or_dollars(right);
            assert!(exact(extracted, "025") && equal(extracted, "025"), "{right}");
        }
        for right in ["025", "0025", "25.", "25.0", r"\boxed{025}", r"\frac{50}{2}"] {
            let extracted = boxed_or_dollars(right);
            assert!(!exact(extracted, "025") && equal(extracted, "025"), "{right}");
        }
        for wrong in ["250", "2", "-25", "25.5", "", r"\boxed{25} no: \boxed{26}", "the answer is 25", "2 5 7"] {
            let extracted = boxed_or_dollars(wrong);
            assert!(!exact(extracted, "025") && !equal(extracted, "025"), "{wrong}");
        }
        assert!(equal("000", "0") && !equal("", "0") && !equal("", "000") && !exact("", "000"));
    }

    #[test]
    fn decimals_are_values() {
        for right in ["27", "27.0", "27.00", r"\frac{54}{2}", "$27$", r"27\text{ units}", "27."] {
            assert!(equal(right, "27.0"), "{right}");
        }
        for wrong in ["27.1", "-27", "270", "2.7", "", "x", "27, 28", "(27,27)"] {
            assert!(!equal(wrong, "27.0"), "{wrong}");
        }
        assert!(equal("1,600", "1600.0"));
    }
}
