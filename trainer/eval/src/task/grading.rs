//! Grading that needs no knowledge of a subject: choices, exact matches through filters, perplexities.

use std::collections::BTreeMap;

use regex::Regex;
use serde::Deserialize;

use crate::stats::metric::{Aggregation, Metric, MetricValue};
use crate::task::outcome::Grade;
use crate::task::question::EvalResponse;

/// What an answer is when a filter finds none, as in lm-evaluation-harness.
pub(crate) const INVALID: &str = "[invalid]";

/// Which match of a filter's expression is the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChosenMatch {
    #[default]
    First,
    Last,
}

/// A filter: reads an answer out of a text.
pub(crate) struct Extract {
    pub(crate) name: String,
    pub(crate) regex: Regex,
    pub(crate) take: ChosenMatch,
}

impl Extract {
    /// The first group that took part in the chosen match (or all of it, where there are no groups), without white space
    /// around.
    pub(crate) fn of(&self, text: &str) -> String {
        let mut matches = self.regex.captures_iter(text);
        let found = match self.take {
            ChosenMatch::First => matches.next(),
            ChosenMatch::Last => matches.last(),
        };
        let Some(found) = found else { return INVALID.to_owned() };
        let group = match found.len() {
            1 => found.get(0),
            _ => found.iter().skip(1).flatten().find(|group| !group.is_empty()),
        };
        group.map_or_else(|| INVALID.to_owned(), |group| group.as_str().trim().to_owned())
    }
}

/// What does not matter when two answers are compared.
pub(crate) struct Normal {
    pub(crate) ignore: Vec<Regex>,
    pub(crate) ignore_case: bool,
}

impl Normal {
    pub(crate) fn of(&self, text: &str) -> String {
        let text = self.ignore.iter().fold(text.to_owned(), |text, regex| regex.replace_all(&text, "").into_owned());
        if self.ignore_case { text.to_lowercase() } else { text }
    }
}

/// Whether the text, through every filter, is the right answer.
pub(crate) fn exact_match(gold: &str, responses: &[EvalResponse], extract: &[Extract], normal: &Normal) -> Grade {
    let wanted = normal.of(gold);
    let mut outcome = Grade { gold: gold.to_owned(), ..Grade::default() };
    let text = responses.first().map_or("", EvalResponse::text);
    let found: Vec<(String, String)> = match extract {
        [] => vec![("none".to_owned(), text.to_owned())],
        filters => filters.iter().map(|filter| (filter.name.clone(), filter.of(text))).collect(),
    };
    for (filter, answer) in found {
        let equal = normal.of(&answer) == wanted;
        outcome.metrics.insert(format!("exact_match,{filter}"), MetricValue::Number(f64::from(u8::from(equal))));
        outcome.extracted.insert(filter, answer);
    }
    outcome
}

/// The likeliest choice, and with `lengths` the likeliest a character.
pub(crate) fn choice(choices: &[String], gold: usize, responses: &[EvalResponse], lengths: bool) -> Grade {
    let mut outcome = Grade { gold: choices.get(gold).cloned().unwrap_or_default(), ..Grade::default() };
    let logprobs: Vec<f64> = responses.iter().map(EvalResponse::logprob).collect();
    let mut take = |metric: &str, filter: &str, values: &[f64]| {
        let chosen = first_largest(values);
        let right = f64::from(u8::from(chosen == gold));
        outcome.metrics.insert(format!("{metric},none"), MetricValue::Number(right));
        outcome.extracted.insert(filter.to_owned(), choices.get(chosen).cloned().unwrap_or_default());
    };
    take("acc", "none", &logprobs);
    if lengths {
        let length = |choice: &String| choice.chars().count() as f64;
        let normed: Vec<f64> = logprobs.iter().zip(choices).map(|(logprob, choice)| logprob / length(choice)).collect();
        take("acc_norm", "acc_norm", &normed);
    }
    outcome
}

/// Of equal values the first counts.
fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// Perplexity of a continuation, and whether it is the greedy one.
pub(crate) fn continuation(gold: &str, responses: &[EvalResponse]) -> Grade {
    let logprob = responses.first().map_or(f64::NAN, EvalResponse::logprob);
    let greedy = matches!(responses, [EvalResponse::LogLikelihood { greedy: true, .. }]);
    let metrics = [("perplexity,none", logprob), ("acc,none", f64::from(u8::from(greedy)))];
    Grade {
        extracted: BTreeMap::new(),
        gold: gold.to_owned(),
        metrics: metrics.into_iter().map(|(name, value)| (name.to_owned(), MetricValue::Number(value))).collect(),
    }
}

/// What a rolling log-likelihood reports.
pub(crate) fn rolling_metrics() -> Vec<Metric> {
    vec![
        Metric::low("word_perplexity", Aggregation::WeightedPerplexity),
        Metric::low("byte_perplexity", Aggregation::WeightedPerplexity),
        Metric::low("bits_per_byte", Aggregation::BitsPerByte),
    ]
}

/// A text's log-probability over its words and bytes.
pub(crate) fn rolling(responses: &[EvalResponse], words: usize, bytes: usize) -> BTreeMap<String, MetricValue> {
    let logprob = responses.first().map_or(f64::NAN, EvalResponse::logprob);
    let over = |count: usize| MetricValue::Weighted(logprob, count as f64);
    let values = [
        ("word_perplexity,none", over(words)),
        ("byte_perplexity,none", over(bytes)),
        ("bits_per_byte,none", over(bytes)),
    ];
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(logprobs: &[f64]) -> Vec<EvalResponse> {
        let one = |&logprob: &f64| EvalResponse::LogLikelihood {
            logprob,
            greedy: false,
            token_ids: Vec::new(),
            logprobs: Vec::new(),
        };
        logprobs.iter().map(one).collect()
    }

    fn number(outcome: &Grade, metric: &str) -> f64 {
        outcome.metrics[metric].number()
    }

    #[test]
    fn the_likeliest_choice_counts_and_of_equals_the_first() {
        let choices = ["no".to_owned(), "certainly".to_owned()];
        let outcome = choice(&choices, 1, &scored(&[-2.0, -4.5]), true);
        assert_eq!((number(&outcome, "acc,none"), number(&outcome, "acc_norm,none")), (0.0, 1.0));
        assert_eq!((&outcome.extracted["none"], &outcome.extracted["acc_norm"]), (&choices[0], &choices[1]));
        assert_eq!(number(&choice(&choices, 0, &scored(&[-1.0, -1.0]), false), "acc,none"), 1.0);
    }

    #[test]
    fn lengths_are_characters() {
        let choices = ["öö".to_owned(), "abc".to_owned()];
        let outcome = choice(&choices, 1, &scored(&[-3.0, -4.0]), true);
        assert_eq!(outcome.extracted["acc_norm"], "abc", "1.5 a character against 1.33; by bytes it would be 0.75");
    }
}
