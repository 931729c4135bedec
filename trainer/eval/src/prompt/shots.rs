//! Few-shot examples of each document, chosen as lm-evaluation-harness 0.4.13 chooses them.

use crate::data::doc::Doc;
use crate::random::PythonRandom;
use crate::task::{Docs, FewShot, Task};
use crate::{Error, Result};

/// Chooses examples for one document after another; the random numbers go on from document to document.
pub(crate) struct Shots<'a> {
    task: &'a dyn Task,
    docs: &'a Docs,
    count: usize,
    random: PythonRandom,
}

impl<'a> Shots<'a> {
    /// `count` examples for every document.
    ///
    /// # Errors
    /// A task that has no examples, or fewer.
    pub(crate) fn new(task: &'a dyn Task, docs: &'a Docs, count: usize, seed: u64) -> Result<Self> {
        let info = task.info();
        let available = match &info.few_shot {
            FewShot::Random | FewShot::First => docs.pool.len(),
            FewShot::RandomOthers => docs.test.len().saturating_sub(1),
            FewShot::Fixed(pairs) => pairs.len(),
            FewShot::None => 0,
        };
        if count > available {
            let rule = match info.few_shot {
                FewShot::None => format!("0 for {}, which has no examples", info.name),
                _ => format!("at most the {available} examples of {}", info.name),
            };
            return Err(Error::value("--num-fewshot", count, rule));
        }
        Ok(Self { task, docs, count, random: PythonRandom::new(seed) })
    }

    /// (question, answer) of every example for `doc`.
    pub(crate) fn of(&mut self, doc: &Doc) -> Vec<(String, String)> {
        if self.count == 0 {
            return Vec::new();
        }
        let example = |doc: &Doc| self.task.example(doc);
        match &self.task.info().few_shot {
            FewShot::None => Vec::new(),
            FewShot::Fixed(pairs) => pairs[..self.count].to_vec(),
            FewShot::First => self.docs.pool[..self.count].iter().map(example).collect(),
            FewShot::Random => {
                let drawn = self.random.sample(self.docs.pool.len(), self.count);
                drawn.into_iter().map(|i| example(&self.docs.pool[i])).collect()
            }
            FewShot::RandomOthers => {
                others(&self.docs.test, doc, self.count, &mut self.random).into_iter().map(example).collect()
            }
        }
    }
}

/// One more than `count` is drawn, so that `doc` itself can be left out. Where it is there several times, so that fewer
/// are left, a second draw is made among the others.
fn others<'a>(docs: &'a [Doc], doc: &Doc, count: usize, random: &mut PythonRandom) -> Vec<&'a Doc> {
    let drawn = random.sample(docs.len(), (count + 1).min(docs.len()));
    let mut chosen: Vec<&Doc> = drawn.into_iter().map(|i| &docs[i]).filter(|other| *other != doc).collect();
    if chosen.len() < count {
        let pool: Vec<&Doc> = docs.iter().filter(|other| *other != doc).collect();
        chosen = random.sample(pool.len(), count.min(pool.len())).into_iter().map(|i| pool[i]).collect();
    }
    chosen.truncate(count);
    chosen
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn docs(numbers: &[u64]) -> Vec<Doc> {
        numbers.iter().map(|n| Doc::from_iter([("n".to_owned(), json!(n))])).collect()
    }

    /// Golden values from lm-evaluation-harness' sampler, whose random numbers begin with seed 1234.
    #[test]
    fn the_document_itself_is_left_out() {
        let pool = docs(&(0..40).collect::<Vec<_>>());
        let mut random = PythonRandom::new(1234);
        let numbers =
            |drawn: Vec<&Doc>| drawn.iter().map(|doc| doc["n"].as_u64().expect("a number")).collect::<Vec<_>>();
        assert_eq!(numbers(others(&pool, &pool[28], 3, &mut random)), GOLDEN[0]);
        assert_eq!(numbers(others(&pool, &pool[0], 3, &mut random)), GOLDEN[1]);
        let twins = docs(&[7, 7, 7, 7, 1, 2]);
        assert_eq!(numbers(others(&twins, &twins[0], 2, &mut PythonRandom::new(1234))), GOLDEN[2]);
    }

    const GOLDEN: [&[u64]; 3] = [&[7, 0, 5], &[37, 2, 5], &[1, 2]];
}
