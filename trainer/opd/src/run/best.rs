//! `checkpoint.best`: which checkpoint is kept as the best of a run.

use std::collections::BTreeMap;

use super::eval_kl;
use crate::checkpoint::Best;
use crate::metrics::StepMetrics;
use crate::recipe::Recipe;
use crate::{Error, Result};
use eval::tasks;

/// The metric that decides which checkpoint is the best.
#[derive(Debug)]
pub(super) struct BestMetric {
    name: String,
    higher: bool,
}

impl BestMetric {
    /// That of a recipe, which measures `held_out` rows; nothing where it does not ask for one.
    ///
    /// # Errors
    /// A name that the run does not measure.
    pub(super) fn of(recipe: &Recipe, held_out: bool) -> Result<Option<Self>> {
        let Some(name) = &recipe.checkpoint.best else { return Ok(None) };
        let known = known(recipe, held_out)?;
        match known.get(name) {
            Some(&higher) => Ok(Some(Self { name: name.clone(), higher })),
            None => {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                Err(Error::value("checkpoint.best", name, format!("one of {}", names.join(", "))))
            }
        }
    }

    /// Refuses measurements that lack it: a remote teacher may not return what it needs.
    ///
    /// # Errors
    /// Names those that there are.
    pub(super) fn check(&self, metrics: &StepMetrics) -> Result<()> {
        let measured = metrics.as_json();
        if measured.contains_key(&self.name) {
            return Ok(());
        }
        let names: Vec<&str> = measured.keys().map(String::as_str).filter(|name| name.starts_with("eval/")).collect();
        Err(Error::value("checkpoint.best", &self.name, format!("something that is measured: {}", names.join(", "))))
    }

    /// What `metrics` has of it, where that is better than `before`; of equals the earlier stays.
    pub(super) fn improved(&self, metrics: &StepMetrics, step: u64, before: Option<&Best>) -> Option<Best> {
        let value = metrics.get(&self.name)?;
        let better = |before: &Best| if self.higher { value > before.value } else { value < before.value };
        let before = before.filter(|before| before.metric == self.name);
        before.is_none_or(better).then(|| Best { metric: self.name.clone(), step, value })
    }
}

/// Whether a recipe's measurements are possible, as far as that is known without its models.
///
/// # Errors
/// A task that nothing has; a best checkpoint by what is not measured.
pub fn check_measurements(recipe: &Recipe) -> Result<()> {
    if let Some(benchmark) = recipe.eval.as_ref().and_then(|eval| eval.benchmark.as_ref()) {
        tasks::find(&benchmark.tasks, tasks::Programs::default())?;
    }
    BestMetric::of(recipe, recipe.data.held_out.is_some()).map(drop)
}

/// What a run measures of which one value is better than another: names, and whether more is better.
fn known(recipe: &Recipe, held_out: bool) -> Result<BTreeMap<String, bool>> {
    let mut known = BTreeMap::new();
    if held_out {
        known.extend(eval_kl::BETTER.map(|(name, higher)| (format!("eval/{name}"), higher)));
    }
    let benchmark = recipe.eval.as_ref().and_then(|eval| eval.benchmark.as_ref());
    let tasks = benchmark.map_or(Ok(Vec::new()), |b| tasks::find(&b.tasks, tasks::Programs::default()))?;
    for info in tasks.iter().map(|task| task.info()) {
        for metric in &info.metrics {
            known.insert(super::benchmark::score_name(&info.name, &metric.key()), metric.higher_is_better);
        }
    }
    known.extend(
        tasks::whole_groups(&tasks).iter().map(|group| (super::benchmark::score_name(group, "acc,none"), true)),
    );
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(value: f64) -> StepMetrics {
        let mut metrics = StepMetrics::at(4);
        metrics.set("eval/kl", value);
        metrics
    }

    #[test]
    fn the_first_of_equals_stays_and_what_is_not_a_number_never_wins() {
        let by = |higher| BestMetric { name: "eval/kl".to_owned(), higher };
        let best = |value| Best { metric: "eval/kl".to_owned(), step: 2, value };
        assert_eq!(by(false).improved(&metrics(0.5), 4, None), Some(Best { step: 4, ..best(0.5) }));
        assert_eq!(by(false).improved(&metrics(0.4), 4, Some(&best(0.5))), Some(Best { step: 4, ..best(0.4) }));
        assert_eq!(by(false).improved(&metrics(0.5), 4, Some(&best(0.5))), None);
        assert_eq!(by(false).improved(&metrics(0.6), 4, Some(&best(0.5))), None);
        assert_eq!(by(true).improved(&metrics(0.6), 4, Some(&best(0.5))), Some(Best { step: 4, ..best(0.6) }));
        assert_eq!(by(true).improved(&metrics(f64::NAN), 4, Some(&best(0.5))), None);
        assert_eq!(by(true).improved(&metrics(f64::NAN), 4, None), None);
        assert!(by(true).check(&metrics(f64::NAN)).is_ok(), "it was measured");
        let lacking = BestMetric { name: "eval/agreement".to_owned(), higher: true }.check(&metrics(0.5));
        assert!(lacking.expect_err("not measured").to_string().contains("eval/kl"));
        let other = Best { metric: "eval/agreement".to_owned(), ..best(0.1) };
        assert!(by(false).improved(&metrics(0.5), 4, Some(&other)).is_some(), "another metric's value says nothing");
    }
}
