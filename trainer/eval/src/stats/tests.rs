use serde_json::Value;

use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../../tests/fixtures/stats.json")).expect("fixtures")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn near(ours: f64, golden: &Value, relative: f64) {
    let golden = golden.as_f64().expect("a number");
    let size = golden.abs().max(ours.abs());
    assert!((ours - golden).abs() <= relative * size || size < 1e-290, "{ours} and {golden}");
}

#[test]
fn standard_errors_are_lm_evals() {
    for case in golden()["mean"].as_array().expect("cases") {
        let values = numbers(&case["values"]);
        assert_eq!(mean(&values), case["mean"].as_f64().expect("a mean"));
        assert_eq!(mean_stderr(&values), case["stderr"].as_f64().expect("a standard error"));
    }
}

#[test]
fn intervals_and_tests_are_scipys_and_statsmodels() {
    let golden = golden();
    for case in golden["wilson"].as_array().expect("cases") {
        let [right, n, level, low, high] = numbers(case)[..] else { panic!("{case}") };
        let interval = wilson(right as usize, n as usize, level);
        near(interval.low, &low.into(), 1e-12);
        near(interval.high, &high.into(), 1e-12);
    }
    for case in golden["binomial"].as_array().expect("cases") {
        near(binomial_two_sided(numbers(case)[0] as usize, numbers(case)[1] as usize), &case[2], 1e-10);
    }
    for case in golden["t"].as_array().expect("cases") {
        near(t_two_sided(numbers(case)[0], numbers(case)[1]), &case[2], 1e-10);
    }
    for case in golden["quantile"].as_array().expect("cases") {
        let freedom = numbers(case)[1];
        let ours =
            if freedom == 0.0 { normal_quantile(numbers(case)[0]) } else { t_quantile(numbers(case)[0], freedom) };
        near(ours, &case[2], 1e-9);
    }
    for case in golden["pass_at_k"].as_array().expect("cases") {
        let [n, correct, k] = [0, 1, 2].map(|at| numbers(case)[at] as usize);
        near(pass_at_k(n, correct, k).expect("enough"), &case[3], 1e-12);
    }
    assert_eq!(pass_at_k(3, 1, 4), None);
}

#[test]
fn comparisons_are_those_of_scipy() {
    let golden = golden();
    for case in golden["paired"].as_array().expect("cases") {
        let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
        let compared = paired::compare(&a, &b, 0.95).expect("pairs");
        near(compared.difference, &case["difference"], 1e-13);
        near(compared.p, &case["p"], 1e-10);
        let interval = compared.interval.expect("they vary");
        near(interval.low, &case["low"], 1e-9);
        near(interval.high, &case["high"], 1e-9);
        let resampled =
            paired::bootstrap_interval(&a.iter().zip(&b).map(|(a, b)| b - a).collect::<Vec<_>>(), 0.95, 4000, 1);
        let width = interval.high - interval.low;
        assert!((resampled.low - interval.low).abs() < width / 4.0, "{resampled:?} {compared:?}");
        assert!((resampled.high - interval.high).abs() < width / 4.0, "{resampled:?} {compared:?}");
    }
}

#[test]
fn what_is_noise_is_said_to_be() {
    let right = |n: usize| -> Vec<f64> { (0..100).map(|at| f64::from(u8::from(at < n))).collect() };
    let same = paired::compare(&right(50), &right(50), 0.95).expect("pairs");
    assert_eq!((same.gained, same.lost, same.p), (0, 0, 1.0));
    assert!(same.within_noise());
    let compare = |a, b, level| paired::compare(&right(a), &right(b), level).expect("pairs");
    let better = compare(50, 56, 0.95);
    assert_eq!((better.gained, better.lost), (6, 0));
    near(better.p, &(2.0 / 64.0).into(), 1e-12);
    assert!(!better.within_noise() && compare(50, 56, 0.99).within_noise());
    let five = paired::compare(&right(50), &right(55), 0.95).expect("pairs");
    assert!(five.within_noise(), "{five:?}");
    assert_eq!(paired::compare(&[], &[], 0.95), None);
    assert_eq!(paired::compare(&[1.0], &[1.0, 0.0], 0.95), None);
    let one = paired::compare(&[0.5], &[0.7], 0.95).expect("a pair");
    assert!(one.within_noise() && one.interval.is_some_and(|interval| interval.high > 0.2), "{one:?}");
    let one = paired::compare(&[-0.5], &[-0.7], 0.95).expect("a pair");
    assert!(one.within_noise() && one.interval.is_none(), "one log-probability: {one:?}");
    let level = paired::compare(&[0.5, 0.25], &[0.5, 0.25], 0.95).expect("pairs");
    assert_eq!((level.p, level.test), (1.0, paired::Test::PairedT));
}

#[test]
fn the_ends_of_wilsons_interval_stay_within() {
    let none = wilson(0, 10, 0.95);
    assert!(none.low == 0.0 && none.high > 0.2 && none.high < 0.4, "{none:?}");
    let all = wilson(10, 10, 0.95);
    assert!(all.high == 1.0 && (all.low - (1.0 - none.high)).abs() < 1e-12, "{all:?}");
}

/// The interval lies within -1 and 1, has the difference, is not empty, and says what the exact test says: at all edges.
#[test]
fn intervals_of_right_and_wrong_hold_at_the_edges() {
    for n in [1, 2, 3, 5, 8, 20, 60] {
        for gained in 0..=n {
            for lost in 0..=n - gained {
                let a: Vec<f64> =
                    (0..n).map(|at| f64::from(u8::from(at < lost || at % 2 == 0 && at >= lost + gained))).collect();
                let b: Vec<f64> = (0..n)
                    .map(|at| {
                        if at < lost {
                            0.0
                        } else if at < lost + gained {
                            1.0
                        } else {
                            a[at]
                        }
                    })
                    .collect();
                let compared = paired::compare(&a, &b, 0.95).expect("pairs");
                assert_eq!((compared.gained, compared.lost), (gained, lost));
                let Interval { low, high } = compared.interval.expect("scores have bounds");
                assert!((-1.0..=compared.difference).contains(&low) && (compared.difference..=1.0).contains(&high));
                assert!(high - low > 0.01, "{compared:?}");
                assert_eq!(compared.within_noise(), compared.p > 0.05, "{compared:?}");
            }
        }
    }
    let interval = |a: &[f64], b: &[f64]| paired::compare(a, b, 0.95).expect("pairs").interval.expect("bounded");
    // Fractions that do not vary, and that vary as much as they can.
    let constant = interval(&[0.25; 4], &[0.75; 4]);
    assert!(constant.low < 0.5 && constant.high > 0.5 && constant.high <= 1.0, "{constant:?}");
    let wild = interval(&[0.0, 1.0], &[1.0, 0.5]);
    assert!(wild.low >= -1.0 && wild.high <= 1.0, "{wild:?}");
}

#[test]
fn intervals_of_scores_stay_within_their_bounds() {
    for (mean, stderr, n) in [(0.0, 0.0, 3), (1.0, 0.0, 3), (0.5, 0.0, 2), (0.5, 0.5, 2), (0.9, 0.1, 10)] {
        let Interval { low, high } = score_interval(mean, stderr, n, 0.95);
        assert!((0.0..=mean).contains(&low) && (mean..=1.0).contains(&high) && high - low > 0.1, "{low} {high}");
    }
    // Many scores: two standard errors.
    let many = score_interval(0.5, 0.01, 2500, 0.95);
    assert!((many.low - 0.4804).abs() < 1e-3 && (many.high - 0.5196).abs() < 1e-3, "{many:?}");
    let perplexity = perplexity_interval(8.0, 6.0, 0.95);
    assert!(perplexity.low > 0.0 && perplexity.low < 8.0 && perplexity.high > 8.0, "{perplexity:?}");
}
